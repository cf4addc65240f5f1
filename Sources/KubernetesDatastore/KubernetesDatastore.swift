// SPDX-License-Identifier: Apache-2.0

public import Datastore
internal import Foundation
public import Logging
public import Model
internal import NIOHTTP1
internal import OrderedCollections

/// Resources of a Kubernetes cluster, by its API server.
///
/// Nodes, pods and the kinds of `crd.projectcalico.org/v1` and `wgplane.io/v1`, of which each is as good as empty
/// where its CustomResourceDefinition is not there.
public struct KubernetesDatastore: Datastore {
    public let location: String
    public var exposure: String? { client.access.exposure }
    private let client: KubernetesClient
    private let logger: Logger
    private let pageSize: Int
    private let absentPeriod: Duration

    /// - Parameters:
    ///   - idle: silence after which a connection is taken for dead.
    ///   - pageSize: resources asked for at once.
    ///   - absentPeriod: how often a kind is asked for whose CustomResourceDefinition is not there.
    public init(
        _ access: KubernetesAccess, idle: Duration = .seconds(90), pageSize: Int = 500,
        absentPeriod: Duration = .seconds(60), logger: Logger
    ) {
        location = "kubernetes:\(access.server)"
        var timeOuts = KubernetesClient.TimeOuts()
        timeOuts.idle = idle
        timeOuts.request = min(timeOuts.request, idle)
        client = KubernetesClient(access, timeOuts: timeOuts, logger: logger)
        self.logger = logger
        self.pageSize = pageSize
        self.absentPeriod = absentPeriod
    }

    public func close() async { await client.close() }

    // MARK: Reading

    public func read(_ kinds: Set<ResourceKind>) async throws -> Snapshot {
        var snapshot = Snapshot()
        for kind in kinds.sorted() {
            do {
                try await read(kind, into: &snapshot)
            } catch let error as KubernetesError where error.code == 404 && kind.isCustom {
                continue
            } catch {
                throw failure(error)
            }
        }
        return snapshot
    }

    private func read(_ kind: ResourceKind, into snapshot: inout Snapshot) async throws {
        var token: String?
        repeat {
            var request = KubernetesClient.Request(verb: "list", target: kind.plural, path: kind.listPath)
            request.query = [(name: "limit", value: "\(pageSize)")]
            if let token { request.query.append((name: "continue", value: token)) }
            let bytes = try await client.send(request)
            let page = try JSONDecoder().decode(ListPage.self, from: Data(bytes))
            for item in page.items ?? [] {
                let manifest = try Manifest(item.value.named(kind), origin: kind.rawValue)
                snapshot.manifests[manifest.key] = manifest
            }
            token = page.metadata.continue.flatMap { $0.isEmpty ? nil : $0 }
        } while token != nil
    }

    private func failure(_ error: any Error, _ key: ResourceKey? = nil) -> DatastoreError {
        let place = key.map { "\(location)/\($0)" } ?? location
        switch error {
        case let error as DatastoreError: return error
        case let error as AccessError:
            return DatastoreError(location: place, message: error.message, remedy: error.remedy)
        case let error as KubernetesError:
            let remedy =
                switch error.code {
                case 401: "check the token or client certificate"
                case 403: "grant the verb \(error.verb) on \(error.target); see the ClusterRole in scripts/deploy"
                case 404: "create it, or install its CustomResourceDefinition; see scripts/deploy"
                case 409: "somebody else changes it too; try again"
                case 422: "mend the field that the server names"
                default: "try again; see the API server's log"
                }
            return DatastoreError(location: place, message: "\(error)", remedy: remedy)
        default:
            return DatastoreError(
                location: place, message: "the API server does not answer (\(error))",
                remedy: "is it up, and are address and certificates right?")
        }
    }

    // MARK: Writing

    private static let attempts = 8

    @discardableResult
    public func update(
        _ key: ResourceKey, _ change: @Sendable (ManifestValue?) throws -> ManifestValue?
    ) async throws -> ManifestValue? {
        var backoff = Backoff(first: .milliseconds(20), limit: .seconds(1))
        for attempt in 1... {
            let current: ManifestValue?
            do {
                current = try await get(key)
            } catch {
                throw failure(error, key)
            }
            let wanted = try change(current)
            do {
                return try await store(key, current, wanted)
            } catch let error as KubernetesError where error.code == 409 && attempt < Self.attempts {
                // Somebody was faster.
                try await Task.sleep(for: backoff.next(atLeast: error.retryAfter))
            } catch {
                throw failure(error, key)
            }
        }
        return nil
    }

    private func get(_ key: ResourceKey) async throws -> ManifestValue? {
        do {
            let request = KubernetesClient.Request(verb: "get", target: key.kind.plural, path: key.path)
            return try JSONDecoder().decode(ManifestValue.self, from: Data(try await client.send(request)))
        } catch let error as KubernetesError where error.code == 404 {
            return nil
        }
    }

    private func store(
        _ key: ResourceKey, _ current: ManifestValue?, _ wanted: ManifestValue?
    ) async throws -> ManifestValue? {
        let target = key.kind.plural
        guard let current else {
            guard let wanted else { return nil }
            return try await create(key, wanted)
        }
        guard let wanted else {
            var request = KubernetesClient.Request(verb: "delete", target: target, method: .DELETE, path: key.path)
            request.body = try Self.json(
                .object([
                    "apiVersion": "v1", "kind": "DeleteOptions",
                    "preconditions": .object(["resourceVersion": current.resourceVersion.map { .string($0) } ?? .null]),
                ]))
            _ = try await client.send(request)
            return nil
        }
        guard let patch = current.mergePatch(to: wanted) else { return current }
        if key.kind == .ipamBlock, case .object(let fields) = patch, fields.keys.elementsEqual(["spec"]) {
            return try await replaceSpec(key, current, wanted)
        }
        var result = current
        for (path, part) in Self.parts(key, patch) {
            var part = part
            // Refused when somebody has changed it meanwhile.
            part[["metadata", "resourceVersion"]] = result.resourceVersion.map { .string($0) }
            var request = KubernetesClient.Request(
                verb: "patch", target: path.hasSuffix("/status") ? "\(target)/status" : target, method: .PATCH,
                path: path)
            request.body = try Self.json(part)
            request.contentType = "application/merge-patch+json"
            result = try JSONDecoder().decode(ManifestValue.self, from: Data(try await client.send(request)))
        }
        return result
    }

