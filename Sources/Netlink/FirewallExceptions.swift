// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import Addresses

/// A base chain of somebody else's.
public struct ForeignChain: Sendable, Hashable, Comparable, CustomStringConvertible {
    /// `NFPROTO_…`.
    public var family: UInt8
    public var table: String
    public var name: String

    /// `ip filter input`.
    public var description: String { "\(FirewallInspection.familyName(family)) \(table) \(name)" }

    public static func < (a: Self, b: Self) -> Bool { (a.family, a.table, a.name) < (b.family, b.table, b.name) }

    /// Of the address families whose packets pass it.
    public var families: [AddressFamily] {
        switch UInt32(family) {
        case WGP_NFPROTO_IPV4.rawValue: [.ipv4]
        case WGP_NFPROTO_IPV6.rawValue: [.ipv6]
        default: [.ipv4, .ipv6]
        }
    }
}

/// Rules of ours at the top of other people's chains of nf_tables that would drop what must come in: told
/// by their comments, which begin with `wgplane: `.
public struct FirewallExceptions {
    /// A rule of ours.
    struct Placed: Hashable {
        var chain: ForeignChain
        var comment: String
        var handle: UInt64
    }

    static let iptablesTables: Set<String> = ["filter", "nat", "raw", "mangle", "security"]
    static let iptablesChains: Set<String> = ["INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING"]

    public static let commentPrefix = "wgplane: "
    private let session: NetlinkSession

    /// In the calling thread's network namespace.
    public init() throws(NetlinkError) { session = try NetlinkSession(.netfilter) }

    /// Chains of a hook that may drop what comes, of nf_tables and of iptables-nft.
    public static func dropping(_ hook: FirewallHook) throws(NetlinkError) -> [ForeignChain] {
        let number: UInt32 = hook == .input ? 1 : 3
        return FirewallInspection.dropping(try FirewallInspection.chains(), hook: number)
            .map { ForeignChain(family: $0.family, table: $0.table, name: $0.name) }.sorted()
    }

    /// Whether a chain is iptables', which would not understand a rule of another hand.
    public static func isIptables(_ chain: ForeignChain) -> Bool {
        iptablesTables.contains(chain.table) && iptablesChains.contains(chain.name)
            && [WGP_NFPROTO_IPV4, WGP_NFPROTO_IPV6].map { UInt8($0.rawValue) }.contains(chain.family)
    }

    /// Puts rules at the top of chains, and takes away those that are not wanted any more. Returns
    /// whether anything changed.
    @discardableResult
    public func set(_ wanted: [ForeignChain: [FirewallRule]]) throws(NetlinkError) -> Bool {
        let placed = try placed()
        var batch: [NetlinkSession.Request] = []
        for rule in placed where wanted[rule.chain]?.contains(where: { $0.comment == rule.comment }) != true {
            var payload = Self.payload(rule.chain)
            payload.attribute(NFTA_RULE_HANDLE.rawValue, value: rule.handle.bigEndian)
            batch.append(.init(type: FirewallTable.type(NFT_MSG_DELRULE), flags: 0, payload: payload))
        }
        for (chain, rules) in wanted.sorted(by: { $0.key < $1.key }) {
            for rule in rules where !placed.contains(where: { $0.chain == chain && $0.comment == rule.comment }) {
                var payload = Self.payload(chain)
                FirewallTable.encode(rule, &payload)
                batch.append(.init(type: FirewallTable.type(NFT_MSG_NEWRULE), flags: NLM_F_CREATE, payload: payload))
            }
        }
        guard !batch.isEmpty else { return false }
        try session.transaction("set exceptions of the firewall", batch)
        return true
    }

    private static func payload(_ chain: ForeignChain) -> NetlinkPayload {
        var payload = NetlinkPayload(nfgenmsg(nfgen_family: chain.family, version: 0, res_id: 0))
        payload.attribute(NFTA_RULE_TABLE.rawValue, text: chain.table)
        payload.attribute(NFTA_RULE_CHAIN.rawValue, text: chain.name)
        return payload
    }

    /// All rules of ours in other people's chains.
    func placed() throws(NetlinkError) -> [Placed] {
        let messages: [NetlinkMessage]
        do {
            messages = try session.request(
                "list nftables rules", type: FirewallTable.type(NFT_MSG_GETRULE), dump: true,
                NetlinkPayload(nfgenmsg(nfgen_family: 0, version: 0, res_id: 0)))
        } catch {
            if [EOPNOTSUPP, EINVAL, ENOENT, EPROTONOSUPPORT].contains(error.errno) { return [] }
            throw error
        }
        return messages.compactMap { message in
            guard let (header, attributes) = message.parse(nfgenmsg.self) else { return nil }
            var placed = Placed(
                chain: ForeignChain(family: header.nfgen_family, table: "", name: ""), comment: "", handle: 0)
            for attribute in attributes {
                switch UInt32(attribute.type) {
                case NFTA_RULE_TABLE.rawValue: placed.chain.table = attribute.text
                case NFTA_RULE_CHAIN.rawValue: placed.chain.name = attribute.text
                case NFTA_RULE_HANDLE.rawValue:
                    placed.handle = attribute.integer(UInt64.self).map { UInt64(bigEndian: $0) } ?? 0
                case NFTA_RULE_USERDATA.rawValue: placed.comment = FirewallTable.comment(attribute.payload)
                default: break
                }
            }
            // iptables' comments are matches of their own, not these.
            let isOurs =
                placed.comment.hasPrefix(Self.commentPrefix) && placed.chain.table != FirewallInspection.ownTable
            return isOurs ? placed : nil
        }
    }
}
