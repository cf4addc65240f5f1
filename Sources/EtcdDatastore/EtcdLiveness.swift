// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import Foundation
internal import GRPCCore
internal import Logging

/// Says in etcd that a node's agent is connected: a key that goes with its lease when the agent does not renew it.
struct EtcdLiveness: Sendable {
    let client: EtcdClient
    let node: String
    let logger: Logger

    /// Seconds that the key outlives the agent.
    private static let life: Int64 = 30

    /// Until it is cancelled, which takes the key away at once.
    func run() async {
        var backoff = Backoff(first: .seconds(1))
        while !Task.isCancelled {
            do {
                let lease = try await grant()
                do {
                    try await put(lease)
                    backoff.succeeded()
                    try await keep(lease)
                } catch {
                    if Task.isCancelled { await revoke(lease) }
                    throw error
                }
            } catch {
                if Task.isCancelled { return }
                logger.debug("etcd: liveness is not told", metadata: ["error": "\(error)"])
                try? await Task.sleep(for: backoff.next())
            }
        }
    }

    private func grant() async throws -> Int64 {
        var request = Etcdserverpb_LeaseGrantRequest()
        request.ttl = Self.life
        let wanted = request
        return try await client.call { channel, metadata, options in
            try await Etcdserverpb_Lease.Client(wrapping: channel).leaseGrant(
                wanted, metadata: metadata, options: options)
        }.id
    }

    private func put(_ lease: Int64) async throws {
        var operation = Etcdserverpb_RequestOp()
        operation.requestPut.key = EtcdLayout.live(node)
        operation.requestPut.value = Data("{\"since\":\"\(Date.now.formatted(.iso8601))\"}".utf8)
        operation.requestPut.lease = lease
        var request = Etcdserverpb_TxnRequest()
        request.success = [operation]
        let wanted = request
        _ = try await client.call { channel, metadata, options in
            try await Etcdserverpb_KV.Client(wrapping: channel).txn(wanted, metadata: metadata, options: options)
        }
    }

    /// Renews the lease until it is lost.
    private func keep(_ lease: Int64) async throws {
        try await client.stream { channel, metadata, options in
            try await Etcdserverpb_Lease.Client(wrapping: channel).leaseKeepAlive(
                metadata: metadata, options: options,
                requestProducer: { writer in
                    var request = Etcdserverpb_LeaseKeepAliveRequest()
                    request.id = lease
                    while true {
                        try await writer.write(request)
                        try await Task.sleep(for: .seconds(Self.life / 3))
                    }
                },
                onResponse: { response in
                    for try await message in response.messages where message.ttl <= 0 { return }
                })
        }
    }

    private func revoke(_ lease: Int64) async {
        var request = Etcdserverpb_LeaseRevokeRequest()
        request.id = lease
        let wanted = request
        // A call of a task that is cancelled would not be made.
        await Task {
            _ = try? await client.call { channel, metadata, options in
                var options = options
                options.timeout = .seconds(1)
                return try await Etcdserverpb_Lease.Client(wrapping: channel).leaseRevoke(
                    wanted, metadata: metadata, options: options)
            }
        }.value
    }
}
