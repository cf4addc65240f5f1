// SPDX-License-Identifier: Apache-2.0

public import Model

/// Who owns which prefix: a fixed rule, the same on every node and for every order of arrival.
///
/// A prefix that two nodes claim goes to the one with a confirmed BlockAffinity,
/// else to the first by name; blocks that overlap likewise. Single addresses may
/// stand inside another node's block (Calico's borrowed addresses): the longest prefix wins. Addresses of pods are
/// not among them: see `WorkloadAddresses`.
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
        // Pods' addresses are many, and kept by `WorkloadAddresses`.
        case .workloadIPs: break
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
        var confirmations: [CIDR: Set<String>] = [:]
        for affinity in cluster.affinities.values where affinity.isConfirmed {
            confirmations[affinity.cidr, default: []].insert(affinity.node)
        }
        for block in cluster.blocks.values {
            let resource = "IPAMBlock/\(block.name)"
            if let node = block.affinity {
                let confirmed = confirmations[block.cidr]?.contains(node) == true
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
        let rules = AddressRules(cluster)
        var blocks = AcceptedBlocks(lengths: claims.map(\.cidr.prefixLength))
        for claim in sorted {
            func refuse(_ words: (message: String, remedy: String)) {
                problems.append(
                    Problem(
                        resource: claim.resource, field: claim.field, value: claim.cidr.description,
                        message: words.message, remedy: words.remedy))
            }
            if let words = rules.refusal(of: claim.cidr) {
                refuse(words)
                continue
            }
            if let owner = owners[claim.cidr] {
                if owner != claim.node { refuse(Self.taken(from: claim.node, by: owner)) }
                continue
            }
            if !claim.cidr.isHost {
                if let other = blocks.first(overlapping: claim) {
                    refuse(
                        (
                            "of node \(claim.node) overlaps \(other.cidr) of node \(other.node) "
                                + "(\(other.resource)), and is ignored",
                            "give the nodes blocks that do not overlap"
                        ))
                    continue
                }
                blocks.add(claim)
            }
            owners[claim.cidr] = claim.node
        }
    }

    static func taken(from node: String, by owner: String) -> (message: String, remedy: String) {
        (
            "of node \(node) belongs to node \(owner) already, and is ignored",
            "release it on one of the two nodes"
        )
    }

    /// Blocks that have an owner, found by what they overlap.
    private struct AcceptedBlocks {
        private var blocks: [Claim] = []
        /// Places in `blocks`: of each block, and of all that lie inside a prefix of a length in use.
        private var exact: [CIDR: Int] = [:]
        private var inside: [CIDR: [Int]] = [:]
        private let lengths: [Int]

        init(lengths: some Sequence<Int>) { self.lengths = Set(lengths).sorted() }

        private func wider(_ cidr: CIDR) -> [CIDR] {
            lengths.prefix { $0 < cidr.prefixLength }.compactMap { CIDR(masking: cidr.address, prefixLength: $0) }
        }

        mutating func add(_ claim: Claim) {
            exact[claim.cidr] = blocks.count
            for cidr in wider(claim.cidr) { inside[cidr, default: []].append(blocks.count) }
            blocks.append(claim)
        }

        /// The first accepted one of another node.
        func first(overlapping claim: Claim) -> Claim? {
            var places = inside[claim.cidr] ?? []
            places += wider(claim.cidr).compactMap { exact[$0] }
            return places.sorted().lazy.map { blocks[$0] }.first { $0.node != claim.node }
        }
    }
}
