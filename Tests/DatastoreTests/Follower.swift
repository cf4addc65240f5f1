// SPDX-License-Identifier: Apache-2.0

import Datastore
import DesiredState
import Model
import OrderedCollections
import Synchronization

/// Follows a datastore as an agent does.
final class Follower: Sendable {
    private struct State {
        var inventory: Inventory
        var availability: [ResourceChanges.Availability] = []
        var lowest: (nodes: Int, pods: Int) = (.max, .max)
        var lists = 0
    }

    private let state: Mutex<State>
    let feed: ChangeFeed
    private let store: any Datastore

    init(_ store: any Datastore, node: String = "n1", scope: PodScope = .all) {
        self.store = store
        feed = ChangeFeed(node: node, podScope: scope)
        state = Mutex(State(inventory: Inventory(node: node)))
    }

    /// Runs it for the time of a test.
    static func run(
        _ store: any Datastore, scope: PodScope = .all, _ body: (Follower) async throws -> Void
    ) async throws {
        let follower = Follower(store, scope: scope)
        let tasks = [
            Task { await store.follow(follower.feed) },
            Task { for await _ in follower.feed.signals { follower.take() } },
        ]
        let result: Result<Void, any Error>
        do {
            try await body(follower)
            result = .success(())
        } catch {
            result = .failure(error)
        }
        for task in tasks {
            task.cancel()
            await task.value
        }
        await store.close()
        try result.get()
    }

    private func take() {
        let changes = feed.take()
        state.withLock { state in
            state.inventory.apply(changes)
            if !changes.whole.isEmpty { state.lists += 1 }
            if let new = changes.availability, new != state.availability.last { state.availability.append(new) }
            let cluster = state.inventory.cluster
            guard state.inventory.isReady else { return }
            state.lowest = (min(state.lowest.nodes, cluster.nodes.count), min(state.lowest.pods, cluster.pods.count))
        }
    }

    /// Counts anew from here.
    func mark() {
        state.withLock { state in
            state.lowest = (state.inventory.cluster.nodes.count, state.inventory.cluster.pods.count)
            state.availability = []
            state.lists = 0
        }
    }

    func acceptMassDeletion() {
        state.withLock { $0.inventory.apply(ResourceChanges(), acceptsMassDeletion: true) }
    }

    var inventory: Inventory { state.withLock(\.inventory) }
    /// The fewest nodes and pods that it knew of since `mark`.
    var lowest: (nodes: Int, pods: Int) { state.withLock(\.lowest) }
    /// Whole lists that have come since `mark`.
    var lists: Int { state.withLock(\.lists) }
    var nodes: [String] { inventory.cluster.nodes.keys.sorted() }
    var pods: Int { inventory.cluster.pods.count }
    var isReady: Bool { inventory.isReady }
    var isAvailable: Bool { state.withLock { $0.availability.last == .available } }
    /// What it was said to be unavailable for since `mark`.
    var reasons: [String] {
        state.withLock(\.availability).compactMap { if case .unavailable(let reason) = $0 { reason } else { nil } }
    }
    var unavailability: String? {
        for case .unavailable(let reason) in state.withLock(\.availability) { return reason }
        return nil
    }
}

/// Resources of the tests.
enum Make {
    static func resource(
        _ kind: ResourceKind, _ name: String, namespace: String = "", annotations: [String: String] = [:],
        _ fields: KeyValuePairs<String, ManifestValue> = [:]
    ) -> Manifest {
        let key = ResourceKey(kind, name, namespace: namespace)
        var metadata = ManifestValue.object(["name": .string(name)])
        if !key.namespace.isEmpty { metadata["namespace"] = .string(key.namespace) }
        for (name, value) in annotations { metadata[["annotations", name]] = .string(value) }
        var content = ManifestValue.object([
            "apiVersion": .string(kind.apiVersion), "kind": .string(kind.rawValue), "metadata": metadata,
        ])
        for (name, value) in fields { content[name] = value }
        return Manifest(key: key, content: content)
    }

    static func node(_ name: String, _ address: String = "10.0.0.1", annotations: [String: String] = [:]) -> Manifest {
        resource(
            .node, name, annotations: annotations,
            ["status": .object(["addresses": .array([.object(["type": "InternalIP", "address": .string(address)])])])])
    }

    static func pod(_ name: String, node: String, _ address: String) -> Manifest {
        resource(
            .pod, name,
            [
                "spec": .object([
                    "nodeName": .string(node),
                    "containers": .array([.object(["name": "main", "image": "registry.invalid/none"])]),
                ]),
                "status": .object([
                    "phase": "Running", "podIP": .string(address),
                    "podIPs": .array([.object(["ip": .string(address)])]),
                ]),
            ])
    }

    static func pool(_ name: String, _ cidr: String) -> Manifest {
        resource(.ipPool, name, ["spec": .object(["cidr": .string(cidr)])])
    }

    static func felix(_ enabled: Bool) -> Manifest {
        resource(.felixConfiguration, "default", ["spec": .object(["wireguardEnabled": .bool(enabled)])])
    }
}

extension Datastore {
    func put(_ manifests: Manifest...) async throws { for manifest in manifests { try await put(manifest) } }
    func put(_ manifest: Manifest) async throws { try await update(manifest.key) { _ in manifest.content } }
    func delete(_ kind: ResourceKind, _ name: String) async throws {
        try await update(ResourceKey(kind, name)) { _ in nil }
    }
}
