// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
internal import SystemDescriptors

/// Whether packets pass a firewall on their way through this node.
///
/// What is there is read from nf_tables (which holds what `iptables-nft` writes too) and from
/// legacy iptables. A rule that is not known to be harmless counts as one that filters.
public enum FirewallInspection {
    /// What netfilter does with forwarded packets.
    public struct Findings: Sendable, Hashable {
        /// Each filters, or may: a chain or a rule, in words. Empty: nothing does.
        public var filters: [String] = []
        /// Whether destinations may be rewritten: services.
        public var hasNAT = false
        public init() {}
    }

    /// What is known of one chain.
    struct Chain: Sendable {
        var family: UInt8
        var table: String
        var name: String
        /// Hook number; nil: no base chain.
        var hook: UInt32?
        /// 0 drop, 1 accept.
        var policy: UInt32 = 1
        var type = ""
        var rules: [Rule] = []
        var title: String { "\(FirewallInspection.familyName(family)) \(table) \(name)" }
    }

    /// What is known of one rule.
    struct Rule: Sendable, Hashable {
        /// Devices that it is for by equality; nil: any.
        var device: String?
        /// It can end with drop, or with what nobody here knows; false: with another verdict only.
        var mayDrop = false
        /// Chains that it leads to.
        var jumps: [String] = []
        /// It drops what conntrack calls invalid, and nothing else.
        var isInvalidOnly = false
    }

    /// Reads what is there, in the calling thread's network namespace. `devices`: names of
    /// those that pods' packets pass; a rule for another device is none of theirs. Nil: every device may be.
    public static func inspect(devices: Set<String>?) throws(NetlinkError) -> Findings {
        var findings = Findings()
        let chains = try chains()
        judge(chains, devices: devices, &findings)
        legacy(&findings)
        findings.filters.sort()
        return findings
    }

    /// Legacy iptables' share of it, which costs little where there is none.
    public static func legacy() -> Findings {
        var findings = Findings()
        legacy(&findings)
        return findings
    }

    // MARK: Judgement

    static func judge(_ chains: [Chain], devices: Set<String>?, _ findings: inout Findings) {
        for chain in chains where chain.table != ownTable {
            guard let hook = chain.hook else { continue }
            if chain.type == "nat", !chain.rules.isEmpty { findings.hasNAT = true }
            // Forwarded packets pass prerouting, forward and postrouting, and a device's own hooks.
            let isDevice = UInt32(chain.family) == WGP_NFPROTO_NETDEV.rawValue
            let passed: [UInt32] =
                isDevice
                ? [0, 1]
                : [
                    WGP_NF_INET_PRE_ROUTING.rawValue, WGP_NF_INET_FORWARD.rawValue, WGP_NF_INET_POST_ROUTING.rawValue,
                    WGP_NF_INET_INGRESS.rawValue,
                ]
            guard passed.contains(hook) else { continue }
            if chain.policy == 0 {
                findings.filters.append("\(chain.title) has policy drop")
                continue
            }
            var seen: Set<String> = []
            if let rule = filter(in: chain, chains, devices, &seen) {
                findings.filters.append("\(chain.title)\(rule == chain.name ? "" : " by chain \(rule)") filters")
            }
        }
    }

    /// Name of this product's own table of nf_tables, which is nobody's policy.
    public static let ownTable = "wgplane"

    /// Base chains of a hook that may drop what comes: by policy, or by a rule.
    static func dropping(_ chains: [Chain], hook: UInt32) -> [Chain] {
        chains.filter { chain in
            guard chain.hook == hook, chain.table != ownTable, chain.type == "filter",
                UInt32(chain.family) != WGP_NFPROTO_NETDEV.rawValue
            else { return false }
            var seen: Set<String> = []
            return chain.policy == 0 || filter(in: chain, chains, nil, &seen) != nil
        }
    }

    /// The chain, of those that one leads to, whose rule may drop a pod's packet.
    private static func filter(
        in chain: Chain, _ chains: [Chain], _ devices: Set<String>?, _ seen: inout Set<String>
    ) -> String? {
        guard seen.insert(chain.name).inserted else { return nil }
        for rule in chain.rules {
            if let device = rule.device, let devices, !devices.contains(device) { continue }
            // What conntrack has not seen it calls invalid: packets led around it never come here.
            if rule.mayDrop, !rule.isInvalidOnly { return chain.name }
            for jump in rule.jumps {
                let target = chains.first { $0.name == jump && $0.table == chain.table && $0.family == chain.family }
                if let target, let found = filter(in: target, chains, devices, &seen) { return found }
            }
        }
        return nil
    }

    static func familyName(_ family: UInt8) -> String {
        switch UInt32(family) {
        case WGP_NFPROTO_INET.rawValue: "inet"
        case WGP_NFPROTO_IPV4.rawValue: "ip"
        case WGP_NFPROTO_IPV6.rawValue: "ip6"
        case WGP_NFPROTO_BRIDGE.rawValue: "bridge"
        case WGP_NFPROTO_NETDEV.rawValue: "netdev"
        default: "\(family)"
        }
    }

