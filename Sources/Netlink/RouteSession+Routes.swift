// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import Addresses

extension RouteSession {
    // MARK: Routes

    /// Every route of a family: in all tables, or in one. A kernel without IPv6 has none of it.
    public func routes(_ family: AddressFamily, table: UInt32? = nil) throws(NetlinkError) -> [Route] {
        var header = rtmsg()
        header.rtm_family = family.socketFamily
        var payload = NetlinkPayload(header)
        // Kernels that do not know the filter (before 4.20) tell of all.
        if let table { payload.attribute(RTA_TABLE.rawValue, value: table) }
        do {
            return try session.request("list \(family) routes", type: RTM_GETROUTE, dump: true, payload)
                .compactMap(Self.route).filter { table == nil || $0.table == table }
        } catch {
            // A table in which there never was a route; a kernel without IPv6.
            if table != nil, error.errno == ENOENT { return [] }
            if family == .ipv6, [EAFNOSUPPORT, EOPNOTSUPP].contains(error.errno) { return [] }
            throw error
        }
    }

    static func route(_ message: NetlinkMessage) -> Route? {
        guard Int(message.type) == RTM_NEWROUTE, let (header, attributes) = message.parse(rtmsg.self),
            let family = AddressFamily(socketFamily: header.rtm_family)
        else { return nil }
        var address = family == .ipv4 ? IPAddress.anyIPv4 : .anyIPv6
        var result = (
            index: UInt32(0), gateway: IPAddress?.none, table: UInt32(header.rtm_table), metric: UInt32(0)
        )
        for attribute in attributes {
            switch attribute.type {
            case Int(RTA_DST.rawValue): address = IPAddress(bytes: attribute.payload) ?? address
            case Int(RTA_OIF.rawValue): result.index = attribute.integer() ?? 0
            case Int(RTA_GATEWAY.rawValue): result.gateway = IPAddress(bytes: attribute.payload)
            case Int(RTA_PRIORITY.rawValue): result.metric = attribute.integer() ?? 0
            case Int(RTA_TABLE.rawValue): result.table = attribute.integer() ?? result.table
            default: break
            }
        }
        guard let destination = CIDR(masking: address, prefixLength: Int(header.rtm_dst_len)) else { return nil }
        return Route(
            destination, index: result.index, gateway: result.gateway, table: result.table, type: header.rtm_type,
            origin: header.rtm_protocol, metric: result.metric)
    }

    /// Adds a route, or replaces the one with its destination, table and metric.
    public func replaceRoute(_ route: Route) throws(NetlinkError) {
        try session.acknowledge(
            "set route \(route.destination)", type: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_REPLACE,
            Self.routePayload(route))
    }

    /// Deletes a route, whatever its scope; what is not there is no error. A type of 0 is any.
    public func deleteRoute(_ route: Route) throws(NetlinkError) {
        do {
            try session.acknowledge(
                "delete route \(route.destination)", type: RTM_DELROUTE, Self.routePayload(route, isDeletion: true))
        } catch {
            if error.errno != ESRCH { throw error }
        }
    }

    private static func routePayload(_ route: Route, isDeletion: Bool = false) -> NetlinkPayload {
        var header = rtmsg()
        header.rtm_family = route.destination.family.socketFamily
        header.rtm_dst_len = UInt8(route.destination.prefixLength)
        header.rtm_table = route.table < 256 ? UInt8(route.table) : UInt8(RT_TABLE_UNSPEC.rawValue)
        header.rtm_protocol = route.origin
        header.rtm_scope = UInt8(
            isDeletion
                ? RT_SCOPE_NOWHERE.rawValue
                : route.gateway == nil && route.index != 0 && route.destination.family == .ipv4
                    ? RT_SCOPE_LINK.rawValue : RT_SCOPE_UNIVERSE.rawValue)
        header.rtm_type = route.type
        var payload = NetlinkPayload(header)
        payload.attribute(RTA_DST.rawValue, bytes: route.destination.address.bytes)
        if route.index != 0 { payload.attribute(RTA_OIF.rawValue, value: route.index) }
        if let gateway = route.gateway { payload.attribute(RTA_GATEWAY.rawValue, bytes: gateway.bytes) }
        payload.attribute(RTA_TABLE.rawValue, value: route.table)
        if route.metric != 0 { payload.attribute(RTA_PRIORITY.rawValue, value: route.metric) }
        return payload
    }

