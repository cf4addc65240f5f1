// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import Addresses
public import SystemDescriptors

/// A network device.
public struct Link: Sendable, Hashable {
    public var index: UInt32
    public var name: String
    /// `veth`, `wireguard`, `tun`; empty for a plain device.
    public var kind: String
    public var mtu: UInt32
    public var isUp: Bool
    /// Device that this one is part of (a bridge, a bond), 0: none.
    public var master: UInt32
    /// Device below this one (of a VLAN, or the other end of a veth pair), 0: none.
    public var parent: UInt32 = 0
    /// `ARPHRD_…`: 1 Ethernet, 0xfffe none (WireGuard, TUN).
    public var hardwareType: UInt16
    public var hardwareAddress: [UInt8]

    /// Text that somebody has given it (`ip link set … alias`).
    public var alias = ""
    /// The network namespace of `parent`, as this one numbers it; nil: this one.
    public var parentNamespace: Int32?
    /// Queueing discipline at the root: `noqueue`, `mq`, `tbf`.
    public var queue = ""
    /// An XDP program is attached.
    public var hasXDP = false

    /// ARPHRD_ETHER.
    public var isEthernet: Bool { hardwareType == 1 }
    /// ARPHRD_LOOPBACK.
    public var isLoopback: Bool { hardwareType == 772 }
}

/// An address on a device.
public struct LinkAddress: Sendable, Hashable {
    public var index: UInt32
    public var address: IPAddress
    public var prefixLength: Int
}

/// A unicast route or a route without a way (throw, blackhole).
public struct Route: Sendable, Hashable {
    public var destination: CIDR
    /// Outgoing device, 0: none.
    public var index: UInt32
    public var gateway: IPAddress?
    public var table: UInt32
    /// `RTN_…`: 1 unicast, 2 local, 6 blackhole, 9 throw.
    public var type: UInt8
    /// Who made it: `RTPROT_…`, 4 static, or a number of one's own.
    public var origin: UInt8
    /// 0: the kernel's default, which for IPv6 is 1024.
    public var metric: UInt32

    public init(
        _ destination: CIDR, index: UInt32 = 0, gateway: IPAddress? = nil, table: UInt32 = 254, type: UInt8 = 1,
        origin: UInt8 = 4, metric: UInt32 = 0
    ) {
        self.origin = origin
        self.metric = metric
        self.destination = destination
        self.index = index
        self.gateway = gateway
        self.table = table
        self.type = type
    }
}

/// rtnetlink: devices, addresses, routes, rules and neighbours (rtnetlink(7)).
public final class RouteSession {
    let session: NetlinkSession

    public init(_ socket: SharedDescriptor) { session = NetlinkSession(socket) }
    /// In the calling thread's network namespace.
    public init() throws(NetlinkError) { session = try NetlinkSession(.route) }

    // MARK: Links

    public func links() throws(NetlinkError) -> [Link] {
        let payload = NetlinkPayload(ifinfomsg())
        return try session.request("list devices", type: RTM_GETLINK, dump: true, payload).compactMap(Self.link)
    }

    /// The device of a name; nil when there is none.
    public func link(named name: String) throws(NetlinkError) -> Link? {
        var payload = NetlinkPayload(ifinfomsg())
        payload.attribute(IFLA_IFNAME, text: name)
        do {
            return try session.request("look up device \(name)", type: RTM_GETLINK, dump: false, payload)
                .lazy.compactMap(Self.link).first
        } catch {
            if error.errno == ENODEV { return nil }
            throw error
        }
    }

    /// Packets that a device has not sent since it was made: dropped ones, and those that it had no way for
    /// (tx_dropped and tx_errors of struct rtnl_link_stats64, linux/if_link.h). Nil: there is no such device.
    public func unsent(named name: String) throws(NetlinkError) -> (dropped: UInt64, errors: UInt64)? {
        var payload = NetlinkPayload(ifinfomsg())
        payload.attribute(IFLA_IFNAME, text: name)
        do {
            let answer = try session.request(
                "read counters of device \(name)", type: RTM_GETLINK, dump: false, payload)
            let attributes = answer.first.flatMap { $0.parse(ifinfomsg.self) }?.1
            guard let attribute = attributes?.first(where: { $0.type == Int(IFLA_STATS64) }) else { return nil }
            func number(_ index: Int) -> UInt64 { attribute.payload.dropFirst(8 * index).value() ?? 0 }
            return (number(7), number(5))
        } catch {
            if error.errno == ENODEV { return nil }
            throw error
        }
    }

