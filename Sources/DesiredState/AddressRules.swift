// SPDX-License-Identifier: Apache-2.0

public import Model

/// Which prefixes pods can have at all, whoever claims them.
public struct AddressRules: Sendable, Hashable {
    private var pools: [CIDR]
    /// Nodes' own addresses, in order.
    private var nodeAddresses: [IPAddress]
    private var nodeAddressSet: Set<IPAddress>

    public init(_ cluster: ClusterState) {
        pools = cluster.pools.values.map(\.cidr).sorted()
        nodeAddressSet = Set(cluster.nodes.values.lazy.flatMap(\.addresses.values))
        nodeAddresses = nodeAddressSet.sorted()
    }

    /// What is wrong with a prefix, and the remedy; nil: nothing.
    public func refusal(of cidr: CIDR) -> (message: String, remedy: String)? {
        let address = cidr.address
        if cidr.prefixLength == 0 || address.isLoopback || address.isMulticast || address.isUnspecified
            || address.isLinkLocal || Self.reserved.contains(where: cidr.contains)
        {
            return ("is no prefix that pods can have, and is ignored", "use a prefix of one of the IP pools")
        }
        if let node = firstNodeAddress(in: cidr) {
            return (
                "covers a node's own address \(node), and is ignored", "use a prefix outside the nodes' network"
            )
        }
        if !pools.isEmpty, !pools.contains(where: { $0.contains(cidr) }) {
            return ("is outside every IPPool, and is ignored", "make an IPPool that covers it, or remove it")
        }
        return nil
    }

    /// The same of an address that a node says is its own, and its tunnel's. `sharesPools`: nodes and pods have addresses of
    /// the same networks, as in a cloud's.
    public func refusal(ofHost address: IPAddress, sharesPools: Bool) -> (message: String, remedy: String)? {
        if address.isLoopback || address.isMulticast || address.isUnspecified || address.isLinkLocal {
            return ("is no address that a node can have, and is ignored", "let the node's agent write its own")
        }
        if !sharesPools, pools.contains(where: { $0.contains(address) }) {
            return ("is an IP pool's, and is ignored as a node's own", "use a pool outside the nodes' network")
        }
        return nil
    }

    /// What a shorter prefix must not cover: loopback, link-local and multicast (RFC 6890, RFC 5771, RFC 4291).
    private static let reserved = ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8"]
        .compactMap { CIDR($0) }

    private func firstNodeAddress(in cidr: CIDR) -> IPAddress? {
        if cidr.isHost { return nodeAddressSet.contains(cidr.address) ? cidr.address : nil }
        var (low, high) = (0, nodeAddresses.count)
        while low < high {
            let middle = (low + high) / 2
            if nodeAddresses[middle] < cidr.address { low = middle + 1 } else { high = middle }
        }
        guard low < nodeAddresses.count, cidr.contains(nodeAddresses[low]) else { return nil }
        return nodeAddresses[low]
    }
}