    // MARK: Neighbours

    /// Neighbours of a family: address, device, hardware address (empty when it is not known).
    public func neighbours(
        _ family: AddressFamily
    ) throws(NetlinkError) -> [(address: IPAddress, index: UInt32, hardwareAddress: [UInt8])] {
        var header = ndmsg()
        header.ndm_family = family.socketFamily
        return try session.request("list \(family) neighbours", type: RTM_GETNEIGH, dump: true, NetlinkPayload(header))
            .compactMap { message -> (address: IPAddress, index: UInt32, hardwareAddress: [UInt8])? in
                guard Int(message.type) == RTM_NEWNEIGH, let (header, attributes) = message.parse(ndmsg.self) else {
                    return nil
                }
                var address: IPAddress?
                var hardware: [UInt8] = []
                for attribute in attributes {
                    if attribute.type == Int(NDA_DST) { address = IPAddress(bytes: attribute.payload) }
                    if attribute.type == Int(NDA_LLADDR) { hardware = Array(attribute.payload) }
                }
                return address.map { ($0, UInt32(header.ndm_ifindex), hardware) }
            }
    }

    /// Enters a permanent neighbour, or a proxy entry for an address that this node answers for.
    public func replaceNeighbour(
        _ address: IPAddress, index: UInt32, hardwareAddress: [UInt8]? = nil, isProxy: Bool = false
    ) throws(NetlinkError) {
        var header = ndmsg()
        header.ndm_family = address.family.socketFamily
        header.ndm_ifindex = Int32(index)
        header.ndm_state = UInt16(NUD_PERMANENT)
        header.ndm_flags = isProxy ? UInt8(NTF_PROXY) : 0
        var payload = NetlinkPayload(header)
        payload.attribute(NDA_DST, bytes: address.bytes)
        if let hardwareAddress { payload.attribute(NDA_LLADDR, bytes: hardwareAddress) }
        try session.acknowledge(
            "set neighbour \(address)", type: RTM_NEWNEIGH, flags: NLM_F_CREATE | NLM_F_REPLACE, payload)
    }
}

extension RouteSession {
    // MARK: Filters

    /// Filters at a device whose priority is none of those given: other people's. `before`: only
    /// those that come before a priority.
    public func foreignFilters(
        interface: UInt32, isEgress: Bool = false, own: Set<UInt32>, before: UInt32 = .max
    ) throws(NetlinkError) -> Int {
        var header = tcmsg()
        header.tcm_ifindex = Int32(interface)
        header.tcm_parent = isEgress ? 0xffff_fff3 : 0xffff_fff2
        let rows = try session.request(
            "list filters of device \(interface)", type: RTM_GETTFILTER, dump: true, NetlinkPayload(header))
        // tcm_info: the priority in the upper half, the protocol in the lower.
        return rows.count { row in
            guard let priority = row.parse(tcmsg.self).map({ $0.0.tcm_info >> 16 }) else { return true }
            return !own.contains(priority) && priority < before
        }
    }

    /// Filters on a device's clsact qdisc, both directions.
    public func filterCount(interface: UInt32) throws(NetlinkError) -> Int {
        var count = 0
        // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS and TC_H_MIN_EGRESS), <linux/pkt_sched.h>.
        for parent: UInt32 in [0xffff_fff2, 0xffff_fff3] {
            var header = tcmsg()
            header.tcm_ifindex = Int32(interface)
            header.tcm_parent = parent
            count += try session.request(
                "list filters of device \(interface)", type: RTM_GETTFILTER, dump: true, NetlinkPayload(header)
            ).count
        }
        return count
    }
}