    /// The other end of a veth pair that is in another network namespace, as that one knows it
    /// (`IFLA_TARGET_NETNSID`, Linux 4.20); nil: it is in this one, or gone.
    public func farEnd(of link: Link) throws(NetlinkError) -> Link? {
        guard link.kind == "veth", link.parent != 0, let namespace = link.parentNamespace, namespace >= 0 else {
            return nil
        }
        var header = ifinfomsg()
        header.ifi_index = Int32(link.parent)
        var payload = NetlinkPayload(header)
        payload.attribute(UInt16(IFLA_TARGET_NETNSID), value: namespace)
        do {
            return try session.request("look up the far end of \(link.name)", type: RTM_GETLINK, dump: false, payload)
                .first.flatMap(Self.link)
        } catch {
            if error.errno == ENODEV || error.errno == EINVAL { return nil }
            throw error
        }
    }

    static func link(_ message: NetlinkMessage) -> Link? {
        guard Int(message.type) == RTM_NEWLINK, let (header, attributes) = message.parse(ifinfomsg.self) else {
            return nil
        }
        var link = Link(
            index: UInt32(header.ifi_index), name: "", kind: "", mtu: 0,
            isUp: header.ifi_flags & UInt32(WGP_IFF_UP) != 0, master: 0, hardwareType: header.ifi_type,
            hardwareAddress: [])
        for attribute in attributes {
            switch attribute.type {
            case Int(IFLA_IFNAME): link.name = attribute.text
            case Int(IFLA_MTU): link.mtu = attribute.integer() ?? 0
            case Int(IFLA_LINK): link.parent = attribute.integer() ?? 0
            case Int(IFLA_MASTER): link.master = attribute.integer() ?? 0
            case Int(IFLA_IFALIAS): link.alias = attribute.text
            case Int(IFLA_ADDRESS): link.hardwareAddress = Array(attribute.payload)
            case Int(IFLA_LINK_NETNSID): link.parentNamespace = attribute.integer()
            case Int(IFLA_QDISC): link.queue = attribute.text
            case Int(IFLA_XDP):
                let mode = attribute.nested.first { $0.type == Int(IFLA_XDP_ATTACHED) }?.payload.first
                link.hasXDP = mode ?? 0 != 0
            case Int(IFLA_LINKINFO):
                link.kind = attribute.nested.first { $0.type == Int(IFLA_INFO_KIND) }?.text ?? ""
            default: break
            }
        }
        return link
    }

    /// Makes a device of a kind without settings: `wireguard`, `bridge`, `dummy`.
    public func createLink(named name: String, kind: String, mtu: UInt32? = nil) throws(NetlinkError) {
        var payload = NetlinkPayload(ifinfomsg())
        payload.attribute(IFLA_IFNAME, text: name)
        if let mtu { payload.attribute(IFLA_MTU, value: mtu) }
        payload.nested(IFLA_LINKINFO) { $0.attribute(IFLA_INFO_KIND, text: kind) }
        try session.acknowledge(
            "create \(kind) device \(name)", type: RTM_NEWLINK, flags: NLM_F_CREATE | NLM_F_EXCL, payload)
    }

    /// Makes a veth pair; the peer may be born in another network namespace.
    public func createVethPair(
        _ name: String, mtu: UInt32? = nil, hardwareAddress: [UInt8]? = nil, peer: String, peerMTU: UInt32? = nil,
        peerNamespace: SharedDescriptor? = nil
    ) throws(NetlinkError) {
        var payload = NetlinkPayload(ifinfomsg())
        payload.attribute(IFLA_IFNAME, text: name)
        if let mtu { payload.attribute(IFLA_MTU, value: mtu) }
        if let hardwareAddress { payload.attribute(IFLA_ADDRESS, bytes: hardwareAddress) }
        payload.nested(IFLA_LINKINFO) { information in
            information.attribute(IFLA_INFO_KIND, text: "veth")
            information.nested(IFLA_INFO_DATA) { data in
                var inner = NetlinkPayload(ifinfomsg())
                inner.attribute(IFLA_IFNAME, text: peer)
                if let peerMTU { inner.attribute(IFLA_MTU, value: peerMTU) }
                if let peerNamespace { inner.attribute(IFLA_NET_NS_FD, value: peerNamespace.rawValue) }
                data.attribute(UInt16(VETH_INFO_PEER), bytes: inner.bytes)
            }
        }
        try session.acknowledge(
            "create veth pair \(name), \(peer)", type: RTM_NEWLINK, flags: NLM_F_CREATE | NLM_F_EXCL, payload)
    }

