// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import Addresses

/// A policy routing rule (ip-rule(8)), as far as marks and tables go.
public struct RoutingRule: Sendable, Hashable, Comparable {
    public var family: AddressFamily
    public var priority: UInt32
    /// That is looked up; 0 where the rule does something else.
    public var table: UInt32
    public var mark: UInt32
    public var mask: UInt32
    /// It is for packets that do not fit.
    public var isInverted: Bool
    /// Who made it: `RTPROT_…`; 0 where the kernel does not say.
    public var origin: UInt8
    /// It asks for more: a source, a destination, a device, a protocol; or does more than look up.
    public var hasMore = false

    public init(
        family: AddressFamily, priority: UInt32, table: UInt32, mark: UInt32, mask: UInt32, isInverted: Bool = false,
        origin: UInt8 = 4
    ) {
        self.family = family
        self.priority = priority
        self.table = table
        self.mark = mark
        self.mask = mask
        self.isInverted = isInverted
        self.origin = origin
    }

    /// In the order in which they are asked.
    public static func < (a: Self, b: Self) -> Bool {
        (a.family, a.priority, a.table, a.mark) < (b.family, b.priority, b.table, b.mark)
    }
}

extension RouteSession {
    /// Policy routing rules of a family, by priority. A kernel without IPv6 has none of it.
    public func rules(_ family: AddressFamily) throws(NetlinkError) -> [RoutingRule] {
        var header = fib_rule_hdr()
        header.family = family.socketFamily
        do {
            return try session.request("list \(family) rules", type: RTM_GETRULE, dump: true, NetlinkPayload(header))
                .compactMap { Self.rule($0, family) }
                .sorted { $0.priority < $1.priority }
        } catch {
            if family == .ipv6, [EAFNOSUPPORT, EOPNOTSUPP].contains(error.errno) { return [] }
            throw error
        }
    }

    static func rule(_ message: NetlinkMessage, _ family: AddressFamily) -> RoutingRule? {
        guard Int(message.type) == RTM_NEWRULE, let (header, attributes) = message.parse(fib_rule_hdr.self),
            header.family == family.socketFamily
        else { return nil }
        var rule = RoutingRule(
            family: family, priority: 0, table: UInt32(header.table), mark: 0, mask: 0,
            isInverted: header.flags & UInt32(FIB_RULE_INVERT) != 0, origin: 0)
        rule.hasMore =
            header.action != UInt8(FR_ACT_TO_TBL) || header.src_len != 0 || header.dst_len != 0 || header.tos != 0
        for attribute in attributes {
            switch attribute.type {
            case Int(FRA_PRIORITY): rule.priority = attribute.integer() ?? 0
            case Int(FRA_TABLE): rule.table = attribute.integer() ?? rule.table
            case Int(FRA_FWMARK): rule.mark = attribute.integer() ?? 0
            case Int(FRA_FWMASK): rule.mask = attribute.integer() ?? 0
            case Int(FRA_PROTOCOL): rule.origin = attribute.integer() ?? 0
            case Int(FRA_IIFNAME), Int(FRA_OIFNAME), Int(FRA_SRC), Int(FRA_DST), Int(FRA_UID_RANGE),
                Int(FRA_IP_PROTO), Int(FRA_SPORT_RANGE), Int(FRA_DPORT_RANGE), Int(FRA_TUN_ID), Int(FRA_L3MDEV):
                rule.hasMore = true
            default: break
            }
        }
        return rule
    }

    /// Adds a rule; one that is there already is no error.
    public func addRule(_ rule: RoutingRule) throws(NetlinkError) {
        do {
            try session.acknowledge(
                "add rule \(rule.priority)", type: RTM_NEWRULE, flags: NLM_F_CREATE | NLM_F_EXCL, Self.payload(rule))
        } catch {
            if error.errno != EEXIST { throw error }
        }
    }

    /// Deletes a rule; what is not there is no error.
    public func deleteRule(_ rule: RoutingRule) throws(NetlinkError) {
        do {
            try session.acknowledge("delete rule \(rule.priority)", type: RTM_DELRULE, Self.payload(rule))
        } catch {
            if error.errno != ENOENT { throw error }
        }
    }

    private static func payload(_ rule: RoutingRule) -> NetlinkPayload {
        var header = fib_rule_hdr()
        header.family = rule.family.socketFamily
        header.action = UInt8(FR_ACT_TO_TBL)
        header.table = rule.table < 256 ? UInt8(rule.table) : UInt8(RT_TABLE_UNSPEC.rawValue)
        if rule.isInverted { header.flags = UInt32(FIB_RULE_INVERT) }
        var payload = NetlinkPayload(header)
        payload.attribute(FRA_PRIORITY, value: rule.priority)
        payload.attribute(FRA_TABLE, value: rule.table)
        payload.attribute(FRA_FWMARK, value: rule.mark)
        payload.attribute(FRA_FWMASK, value: rule.mask)
        payload.attribute(FRA_PROTOCOL, value: rule.origin)
        return payload
    }
}
