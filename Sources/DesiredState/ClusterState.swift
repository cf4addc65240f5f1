// SPDX-License-Identifier: Apache-2.0

public import Model

/// The cluster's resources, typed, with what is wrong with them.
public struct ClusterState: Sendable {
    public private(set) var nodes: [String: NodeResource] = [:]
    public private(set) var pods = PodTable()
    public private(set) var pools: [String: IPPoolResource] = [:]
    public private(set) var blocks: [String: IPAMBlockResource] = [:]
    public private(set) var affinities: [String: BlockAffinityResource] = [:]
    /// FelixConfigurations and DataplaneConfigurations.
    public private(set) var configurations: [ResourceKey: Manifest] = [:]
    /// Namespaces' names, each once; nodes' are those of their resources.
    private var namespaces: Set<String> = []
    private var problemsByKey: [ResourceKey: [Problem]] = [:]

    public init() {}

    /// Reads all manifests; a bad one leaves a problem and harms no other.
    public init(_ manifests: some Sequence<Manifest>) {
        for manifest in manifests { set(manifest.key, to: ResourceEntry(manifest)) }
    }

    /// By key.
    public var problems: [Problem] {
        problemsByKey.sorted { $0.key < $1.key }.flatMap(\.value)
    }

    func hasProblems(_ key: ResourceKey) -> Bool { problemsByKey[key] != nil }

    public func configurations(of kind: ResourceKind) -> [Manifest] {
        configurations.filter { $0.key.kind == kind }.sorted { $0.key < $1.key }.map(\.value)
    }

    /// Puts a resource in the place of what was there; nil: it is gone.
    public mutating func set(_ key: ResourceKey, to entry: ResourceEntry?) {
        problemsByKey[key] = entry.flatMap { $0.problems.isEmpty ? nil : $0.problems }
        switch key.kind {
        case .node: nodes[key.name] = if case .node(let value)? = entry?.resource { value } else { nil }
        case .pod:
            let pod: PodResource? = if case .pod(let value)? = entry?.resource { value } else { nil }
            setPod(key, to: pod)
        case .ipPool: pools[key.name] = if case .pool(let value)? = entry?.resource { value } else { nil }
        case .ipamBlock: blocks[key.name] = if case .block(let value)? = entry?.resource { value } else { nil }
        case .blockAffinity:
            affinities[key.name] = if case .affinity(let value)? = entry?.resource { value } else { nil }
        case .felixConfiguration, .dataplaneConfiguration:
            configurations[key] = if case .configuration(let value)? = entry?.resource { value } else { nil }
        }
    }

    /// Names that many pods have are kept once.
    private mutating func setPod(_ key: ResourceKey, to pod: PodResource?) {
        guard var pod else { return pods[shared: key] = nil }
        var key = key
        key.namespace = namespaces.insert(key.namespace).memberAfterInsert
        pod.namespace = key.namespace
        pod.name = key.name
        if let node = nodes[pod.node] { pod.node = node.name }
        pods[shared: key] = SharedPod(pod)
    }

    /// What there is of a resource.
    public subscript(key: ResourceKey) -> ResourceEntry? {
        let resource: Resource? =
            switch key.kind {
            case .node: nodes[key.name].map(Resource.node)
            case .pod: pods[key].map(Resource.pod)
            case .ipPool: pools[key.name].map(Resource.pool)
            case .ipamBlock: blocks[key.name].map(Resource.block)
            case .blockAffinity: affinities[key.name].map(Resource.affinity)
            case .felixConfiguration, .dataplaneConfiguration: configurations[key].map(Resource.configuration)
            }
        let problems = problemsByKey[key] ?? []
        return resource == nil && problems.isEmpty ? nil : ResourceEntry(resource: resource, problems: problems)
    }

    /// How many of a kind can be used.
    public func count(of kind: ResourceKind) -> Int {
        switch kind {
        case .node: nodes.count
        case .pod: pods.count
        case .ipPool: pools.count
        case .ipamBlock: blocks.count
        case .blockAffinity: affinities.count
        case .felixConfiguration, .dataplaneConfiguration: configurations.keys.count { $0.kind == kind }
        }
    }

    /// The keys of a kind, of resources that are of no use too.
    public func keys(of kind: ResourceKind) -> Set<ResourceKey> {
        var keys: Set<ResourceKey>
        switch kind {
        case .node: keys = Set(nodes.keys.map { ResourceKey(kind, $0) })
        case .pod: keys = Set(pods.keys)
        case .ipPool: keys = Set(pools.keys.map { ResourceKey(kind, $0) })
        case .ipamBlock: keys = Set(blocks.keys.map { ResourceKey(kind, $0) })
        case .blockAffinity: keys = Set(affinities.keys.map { ResourceKey(kind, $0) })
        case .felixConfiguration, .dataplaneConfiguration: keys = Set(configurations.keys.filter { $0.kind == kind })
        }
        for key in problemsByKey.keys where key.kind == kind { keys.insert(key) }
        return keys
    }

    /// Where pods' addresses come from when no setting says.
    public var automaticRouteSource: RouteSource {
        if !blocks.isEmpty { return .calicoIPAM }
        return nodes.values.contains { !$0.podCIDRs.isEmpty } ? .podCIDRs : .workloadIPs
    }
}