    // MARK: nf_tables

    static func chains() throws(NetlinkError) -> [Chain] {
        do {
            let session = try NetlinkSession(.netfilter)
            var chains = try dump(session, NFT_MSG_GETCHAIN.rawValue, "list nftables chains").compactMap(chain)
            // Bridged packets, and those at a device alone, are not forwarded by this node.
            chains.removeAll { [WGP_NFPROTO_BRIDGE, WGP_NFPROTO_ARP].map(\.rawValue).contains(UInt32($0.family)) }
            for message in try dump(session, NFT_MSG_GETRULE.rawValue, "list nftables rules") {
                guard let (header, attributes) = message.parse(nfgenmsg.self) else { continue }
                let (table, name, rule) = Self.rule(attributes)
                let index = chains.firstIndex {
                    $0.family == header.nfgen_family && $0.table == table && $0.name == name
                }
                if let index { chains[index].rules.append(rule) }
            }
            return chains
        } catch {
            // No nf_tables in this kernel: nothing there.
            if [EOPNOTSUPP, EINVAL, ENOENT, EPROTONOSUPPORT].contains(error.errno) { return [] }
            throw error
        }
    }

    private static func dump(
        _ session: NetlinkSession, _ message: UInt32, _ what: String
    ) throws(NetlinkError) -> [NetlinkMessage] {
        try session.request(
            what, type: Int32(NFNL_SUBSYS_NFTABLES) << 8 | Int32(message), dump: true,
            NetlinkPayload(nfgenmsg(nfgen_family: 0, version: UInt8(NFNETLINK_V0), res_id: 0)))
    }

    static func chain(_ message: NetlinkMessage) -> Chain? {
        guard let (header, attributes) = message.parse(nfgenmsg.self) else { return nil }
        var chain = Chain(family: header.nfgen_family, table: "", name: "")
        for attribute in attributes {
            switch UInt32(attribute.type) {
            case NFTA_CHAIN_TABLE.rawValue: chain.table = attribute.text
            case NFTA_CHAIN_NAME.rawValue: chain.name = attribute.text
            case NFTA_CHAIN_TYPE.rawValue: chain.type = attribute.text
            case NFTA_CHAIN_POLICY.rawValue: chain.policy = bigEndian(attribute) ?? 1
            case NFTA_CHAIN_HOOK.rawValue:
                chain.hook = attribute.nested.first { UInt32($0.type) == NFTA_HOOK_HOOKNUM.rawValue }
                    .flatMap(bigEndian)
            default: break
            }
        }
        return chain
    }

    private static func bigEndian(_ attribute: NetlinkAttribute) -> UInt32? {
        attribute.integer(UInt32.self).map { UInt32(bigEndian: $0) }
    }

    static func rule(_ attributes: NetlinkAttributes) -> (table: String, chain: String, rule: Rule) {
        var table = ""
        var chain = ""
        var rule = Rule()
        for attribute in attributes {
            switch UInt32(attribute.type) {
            case NFTA_RULE_TABLE.rawValue: table = attribute.text
            case NFTA_RULE_CHAIN.rawValue: chain = attribute.text
            case NFTA_RULE_EXPRESSIONS.rawValue: rule = Self.rule(expressions: attribute.nested)
            default: break
            }
        }
        return (table, chain, rule)
    }

    /// Expressions that look, count or mark, and let the packet be.
    private static let harmless: Set<String> = [
        "meta", "cmp", "payload", "counter", "ct", "bitwise", "lookup", "range", "fib", "rt", "socket", "osf",
        "log", "limit", "quota", "connlimit", "numgen", "hash", "byteorder", "exthdr", "last", "dynset", "objref",
        "masq", "nat", "redir", "notrack", "flow_offload", "inner", "xfrm", "dup",
    ]

