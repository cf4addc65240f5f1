// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc

/// A table of nf_tables of our own, of the family inet: replaced whole in one step
/// (`<linux/netfilter/nf_tables.h>`).
public struct FirewallTable {
    public let name: String
    private let session: NetlinkSession

    /// In the calling thread's network namespace.
    public init(_ name: String) throws(NetlinkError) {
        self.name = name
        session = try NetlinkSession(.netfilter)
    }

    /// Makes the table these chains and nothing else, between one packet and the next.
    public func replace(_ chains: FirewallChains) throws(NetlinkError) {
        var batch = [
            table(NFT_MSG_NEWTABLE, NLM_F_CREATE), table(NFT_MSG_DELTABLE), table(NFT_MSG_NEWTABLE, NLM_F_CREATE),
        ]
        for (hook, rules) in chains.sorted(by: { $0.key.rawValue < $1.key.rawValue }) where !rules.isEmpty {
            batch.append(chain(hook))
            for rule in rules { batch.append(self.rule(rule, hook)) }
        }
        try session.transaction("set nftables table \(name)", batch)
    }

    /// Takes the table away; what is not there is no error.
    public func remove() throws(NetlinkError) {
        do {
            try session.transaction("remove nftables table \(name)", [table(NFT_MSG_DELTABLE)])
        } catch {
            if ![ENOENT, EOPNOTSUPP, EINVAL, EPROTONOSUPPORT].contains(error.errno) { throw error }
        }
    }

    /// The comments of the rules that are there, by chain; nil: there is no such table.
    public func present() throws(NetlinkError) -> [String: [String]]? {
        var result: [String: [String]] = [:]
        do {
            for message in try dump(NFT_MSG_GETCHAIN) {
                var (table, chain) = ("", "")
                for attribute in message {
                    if UInt32(attribute.type) == NFTA_CHAIN_TABLE.rawValue { table = attribute.text }
                    if UInt32(attribute.type) == NFTA_CHAIN_NAME.rawValue { chain = attribute.text }
                }
                if table == name { result[chain] = [] }
            }
            guard !result.isEmpty else { return nil }
            for message in try dump(NFT_MSG_GETRULE) {
                var (table, chain, comment) = ("", "", "")
                for attribute in message {
                    switch UInt32(attribute.type) {
                    case NFTA_RULE_TABLE.rawValue: table = attribute.text
                    case NFTA_RULE_CHAIN.rawValue: chain = attribute.text
                    case NFTA_RULE_USERDATA.rawValue: comment = Self.comment(attribute.payload)
                    default: break
                    }
                }
                if table == name { result[chain, default: []].append(comment) }
            }
        } catch {
            if [EOPNOTSUPP, EINVAL, ENOENT, EPROTONOSUPPORT].contains(error.errno) { return nil }
            throw error
        }
        return result
    }

    /// What `present` tells when the chains are in place.
    public static func comments(_ chains: FirewallChains) -> [String: [String]] {
        var result: [String: [String]] = [:]
        for (hook, rules) in chains where !rules.isEmpty { result[hook.rawValue] = rules.map(\.comment) }
        return result
    }

    // MARK: Messages

    private func dump(_ message: nf_tables_msg_types) throws(NetlinkError) -> [NetlinkAttributes] {
        try session.request(
            "list nftables table \(name)", type: Self.type(message), dump: true,
            NetlinkPayload(nfgenmsg(nfgen_family: Self.inet, version: 0, res_id: 0))
        ).compactMap { $0.parse(nfgenmsg.self)?.1 }
    }

    private static let inet = UInt8(WGP_NFPROTO_INET.rawValue)

    static func type(_ message: nf_tables_msg_types) -> UInt16 {
        UInt16(NFNL_SUBSYS_NFTABLES) << 8 | UInt16(message.rawValue)
    }

    private static func payload() -> NetlinkPayload {
        NetlinkPayload(nfgenmsg(nfgen_family: inet, version: 0, res_id: 0))
    }

    private func table(_ message: nf_tables_msg_types, _ flags: Int32 = 0) -> NetlinkSession.Request {
        var payload = Self.payload()
        payload.attribute(NFTA_TABLE_NAME.rawValue, text: name)
        return .init(type: Self.type(message), flags: flags, payload: payload)
    }

    private func chain(_ hook: FirewallHook) -> NetlinkSession.Request {
        // NF_IP_PRI_RAW, _FILTER, _NAT_SRC.
        let (number, priority, type): (UInt32, Int32, String) =
            switch hook {
            case .prerouting: (0, -300, "filter")
            case .input: (1, 0, "filter")
            case .output: (3, 0, "filter")
            case .postrouting: (4, 100, "nat")
            }
        var payload = Self.payload()
        payload.attribute(NFTA_CHAIN_TABLE.rawValue, text: name)
        payload.attribute(NFTA_CHAIN_NAME.rawValue, text: hook.rawValue)
        payload.nested(NFTA_CHAIN_HOOK.rawValue) {
            $0.attribute(NFTA_HOOK_HOOKNUM.rawValue, value: number.bigEndian)
            $0.attribute(NFTA_HOOK_PRIORITY.rawValue, value: priority.bigEndian)
        }
        payload.attribute(NFTA_CHAIN_POLICY.rawValue, value: UInt32(1).bigEndian)
        payload.attribute(NFTA_CHAIN_TYPE.rawValue, text: type)
        return .init(type: Self.type(NFT_MSG_NEWCHAIN), flags: NLM_F_CREATE, payload: payload)
    }

    private func rule(_ rule: FirewallRule, _ hook: FirewallHook) -> NetlinkSession.Request {
        var payload = Self.payload()
        payload.attribute(NFTA_RULE_TABLE.rawValue, text: name)
        payload.attribute(NFTA_RULE_CHAIN.rawValue, text: hook.rawValue)
        Self.encode(rule, &payload)
        return .init(type: Self.type(NFT_MSG_NEWRULE), flags: NLM_F_CREATE | NLM_F_APPEND, payload: payload)
    }

    /// What a rule does, and its comment.
    static func encode(_ rule: FirewallRule, _ payload: inout NetlinkPayload) {
        payload.nested(NFTA_RULE_EXPRESSIONS.rawValue) { list in
            for expression in FirewallExpression.expressions(rule) {
                list.nested(NFTA_LIST_ELEM.rawValue) { element in
                    element.attribute(NFTA_EXPR_NAME.rawValue, text: expression.name)
                    element.attribute(
                        UInt16(NFTA_EXPR_DATA.rawValue) | UInt16(NLA_F_NESTED), bytes: expression.data.bytes)
                }
            }
        }
        payload.attribute(NFTA_RULE_USERDATA.rawValue, bytes: userData(rule.comment))
    }

    /// As nft(8) writes a comment: type 0, length, text with its zero.
    private static func userData(_ comment: String) -> [UInt8] {
        let text = Array(comment.utf8.prefix(120)) + [0]
        return [0, UInt8(text.count)] + text
    }

    static func comment(_ bytes: ArraySlice<UInt8>) -> String {
        guard bytes.count > 2, bytes.first == 0 else { return "" }
        return String(decoding: bytes.dropFirst(2).prefix { $0 != 0 }, as: UTF8.self)
    }
}
