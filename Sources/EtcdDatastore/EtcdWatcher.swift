// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import Foundation
internal import GRPCCore
internal import Logging
internal import Model
internal import Synchronization

/// Reads a prefix in pages, all at one revision.
struct EtcdPages {
    var client: EtcdClient
    var prefix: String
    var size: Int

    /// Hands on each key and value; returns the revision at which all of it was so, and whose cluster it is.
    func read(_ body: (Data, Data) throws -> Void) async throws -> (revision: Int64, cluster: UInt64) {
        var request = Etcdserverpb_RangeRequest()
        request.key = Data(prefix.utf8)
        request.rangeEnd = EtcdLayout.end(of: prefix)
        request.limit = Int64(size)
        while true {
            let page = request
            let answer = try await client.call { channel, metadata, options in
                try await Etcdserverpb_KV.Client(wrapping: channel).range(page, metadata: metadata, options: options)
            }
            for pair in answer.kvs { try body(pair.key, pair.value) }
            if request.revision == 0 { request.revision = answer.header.revision }
            guard answer.more, let last = answer.kvs.last else {
                return (request.revision, answer.header.clusterID)
            }
            request.key = last.key + [0]
        }
    }
}

/// Follows all resources: a list in pages, then a watch from its revision on, resumed after each break; listed again
/// when the revision was compacted away, or is one that the cluster has not got to.
struct EtcdWatcher: Sendable {
    let client: EtcdClient
    let feed: ChangeFeed
    let scope: PodScope
    let health: Health
    let logger: Logger
    let pageSize: Int
    /// Silence after which the connection is taken for dead.
    let idle: Duration

    /// Why a watch cannot go on from where it was.
    private struct Expired: Error {
        var reason: String
    }

    /// Where the watch is.
    private final class Position: Sendable {
        private let state: Mutex<(revision: Int64, unreadable: [ResourceKey: Problem])>
        private let heard = Mutex(ContinuousClock.now)
        let cluster: UInt64

        init(revision: Int64, cluster: UInt64, unreadable: [ResourceKey: Problem]) {
            state = Mutex((revision, unreadable))
            self.cluster = cluster
        }

        /// When the server has last said something.
        var lastHeard: ContinuousClock.Instant { heard.withLock { $0 } }
        func hear() { heard.withLock { $0 = .now } }

        var revision: Int64 {
            get { state.withLock(\.revision) }
            set { state.withLock { $0.revision = newValue } }
        }

        var unreadable: [ResourceKey: Problem] {
            get { state.withLock(\.unreadable) }
            set { state.withLock { $0.unreadable = newValue } }
        }
    }

    /// Until it is cancelled.
    func run() async {
        var backoff = Backoff(limit: .seconds(10))
        var position: Position?
        while !Task.isCancelled {
            do {
                let current: Position
                if let position { current = position } else { current = try await list() }
                position = current
                let began = ContinuousClock.now
                defer { if ContinuousClock.now - began > .seconds(5) { backoff.succeeded() } }
                try await watch(current)
            } catch let error as Expired {
                logger.info("etcd: watch is begun anew", metadata: ["reason": "\(error.reason)"])
                position = nil
                try? await Task.sleep(for: backoff.next())
            } catch {
                if Task.isCancelled { return }
                if let error = error as? RPCError, error.code == .outOfRange { position = nil }
                logger.debug("etcd: watch is broken", metadata: ["error": "\(error)"])
                await health.failed("etcd", EtcdError.text(error))
                try? await Task.sleep(for: backoff.next())
            }
        }
    }

    // MARK: List

    private func list() async throws -> Position {
        var changes = ResourceChanges()
        changes.whole = Set(ResourceKind.allCases)
        changes.podScope = scope
        var unreadable: [ResourceKey: Problem] = [:]
        let (node, bound) = (Data(feed.node.utf8), Data("\"nodeName\"".utf8))
        let pages = EtcdPages(client: client, prefix: EtcdLayout.prefix, size: pageSize)
        let (revision, cluster) = try await pages.read { key, value in
            // What a list does not name is gone, so pods that are bound to another node need not be read.
            let isPod = scope == .own && EtcdLayout.resource(key)?.kind == .pod
            if isPod, value.range(of: bound) != nil, value.range(of: node) == nil { return }
            note(key, value, in: &changes, &unreadable)
        }
        tell(unreadable, in: &changes)
        feed.post(changes)
        await health.succeeded("etcd")
        return Position(revision: revision, cluster: cluster, unreadable: unreadable)
    }

