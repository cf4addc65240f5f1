// SPDX-License-Identifier: Apache-2.0

public import Model

/// Who owns which prefix: a fixed rule, the same on every node and for every order of arrival.
///
/// A prefix that two nodes claim goes to the one with a confirmed BlockAffinity,
/// else to the first by name; blocks that overlap likewise. Single addresses may
/// stand inside another node's block (Calico's borrowed addresses): the longest prefix wins.
public struct Ownership: Sendable {
    /// Node by prefix.
    public private(set) var owners: [CIDR: String] = [:]
    public private(set) var problems: [Problem] = []

    private struct Claim {
        var cidr: CIDR
        var node: String
        var resource: String
        var field: String
        var isConfirmed: Bool
    }

    public init(_ cluster: ClusterState, source: RouteSource) {
        var claims: [Claim] = []
        switch source {
        case .calicoIPAM: claims = Self.calicoClaims(cluster)
        case .podCIDRs:
            for node in cluster.nodes.values {
                for cidr in node.podCIDRs {
                    claims.append(
                        Claim(
                            cidr: cidr, node: node.name, resource: "Node/\(node.name)", field: "spec.podCIDRs",
                            isConfirmed: false))
                }
            }
        case .workloadIPs:
            for pod in cluster.pods.values where !pod.isHostNetwork && !pod.isFinished && !pod.node.isEmpty {
                for address in pod.addresses {
                    claims.append(
                        Claim(
                            cidr: CIDR(host: address), node: pod.node, resource: "Pod/\(pod.description)",
                            field: "status.podIPs", isConfirmed: false))
                }
            }
        }
        for node in cluster.nodes.values {
            for address in node.interfaceAddresses.values where node.publicKeys[address.family] != nil {
                guard node.addresses[address.family] != address else { continue }
                claims.append(
                    Claim(
                        cidr: CIDR(host: address), node: node.name, resource: "Node/\(node.name)",
                        field: "metadata.annotations[\(NodeAnnotation.interfaceAddress(address.family))]",
                        isConfirmed: false))
            }
        }
        decide(claims, cluster)
    }

    private static func calicoClaims(_ cluster: ClusterState) -> [Claim] {
        var claims: [Claim] = []
        for block in cluster.blocks.values {
            let resource = "IPAMBlock/\(block.name)"
            if let node = block.affinity {
                let confirmed = cluster.affinities.values.contains {
                    $0.cidr == block.cidr && $0.node == node && $0.isConfirmed
                }
                claims.append(
                    Claim(
                        cidr: block.cidr, node: node, resource: resource, field: "spec.affinity",
                        isConfirmed: confirmed))
            }
            for (node, addresses) in block.borrowed {
                for address in addresses {
                    claims.append(
                        Claim(
                            cidr: CIDR(host: address), node: node, resource: resource, field: "spec.attributes",
                            isConfirmed: false))
                }
            }
        }
        return claims
    }

    private mutating func decide(_ claims: [Claim], _ cluster: ClusterState) {
        let sorted = claims.sorted {
            ($0.isConfirmed ? 0 : 1, $0.node, $0.cidr, $0.resource)
                < ($1.isConfirmed ? 0 : 1, $1.node, $1.cidr, $1.resource)
        }
        let pools = cluster.pools.values.map(\.cidr)
        let nodeAddresses = cluster.nodes.values.flatMap(\.addresses.values)
        var blocks: [Claim] = []
        for claim in sorted {
            func refuse(_ message: String, _ remedy: String) {
                problems.append(
                    Problem(
                        resource: claim.resource, field: claim.field, value: claim.cidr.description,
                        message: message, remedy: remedy))
            }
            if claim.cidr.prefixLength == 0 || claim.cidr.address.isLoopback || claim.cidr.address.isMulticast
                || claim.cidr.address.isUnspecified || claim.cidr.address.isLinkLocal
            {
                refuse("is no prefix that pods can have, and is ignored", "use a prefix of one of the IP pools")
                continue
            }
            if let address = nodeAddresses.filter({ claim.cidr.contains($0) }).min() {
                refuse(
                    "covers a node's own address \(address), and is ignored",
                    "use a prefix outside the nodes' network")
                continue
            }
            if !pools.isEmpty, !pools.contains(where: { $0.contains(claim.cidr) }) {
                refuse("is outside every IPPool, and is ignored", "make an IPPool that covers it, or remove it")
                continue
            }
            if let owner = owners[claim.cidr] {
                if owner != claim.node {
                    refuse(
                        "of node \(claim.node) belongs to node \(owner) already, and is ignored",
                        "release it on one of the two nodes")
                }
                continue
            }
            if !claim.cidr.isHost {
                if let other = blocks.first(where: { $0.cidr.overlaps(claim.cidr) && $0.node != claim.node }) {
                    refuse(
                        "of node \(claim.node) overlaps \(other.cidr) of node \(other.node) (\(other.resource)), and is ignored",
                        "give the nodes blocks that do not overlap")
                    continue
                }
                blocks.append(claim)
            }
            owners[claim.cidr] = claim.node
        }
    }
}
