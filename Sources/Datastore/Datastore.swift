// SPDX-License-Identifier: Apache-2.0

public import Model

/// All resources at one moment, and what is wrong with those that cannot be read.
public struct Snapshot: Sendable {
    public var manifests: [ResourceKey: Manifest]
    public var problems: [Problem]
    /// False when something could not be read and nobody knows what it held: then nothing
    /// may be taken away for being absent.
    public var isComplete = true

    public init(manifests: [ResourceKey: Manifest] = [:], problems: [Problem] = []) {
        self.manifests = manifests
        self.problems = problems
    }

    /// The manifests of a kind, by namespace and name.
    public func manifests(of kind: ResourceKind) -> [Manifest] {
        manifests.values.filter { $0.key.kind == kind }.sorted { $0.key < $1.key }
    }
}

/// Where resources live: a folder, etcd, Kubernetes.
public protocol Datastore: Sendable {
    /// For people: `directory:/path`.
    var location: String { get }
    /// Why somebody else on the way could speak for it; nil: nobody can.
    var exposure: String? { get }
    /// The state now, of these kinds.
    func read(_ kinds: Set<ResourceKind>) async throws -> Snapshot
    /// Changes one resource as one step: `change` gets what is there (nil: nothing) and
    /// returns what shall be (nil: delete). It may be called again when somebody else was faster.
    @discardableResult
    func update(
        _ key: ResourceKey, _ change: @Sendable (ManifestValue?) throws -> ManifestValue?
    ) async throws -> ManifestValue?
    /// Makes a resource what a manifest says: fields that others keep beside it stay where the datastore knows whose
    /// they are (Kubernetes), else it is replaced.
    func apply(_ manifest: Manifest) async throws
    /// Tells `feed` the state now and whatever changes, until it is cancelled: each kind whole at first, and again
    /// after a break in which changes may have been missed. An error is told as unavailability, and tried again.
    func follow(_ feed: ChangeFeed) async
    /// Gives connections back. It is not used any more.
    func close() async
}

extension Datastore {
    public var exposure: String? { nil }
    public func read() async throws -> Snapshot { try await read(Set(ResourceKind.allCases)) }
    public func apply(_ manifest: Manifest) async throws {
        try await update(manifest.key) { _ in manifest.content }
    }

    public func close() async {}
}

/// An error of a datastore, with what to do.
public struct DatastoreError: Error, CustomStringConvertible {
    public var location: String
    public var message: String
    public var remedy: String

    public init(location: String, message: String, remedy: String) {
        self.location = location
        self.message = message
        self.remedy = remedy
    }

    public var description: String { "\(location): \(message); \(remedy)" }
}
