// SPDX-License-Identifier: Apache-2.0

public import Datastore
internal import Foundation
internal import GRPCCore
public import Logging
public import Model

/// Resources in etcd v3, for clusters without Kubernetes.
public struct EtcdDatastore: Datastore {
    public let location: String
    public var exposure: String? { client.access.exposure }
    private let client: EtcdClient
    private let logger: Logger
    private let pageSize: Int
    private let idle: Duration

    /// `idle`: silence after which a connection is taken for dead. `pageSize`: resources asked for at once.
    public init(_ access: EtcdAccess, idle: Duration = .seconds(60), pageSize: Int = 500, logger: Logger) {
        location = "etcd:" + access.endpoints.map(\.description).joined(separator: ",")
        client = EtcdClient(access, keepAlive: idle / 3, logger: logger)
        self.idle = idle
        self.logger = logger
        self.pageSize = pageSize
    }

    public func close() async { client.close() }

    private func failure(_ error: any Error, _ key: ResourceKey? = nil) -> any Error {
        guard let error = error as? RPCError else { return error }
        return DatastoreError(
            location: key.map { "\(location)/\($0)" } ?? location, message: EtcdError.text(error),
            remedy: EtcdError.remedy(error))
    }

    // MARK: Reading

    public func read(_ kinds: Set<ResourceKind>) async throws -> Snapshot {
        var snapshot = Snapshot()
        do {
            for kind in kinds.sorted() {
                let pages = EtcdPages(client: client, prefix: EtcdLayout.prefix(kind), size: pageSize)
                _ = try await pages.read { key, value in
                    guard let resource = EtcdLayout.resource(key) else { return }
                    do {
                        let content = try JSONDecoder().decode(ManifestValue.self, from: value)
                        snapshot.manifests[resource] = try EtcdLayout.manifest(content, resource)
                    } catch {
                        snapshot.problems.append(EtcdError.unreadable(resource, error))
                        snapshot.isComplete = false
                    }
                }
            }
        } catch {
            throw failure(error)
        }
        return snapshot
    }

    // MARK: Writing

    private static let attempts = 8

    @discardableResult
    public func update(
        _ key: ResourceKey, _ change: @Sendable (ManifestValue?) throws -> ManifestValue?
    ) async throws -> ManifestValue? {
        var backoff = Backoff(first: .milliseconds(20), limit: .seconds(1))
        for attempt in 1... {
            let (current, revision) = try await get(key)
            let wanted = try change(current)
            guard wanted != current else { return current }
            if let wanted { _ = try Manifest(wanted, storedAs: key) }
            do {
                if try await store(key, wanted, revision) { return wanted }
            } catch {
                throw failure(error, key)
            }
            // Somebody was faster.
            guard attempt < Self.attempts else { break }
            try await Task.sleep(for: backoff.next())
        }
        throw DatastoreError(
            location: "\(location)/\(key)", message: "somebody else changes it all the time", remedy: "try again")
    }

    private func get(_ key: ResourceKey) async throws -> (ManifestValue?, revision: Int64) {
        var request = Etcdserverpb_RangeRequest()
        request.key = EtcdLayout.key(key)
        let wanted = request
        do {
            let answer = try await client.call { channel, metadata, options in
                try await Etcdserverpb_KV.Client(wrapping: channel).range(wanted, metadata: metadata, options: options)
            }
            guard let found = answer.kvs.first else { return (nil, 0) }
            return (try JSONDecoder().decode(ManifestValue.self, from: found.value), found.modRevision)
        } catch let error as DecodingError {
            throw DatastoreError(
                location: "\(location)/\(key)", message: "is not overwritten, for it is no JSON (\(error))",
                remedy: "mend the value with etcdctl, or delete it")
        } catch {
            throw failure(error, key)
        }
    }

    /// Writes what should be where it is still what was read. False: it is not.
    private func store(_ key: ResourceKey, _ wanted: ManifestValue?, _ revision: Int64) async throws -> Bool {
        var same = Etcdserverpb_Compare()
        same.key = EtcdLayout.key(key)
        same.target = .mod
        same.modRevision = revision
        var operation = Etcdserverpb_RequestOp()
        if let wanted {
            operation.requestPut.key = same.key
            operation.requestPut.value = try JSONEncoder().encode(wanted)
        } else {
            operation.requestDeleteRange.key = same.key
        }
        var request = Etcdserverpb_TxnRequest()
        request.compare = [same]
        request.success = [operation]
        let transaction = request
        return try await client.call { channel, metadata, options in
            try await Etcdserverpb_KV.Client(wrapping: channel).txn(transaction, metadata: metadata, options: options)
        }.succeeded
    }

    // MARK: Following

    public func follow(_ feed: ChangeFeed) async {
        let health = Health(feed)
        await withTaskGroup(of: Void.self) { group in
            group.addTask {
                await feed.withScope { scope in
                    await EtcdWatcher(
                        client: client, feed: feed, scope: scope, health: health, logger: logger, pageSize: pageSize,
                        idle: idle
                    ).run()
                }
            }
            group.addTask { await EtcdLiveness(client: client, node: feed.node, logger: logger).run() }
        }
    }
}
