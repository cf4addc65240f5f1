// SPDX-License-Identifier: Apache-2.0

/// What wgplane keeps of a resource. Indirect: tables of many are mostly room for more.
public indirect enum Resource: Sendable, Hashable, Codable {
    case node(NodeResource)
    case pod(PodResource)
    case pool(IPPoolResource)
    case block(IPAMBlockResource)
    case affinity(BlockAffinityResource)
    /// A FelixConfiguration or DataplaneConfiguration, whole: what its fields mean depends on the node.
    case configuration(Manifest)
}

/// A resource as it was told: read once, when it comes, so that a cluster's state is small.
public struct ResourceEntry: Sendable, Hashable, Codable {
    /// Nil: it is of no use.
    public var resource: Resource?
    public var problems: [Problem]

    public init(resource: Resource?, problems: [Problem] = []) {
        self.resource = resource
        self.problems = problems
    }

    public init(_ manifest: Manifest) {
        var problems: [Problem] = []
        switch manifest.key.kind {
        case .node: resource = .node(NodeResource(manifest, problems: &problems))
        case .pod: resource = .pod(PodResource(manifest, problems: &problems))
        case .ipPool: resource = IPPoolResource(manifest, problems: &problems).map(Resource.pool)
        case .ipamBlock: resource = IPAMBlockResource(manifest, problems: &problems).map(Resource.block)
        case .blockAffinity: resource = BlockAffinityResource(manifest, problems: &problems).map(Resource.affinity)
        case .felixConfiguration, .dataplaneConfiguration: resource = .configuration(manifest)
        }
        self.problems = problems
    }
}

/// Which pods a node's agent is told of.
public enum PodScope: String, Sendable, Hashable, Codable {
    /// Its own.
    case own
    /// All, where routes are made of pods' addresses.
    case all
}

/// What a datastore tells anew.
public struct ResourceChanges: Sendable {
    /// As they are now; nil: gone.
    public var entries: [ResourceKey: ResourceEntry?] = [:]
    /// Kinds that `entries` has all of: what it does not name is gone.
    public var whole: Set<ResourceKind> = []
    /// Which pods were asked for, when those are whole.
    public var podScope = PodScope.all
    /// The node's own resource, whole, when it is among the entries.
    public var ownNode: Manifest?
    /// What is wrong with the datastore's own content, files that cannot be read for example; nil: as before.
    public var problems: [Problem]?
    /// False when something could not be read and nobody knows what it held; nil: as before.
    public var isComplete: Bool?
    /// Whether the datastore answers; nil: as before.
    public var availability: Availability?

    public enum Availability: Sendable, Hashable {
        case available
        /// Why not.
        case unavailable(String)
    }

    public init() {}

    public var isEmpty: Bool {
        entries.isEmpty && whole.isEmpty && problems == nil && isComplete == nil && availability == nil
    }

    /// Notes a resource.
    public mutating func put(_ manifest: Manifest, own node: String) {
        entries[manifest.key] = .some(ResourceEntry(manifest))
        if manifest.key.kind == .node, manifest.key.name == node { ownNode = manifest }
    }

    /// Notes that a resource is gone.
    public mutating func remove(_ key: ResourceKey) { entries[key] = .some(nil) }

    /// Adds what was told later.
    public mutating func merge(_ later: ResourceChanges) {
        if !later.whole.isEmpty {
            if !entries.isEmpty { entries = entries.filter { !later.whole.contains($0.key.kind) } }
            whole.formUnion(later.whole)
            if later.whole.contains(.pod) { podScope = later.podScope }
        }
        if entries.isEmpty { entries = later.entries } else { entries.merge(later.entries) { $1 } }
        ownNode = later.ownNode ?? ownNode
        problems = later.problems ?? problems
        isComplete = later.isComplete ?? isComplete
        availability = later.availability ?? availability
    }
}