    private func note(
        _ key: Data, _ value: Data, in changes: inout ResourceChanges, _ unreadable: inout [ResourceKey: Problem]
    ) {
        guard let resource = EtcdLayout.resource(key) else { return }
        do {
            let decoder = FieldMask.followed(resource.kind).decoder()
            let content = try decoder.decode(MaskedValue.self, from: value).value
            let manifest = try EtcdLayout.manifest(content, resource)
            unreadable[resource] = nil
            let isOthers =
                scope == .own && resource.kind == .pod && content[["spec", "nodeName"]]?.stringValue != feed.node
            if isOthers { changes.remove(resource) } else { changes.put(manifest, own: feed.node) }
        } catch {
            unreadable[resource] = EtcdError.unreadable(resource, error)
        }
    }

    private func tell(_ unreadable: [ResourceKey: Problem], in changes: inout ResourceChanges) {
        changes.problems = unreadable.sorted { $0.key < $1.key }.map(\.value)
        changes.isComplete = unreadable.isEmpty
    }

    // MARK: Watch

    private func watch(_ position: Position) async throws {
        var create = Etcdserverpb_WatchRequest()
        create.createRequest.key = Data(EtcdLayout.prefix.utf8)
        create.createRequest.rangeEnd = EtcdLayout.end(of: EtcdLayout.prefix)
        create.createRequest.startRevision = position.revision + 1
        create.createRequest.progressNotify = true
        let first = create
        position.hear()
        let period = idle / 3
        try await client.stream { channel, metadata, options in
            try await withThrowingTaskGroup(of: Void.self) { group in
                group.addTask {
                    try await Etcdserverpb_Watch.Client(wrapping: channel).watch(
                        metadata: metadata, options: options,
                        requestProducer: { writer in
                            try await writer.write(first)
                            // What is asked up to where there is nothing to tell answers, if it lives.
                            var progress = Etcdserverpb_WatchRequest()
                            progress.progressRequest = Etcdserverpb_WatchProgressRequest()
                            while true {
                                try await Task.sleep(for: period)
                                try await writer.write(progress)
                            }
                        },
                        onResponse: { response in
                            for try await message in response.messages { try await take(message, position) }
                        })
                }
                group.addTask {
                    while ContinuousClock.now - position.lastHeard < idle {
                        try await Task.sleep(until: position.lastHeard + idle)
                    }
                    throw RPCError(code: .unavailable, message: "silent for \(idle)")
                }
                defer { group.cancelAll() }
                try await group.next()
            }
        }
    }

    private func take(_ message: Etcdserverpb_WatchResponse, _ position: Position) async throws {
        position.hear()
        if message.header.clusterID != position.cluster { throw Expired(reason: "it is another cluster") }
        if message.canceled {
            if message.compactRevision != 0 {
                throw Expired(reason: "revision \(position.revision) is compacted away")
            }
            throw RPCError(code: .permissionDenied, message: message.cancelReason)
        }
        if message.created, message.header.revision < position.revision {
            // Restored from an older backup; a watch from the future would be silent.
            throw Expired(reason: "the cluster is at \(message.header.revision), behind \(position.revision)")
        }
        var changes = ResourceChanges()
        var unreadable = position.unreadable
        for event in message.events {
            if event.type == .delete {
                guard let key = EtcdLayout.resource(event.kv.key) else { continue }
                unreadable[key] = nil
                changes.remove(key)
            } else {
                note(event.kv.key, event.kv.value, in: &changes, &unreadable)
            }
        }
        if unreadable != position.unreadable {
            position.unreadable = unreadable
            tell(unreadable, in: &changes)
        }
        // Not the header's: in the middle of a batch, and on etcd before 3.4.25, that runs ahead of the events.
        if let last = message.events.last { position.revision = max(position.revision, last.kv.modRevision) }
        feed.post(changes)
        await health.succeeded("etcd")
    }
}
