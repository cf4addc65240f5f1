// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import SystemDescriptors
public import Addresses

/// How a node's firewall is written.
public enum FirewallKind: String, Sendable, Hashable, Codable {
    /// nf_tables, by whatever writes it.
    case tables = "nftables"
    /// iptables-nft: chains of iptables' names in nf_tables.
    case iptablesNFT = "iptables-nft"
    case iptablesLegacy = "iptables-legacy"

    /// Which one the calling thread's network namespace has in use. Legacy iptables counts when it has a
    /// rule, iptables-nft when it has made a chain. Throws where nf_tables does not tell what is there.
    public static func inUse() throws(NetlinkError) -> FirewallKind {
        for family in AddressFamily.allCases {
            for table in legacyTables(family) where LegacyTable(table, isIPv6: family == .ipv6)?.hasRules == true {
                return .iptablesLegacy
            }
        }
        for family in AddressFamily.allCases where try !nftChains(family).isEmpty { return .iptablesNFT }
        return .tables
    }

    /// iptables' chains (`filter INPUT`, `nat POSTROUTING`, …) that are there, by family: asking
    /// iptables for another one would make it. Throws as `inUse` does.
    public func iptablesChains() throws(NetlinkError) -> [AddressFamily: Set<String>] {
        switch self {
        case .tables: return [:]
        case .iptablesNFT: return [.ipv4: try Self.nftChains(.ipv4), .ipv6: try Self.nftChains(.ipv6)]
        // A legacy table has all its chains.
        case .iptablesLegacy:
            return Dictionary(
                uniqueKeysWithValues: AddressFamily.allCases.map { family in
                    (
                        family,
                        Set(
                            Self.legacyTables(family).flatMap { table in
                                FirewallExceptions.iptablesChains.map { "\(table) \($0)" }
                            })
                    )
                })
        }
    }

    /// Whether there may be chains of ours, whose names begin so; of legacy iptables that is not known.
    public func mayHaveChains(prefix: String) -> Bool {
        switch self {
        case .tables: false
        case .iptablesNFT: (try? FirewallInspection.chains())?.contains { $0.name.hasPrefix(prefix) } != false
        case .iptablesLegacy: true
        }
    }

    private static func legacyTables(_ family: AddressFamily) -> [String] {
        let names = (try? readFile("/proc/net/\(family == .ipv4 ? "ip" : "ip6")_tables_names")) ?? []
        return String(decoding: names, as: UTF8.self).split(separator: "\n").map(String.init)
    }

    /// Chains of nf_tables as iptables-nft makes them.
    private static func nftChains(_ family: AddressFamily) throws(NetlinkError) -> Set<String> {
        let number = UInt8((family == .ipv4 ? WGP_NFPROTO_IPV4 : WGP_NFPROTO_IPV6).rawValue)
        return Set(
            try FirewallInspection.chains().filter { chain in
                chain.family == number && FirewallExceptions.iptablesTables.contains(chain.table) && chain.hook != nil
                    && FirewallExceptions.iptablesChains.contains(chain.name)
            }.map { "\($0.table) \($0.name)" })
    }
}
