// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import Logging

/// Writes many keys at once, whatever was there: for measurements.
public struct EtcdBulkWriter: Sendable {
    private let client: EtcdClient

    public init(_ access: EtcdAccess) {
        client = EtcdClient(
            access, keepAlive: .seconds(20), logger: Logger(label: "etcd") { _ in SwiftLogNoOpLogHandler() })
    }

    /// At most 128 pairs, which etcd takes in one transaction.
    public func put(_ pairs: [(key: [UInt8], value: [UInt8])]) async throws {
        var request = Etcdserverpb_TxnRequest()
        request.success = pairs.map { pair in
            var operation = Etcdserverpb_RequestOp()
            operation.requestPut.key = Data(pair.key)
            operation.requestPut.value = Data(pair.value)
            return operation
        }
        let transaction = request
        _ = try await client.call { channel, metadata, options in
            try await Etcdserverpb_KV.Client(wrapping: channel).txn(transaction, metadata: metadata, options: options)
        }
    }

    public func close() async { client.close() }
}