    /// By a JSON patch (RFC 6902): free addresses of a block are nulls of an array, which merge patches of older API
    /// servers lose. The version makes it a conflict when somebody was faster.
    private func replaceSpec(
        _ key: ResourceKey, _ current: ManifestValue, _ wanted: ManifestValue
    ) async throws -> ManifestValue {
        func replace(_ path: String, _ value: ManifestValue?) -> ManifestValue {
            .object(["op": "replace", "path": .string(path), "value": value ?? .null])
        }
        var request = KubernetesClient.Request(
            verb: "patch", target: key.kind.plural, method: .PATCH, path: key.path)
        request.body = try Self.json(
            .array([
                replace("/metadata/resourceVersion", current.resourceVersion.map { .string($0) }),
                replace("/spec", wanted["spec"]),
            ]))
        request.contentType = "application/json-patch+json"
        return try JSONDecoder().decode(ManifestValue.self, from: Data(try await client.send(request)))
    }

    /// Server-side apply: fields of other managers stay. A status is merged: it is nobody's who applies, and two
    /// addresses of a Node with one type cannot be applied (kubernetes#107205).
    public func apply(_ manifest: Manifest) async throws {
        let key = manifest.key
        var main = manifest.content.withoutServerFields
        if key.kind == .pod { main[["metadata", "namespace"]] = .string(key.namespace) }
        let status = key.kind.isCustom ? nil : main["status"]
        if status != nil { main["status"] = nil }
        do {
            var request = KubernetesClient.Request(
                verb: "patch", target: key.kind.plural, method: .PATCH, path: key.path)
            request.query = [(name: "fieldManager", value: "wgplane-cli"), (name: "force", value: "true")]
            request.body = try Self.json(main)
            request.contentType = "application/apply-patch+yaml"
            _ = try await client.send(request)
            if let status { _ = try await mergeStatus(key, status) }
        } catch {
            throw failure(error, key)
        }
    }

    private func create(_ key: ResourceKey, _ wanted: ManifestValue) async throws -> ManifestValue {
        var content = wanted
        content[["metadata", "resourceVersion"]] = nil
        content[["metadata", "uid"]] = nil
        var request = KubernetesClient.Request(
            verb: "create", target: key.kind.plural, method: .POST, path: key.folderPath)
        request.body = try Self.json(content)
        let made = try JSONDecoder().decode(ManifestValue.self, from: Data(try await client.send(request)))
        // Of Nodes and Pods the server takes the status apart.
        guard !key.kind.isCustom, let status = wanted["status"] else { return made }
        return try await mergeStatus(key, status)
    }

    private func mergeStatus(_ key: ResourceKey, _ status: ManifestValue) async throws -> ManifestValue {
        var request = KubernetesClient.Request(
            verb: "patch", target: "\(key.kind.plural)/status", method: .PATCH, path: key.path + "/status")
        request.body = try Self.json(.object(["status": status]))
        request.contentType = "application/merge-patch+json"
        return try JSONDecoder().decode(ManifestValue.self, from: Data(try await client.send(request)))
    }

    /// Which subresource takes which part of a change. A Node's annotations go with its status, for which the right to
    /// patch `nodes/status` is enough.
    private static func parts(_ key: ResourceKey, _ patch: ManifestValue) -> [(path: String, patch: ManifestValue)] {
        guard !key.kind.isCustom else { return [(key.path, patch)] }
        var status = ManifestValue.object([:])
        var rest = patch
        if let value = patch["status"] {
            status["status"] = value
            rest["status"] = nil
        }
        if key.kind == .node, let annotations = patch[["metadata", "annotations"]] {
            status[["metadata", "annotations"]] = annotations
            rest[["metadata", "annotations"]] = nil
            if rest["metadata"] == .object([:]) { rest["metadata"] = nil }
        }
        return [(key.path, rest), (key.path + "/status", status)].filter { $0.1 != .object([:]) }
    }

    private static func json(_ value: ManifestValue) throws -> [UInt8] {
        let encoder = JSONEncoder()
        // An apply is read as YAML, by a reader that does not know "\\/".
        encoder.outputFormatting = .withoutEscapingSlashes
        return Array(try encoder.encode(value))
    }

    // MARK: Following

    public func follow(_ feed: ChangeFeed) async {
        let health = Health(feed)
        await withTaskGroup(of: Void.self) { group in
            for kind in ResourceKind.allCases where kind != .pod {
                group.addTask { await watcher(kind, nil, feed, health).run() }
            }
            group.addTask {
                await feed.withScope { await watcher(.pod, $0 == .own ? feed.node : nil, feed, health).run() }
            }
        }
    }

    private func watcher(_ kind: ResourceKind, _ node: String?, _ feed: ChangeFeed, _ health: Health) -> KindWatcher {
        KindWatcher(
            kind: kind, podsOf: node, client: client, feed: feed, health: health, logger: logger, pageSize: pageSize,
            absentPeriod: absentPeriod)
    }
}
