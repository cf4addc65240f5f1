// SPDX-License-Identifier: Apache-2.0

public import Model

/// The cluster's resources, typed, with what is wrong with them.
public struct ClusterState: Sendable {
    public var nodes: [String: NodeResource] = [:]
    public var pods: [PodResource] = []
    public var pools: [IPPoolResource] = []
    public var blocks: [IPAMBlockResource] = []
    public var affinities: [BlockAffinityResource] = []
    public var problems: [Problem] = []

    /// Reads all manifests; a bad one leaves a problem and harms no other.
    public init(_ manifests: [Manifest]) {
        for manifest in manifests.sorted(by: { $0.key < $1.key }) {
            switch manifest.key.kind {
            case .node: nodes[manifest.key.name] = NodeResource(manifest, problems: &problems)
            case .pod: pods.append(PodResource(manifest, problems: &problems))
            case .ipPool: if let pool = IPPoolResource(manifest, problems: &problems) { pools.append(pool) }
            case .ipamBlock: if let block = IPAMBlockResource(manifest, problems: &problems) { blocks.append(block) }
            case .blockAffinity:
                if let affinity = BlockAffinityResource(manifest, problems: &problems) { affinities.append(affinity) }
            case .felixConfiguration, .dataplaneConfiguration: break
            }
        }
    }

    /// Where pods' addresses come from when no setting says.
    public var automaticRouteSource: RouteSource {
        if !blocks.isEmpty { return .calicoIPAM }
        return nodes.values.contains { !$0.podCIDRs.isEmpty } ? .podCIDRs : .workloadIPs
    }
}