    /// Changes a device; nil leaves a property as it is.
    public func setLink(
        _ index: UInt32, up: Bool? = nil, mtu: UInt32? = nil, master: UInt32? = nil, name: String? = nil,
        alias: String? = nil
    ) throws(NetlinkError) {
        var header = ifinfomsg()
        header.ifi_index = Int32(index)
        if let up {
            header.ifi_change = UInt32(WGP_IFF_UP)
            header.ifi_flags = up ? UInt32(WGP_IFF_UP) : 0
        }
        var payload = NetlinkPayload(header)
        if let mtu { payload.attribute(IFLA_MTU, value: mtu) }
        if let master { payload.attribute(IFLA_MASTER, value: master) }
        if let name { payload.attribute(IFLA_IFNAME, text: name) }
        if let alias { payload.attribute(IFLA_IFALIAS, bytes: Array(alias.utf8)) }
        try session.acknowledge("change device \(index)", type: RTM_NEWLINK, payload)
    }

    /// Deletes a device; what is not there is no error.
    public func deleteLink(named name: String) throws(NetlinkError) {
        guard let link = try link(named: name) else { return }
        var header = ifinfomsg()
        header.ifi_index = Int32(link.index)
        do {
            try session.acknowledge("delete device \(name)", type: RTM_DELLINK, NetlinkPayload(header))
        } catch {
            if error.errno != ENODEV { throw error }
        }
    }

    // MARK: Addresses

    public func addresses() throws(NetlinkError) -> [LinkAddress] {
        try session.request("list addresses", type: RTM_GETADDR, dump: true, NetlinkPayload(ifaddrmsg()))
            .compactMap { message -> LinkAddress? in
                guard Int(message.type) == RTM_NEWADDR, let (header, attributes) = message.parse(ifaddrmsg.self) else {
                    return nil
                }
                // On a point-to-point device IFA_ADDRESS is the far end.
                var found: IPAddress?
                for attribute in attributes {
                    if attribute.type == Int(IFA_LOCAL) { found = IPAddress(bytes: attribute.payload) }
                    if attribute.type == Int(IFA_ADDRESS), found == nil {
                        found = IPAddress(bytes: attribute.payload)
                    }
                }
                guard let found else { return nil }
                return LinkAddress(index: header.ifa_index, address: found, prefixLength: Int(header.ifa_prefixlen))
            }
    }

    /// Adds an address, without duplicate address detection; one that is there is no error.
    public func addAddress(_ address: IPAddress, prefixLength: Int, index: UInt32) throws(NetlinkError) {
        do {
            try session.acknowledge(
                "add address \(address)/\(prefixLength)", type: RTM_NEWADDR, flags: NLM_F_CREATE | NLM_F_EXCL,
                Self.addressPayload(address, prefixLength, index))
        } catch {
            if error.errno != EEXIST { throw error }
        }
    }

    /// Deletes an address; what is not there is no error.
    public func deleteAddress(_ address: IPAddress, prefixLength: Int, index: UInt32) throws(NetlinkError) {
        do {
            try session.acknowledge(
                "delete address \(address)/\(prefixLength)", type: RTM_DELADDR,
                Self.addressPayload(address, prefixLength, index))
        } catch {
            if error.errno != EADDRNOTAVAIL, error.errno != ENODEV { throw error }
        }
    }

    private static func addressPayload(_ address: IPAddress, _ prefixLength: Int, _ index: UInt32) -> NetlinkPayload {
        var header = ifaddrmsg()
        header.ifa_family = address.family.socketFamily
        header.ifa_prefixlen = UInt8(prefixLength)
        header.ifa_index = index
        var payload = NetlinkPayload(header)
        payload.attribute(IFA_LOCAL, bytes: address.bytes)
        payload.attribute(IFA_ADDRESS, bytes: address.bytes)
        if address.family == .ipv6 { payload.attribute(IFA_FLAGS, value: UInt32(IFA_F_NODAD)) }
        return payload
    }
}

extension AddressFamily {
    /// `AF_INET` or `AF_INET6`.
    public var socketFamily: UInt8 { UInt8(self == .ipv4 ? AF_INET : AF_INET6) }

    init?(socketFamily: UInt8) {
        switch Int32(socketFamily) {
        case AF_INET: self = .ipv4
        case AF_INET6: self = .ipv6
        default: return nil
        }
    }
}