    private static func rule(expressions: NetlinkAttributes) -> Rule {
        var rule = Rule()
        var loadsDevice = false
        var loadsState = false
        for element in expressions {
            var name = ""
            var data: NetlinkAttributes?
            for part in element.nested {
                if UInt32(part.type) == NFTA_EXPR_NAME.rawValue { name = part.text }
                if UInt32(part.type) == NFTA_EXPR_DATA.rawValue { data = part.nested }
            }
            guard let data else { continue }
            switch name {
            case "lookup":
                // Into the verdict register: a map of verdicts, of which any may be a drop.
                if data.first(where: { UInt32($0.type) == NFTA_LOOKUP_DREG.rawValue }).flatMap(bigEndian) == 0 {
                    rule.mayDrop = true
                }
                loadsState = false
            case "meta":
                loadsState = false
                let key = data.first { UInt32($0.type) == NFTA_META_KEY.rawValue }.flatMap(bigEndian)
                loadsDevice = key == NFT_META_IIFNAME.rawValue || key == NFT_META_OIFNAME.rawValue
            case "ct":
                let key = data.first { UInt32($0.type) == NFTA_CT_KEY.rawValue }.flatMap(bigEndian)
                loadsState = key == NFT_CT_STATE.rawValue
            case "bitwise":
                // State & invalid: the mask's first word is NF_CT_STATE_INVALID_BIT.
                let mask = data.first { UInt32($0.type) == NFTA_BITWISE_MASK.rawValue }
                if loadsState, Self.word(mask) == 1 { rule.isInvalidOnly = true }
            case "cmp":
                // "State & invalid", and not 0: other comparisons say something else.
                if loadsState,
                    data.first(where: { UInt32($0.type) == NFTA_CMP_OP.rawValue }).flatMap(bigEndian)
                        != NFT_CMP_NEQ.rawValue
                {
                    rule.isInvalidOnly = false
                }
                guard loadsDevice else { break }
                let isEqual =
                    data.first { UInt32($0.type) == NFTA_CMP_OP.rawValue }.flatMap(bigEndian) == NFT_CMP_EQ.rawValue
                let value = data.first { UInt32($0.type) == NFTA_CMP_DATA.rawValue }
                let text = value?.nested.first { UInt32($0.type) == NFTA_DATA_VALUE.rawValue }
                // A name of all its bytes; a shorter comparison is one of beginnings.
                if isEqual, let text, text.payload.contains(0) { rule.device = text.text }
                loadsDevice = false
            case "payload", "fib", "rt", "socket", "exthdr", "numgen", "hash":
                loadsDevice = false
                loadsState = false
            case "immediate": verdict(data, &rule)
            case "match", "target": compatible(name, data, &rule)
            default: if !harmless.contains(name) { rule.mayDrop = true }
            }
        }
        return rule
    }

    private static func word(_ attribute: NetlinkAttribute?) -> UInt32? {
        attribute?.nested.first { UInt32($0.type) == NFTA_DATA_VALUE.rawValue }?.integer(UInt32.self)
    }

    private static func verdict(_ data: NetlinkAttributes, _ rule: inout Rule) {
        guard let content = data.first(where: { UInt32($0.type) == NFTA_IMMEDIATE_DATA.rawValue }),
            let verdict = content.nested.first(where: { UInt32($0.type) == NFTA_DATA_VERDICT.rawValue })
        else { return }
        var code: UInt32 = 1
        var target = ""
        for part in verdict.nested {
            if UInt32(part.type) == NFTA_VERDICT_CODE.rawValue { code = bigEndian(part) ?? 1 }
            if UInt32(part.type) == NFTA_VERDICT_CHAIN.rawValue { target = part.text }
        }
        switch Int32(bitPattern: code) {
        case NFT_JUMP.rawValue, NFT_GOTO.rawValue: rule.jumps.append(target)
        case 1, NFT_CONTINUE.rawValue, NFT_BREAK.rawValue, NFT_RETURN.rawValue: break
        default: rule.mayDrop = true  // drop, queue, stolen
        }
    }

    /// Matches and targets of iptables-nft that nf_tables has no expression for.
    private static func compatible(_ kind: String, _ data: NetlinkAttributes, _ rule: inout Rule) {
        let name = data.first { UInt32($0.type) == NFTA_TARGET_NAME.rawValue }?.text ?? ""
        guard kind == "target" else {
            let information = data.first { UInt32($0.type) == NFTA_MATCH_INFO.rawValue }?.payload ?? []
            if name == "conntrack", isInvalidState(information) { rule.isInvalidOnly = true }
            return
        }
        let letsBe: Set<String> = [
            "MARK", "CONNMARK", "LOG", "NFLOG", "MASQUERADE", "DNAT", "SNAT", "REDIRECT", "TCPMSS", "CT", "CHECKSUM",
            "NOTRACK", "DSCP", "TOS", "CLASSIFY", "SET", "ACCEPT", "RETURN",
        ]
        if !letsBe.contains(name) { rule.mayDrop = true }
    }

    /// `--ctstate INVALID` and nothing else, as kube-proxy writes it: `struct xt_conntrack_mtinfo3` of
    /// `<linux/netfilter/xt_conntrack.h>`, whose match_flags, invert_flags and state_mask are at 146.
    private static func isInvalidState(_ information: ArraySlice<UInt8>) -> Bool {
        func word(_ offset: Int) -> UInt16? { information.dropFirst(offset).value(UInt16.self) }
        return word(146) == 1 && word(148) == 0 && word(150) == 1
    }

    // MARK: Legacy iptables

    /// Legacy tables are there when somebody has used them; what is in them only a privileged
    /// library reads well, so each table that can filter counts.
    private static func legacy(_ findings: inout Findings) {
        for (file, tool) in [("ip_tables_names", "iptables"), ("ip6_tables_names", "ip6tables")] {
            guard let bytes = try? readFile("/proc/net/\(file)") else { continue }
            for table in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
                if table == "nat" {
                    findings.hasNAT = true
                } else if LegacyTable(String(table), isIPv6: tool == "ip6tables")?.forwardRules() == 0 {
                    continue
                } else {
                    findings.filters.append("legacy \(tool) table \(table) has rules for forwarded packets")
                }
            }
        }
    }
}
