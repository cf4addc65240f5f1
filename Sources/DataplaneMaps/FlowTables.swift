// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model

/// One direction of a flow, as it entered the node.
public struct FlowKey: Sendable, Hashable {
    public var source: IPAddress
    public var destination: IPAddress
    /// Host byte order; the identifier of ICMP echo.
    public var sourcePort: UInt16
    /// ICMP: type << 8 | code, as in NetFlow.
    public var destinationPort: UInt16
    /// IP protocol number.
    public var transport: UInt8
    /// Device it came in by; 0: the node itself.
    public var interface: UInt32

    public init(
        source: IPAddress, destination: IPAddress, sourcePort: UInt16 = 0, destinationPort: UInt16 = 0,
        transport: UInt8, interface: UInt32
    ) {
        self.source = source
        self.destination = destination
        self.sourcePort = sourcePort
        self.destinationPort = destinationPort
        self.transport = transport
        self.interface = interface
    }

    /// In few steps: tables of flows are large.
    public func hash(into hasher: inout Hasher) {
        hasher.combine(source)
        hasher.combine(destination)
        hasher.combine(
            UInt64(sourcePort) << 48 | UInt64(destinationPort) << 32 | UInt64(interface ^ UInt32(transport) << 24))
    }
}

/// What was counted, and how the flow goes.
public struct FlowEntry: Sendable, Hashable {
    public var packets: UInt64
    /// Of the network layer.
    public var bytes: UInt64
    /// CLOCK_MONOTONIC, nanoseconds.
    public var first: UInt64
    public var last: UInt64
    public var slot: Int
    public var hook: Hook
    /// All TCP flags seen, or'ed (RFC 9293, byte 13 of the header).
    public var tcpFlags: UInt8
    public var isTunnelled: Bool
    public var isClear: Bool
    public var isFromHost: Bool
    public var isPassed: Bool
    /// Its source is one whose packets are to be encrypted.
    public var isPromised: Bool
    /// Netfilter knows it: it takes the stack both ways.
    public var takesStack: Bool
    /// In clear by the operator's choice.
    public var isExempt: Bool
    /// The masquerade's port on the far side, host byte order; 0: none known.
    public var masqueradePort: UInt16
    /// Why the last of its packets that were dropped was.
    public var dropReason: Reason?
}

/// The flow tables of both families.
public struct FlowTable: Sendable {
    let ipv4: BPFMap<wgp_flow_key4, wgp_flow>
    let ipv6: BPFMap<wgp_flow_key6, wgp_flow>

    init(_ source: some MapSource) throws(BPFError) {
        ipv4 = try source.open("flows4")
        ipv6 = try source.open("flows6")
    }

    /// Entries that each family's table has room for.
    public var capacity: Int { ipv4.information.maximumEntries }

    public func entries() throws(BPFError) -> [FlowKey: FlowEntry] {
        Dictionary(try list().map { ($0.key, $0.entry) }, uniquingKeysWith: { first, _ in first })
    }

    /// All entries, in no order.
    public func list() throws(BPFError) -> [(key: FlowKey, entry: FlowEntry)] { try list { _, _ in true } }

    /// What is seen of an entry before it is read.
    public struct Glance: Sendable {
        /// CLOCK_MONOTONIC, nanoseconds.
        public var last: UInt64
        public var tcpFlags: UInt8
    }

    /// The entries that are wanted: of the others no more is made than a key.
    public func list(
        _ isWanted: (FlowKey, Glance) -> Bool
    ) throws(BPFError) -> [(key: FlowKey, entry: FlowEntry)] {
        func pick(_ key: FlowKey, _ value: wgp_flow) -> (key: FlowKey, entry: FlowEntry)? {
            isWanted(key, Glance(last: value.last_ns, tcpFlags: value.tcp_flags)) ? (key, FlowEntry(value)) : nil
        }
        return try ipv4.decoded { pick(Self.key($0), $1) } + ipv6.decoded { pick(Self.key($0), $1) }
    }

    private static func key(_ key: wgp_flow_key4) -> FlowKey {
        FlowKey(
            source: IPAddress(networkOrder32: key.source), destination: IPAddress(networkOrder32: key.destination),
            sourcePort: UInt16(bigEndian: key.source_port), destinationPort: UInt16(bigEndian: key.destination_port),
            transport: key.protocol, interface: key.ifindex)
    }

    private static func key(_ key: wgp_flow_key6) -> FlowKey {
        FlowKey(
            source: IPAddress(.ipv6, field: key.source), destination: IPAddress(.ipv6, field: key.destination),
            sourcePort: UInt16(bigEndian: key.source_port), destinationPort: UInt16(bigEndian: key.destination_port),
            transport: key.protocol, interface: key.ifindex)
    }

    /// Takes an entry out and returns its last counters; nil when it was gone.
    public func take(_ key: FlowKey) throws(BPFError) -> FlowEntry? {
        if key.source.family == .ipv4 {
            return try ipv4.lookupAndDelete(
                wgp_flow_key4(
                    source: key.source.networkOrder32, destination: key.destination.networkOrder32,
                    source_port: key.sourcePort.bigEndian, destination_port: key.destinationPort.bigEndian,
                    ifindex: key.interface, protocol: key.transport, pad: (0, 0, 0))
            ).map(FlowEntry.init)
        }
        let raw =
            key.source.bytes + key.destination.bytes + memory(of: key.sourcePort.bigEndian)
            + memory(of: key.destinationPort.bigEndian) + memory(of: key.interface) + [key.transport, 0, 0, 0]
        return try ipv6.lookupAndDelete(value(raw)).map(FlowEntry.init)
    }
}

extension FlowEntry {
    init(_ value: wgp_flow) {
        let flags = UInt32(value.flags)
        self.init(
            packets: value.packets, bytes: value.bytes, first: value.first_ns, last: value.last_ns,
            slot: Int(value.slot), hook: Hook(rawValue: UInt32(value.hook)), tcpFlags: value.tcp_flags,
            isTunnelled: flags & WGP_FLOW_TUNNELLED.rawValue != 0, isClear: flags & WGP_FLOW_CLEAR.rawValue != 0,
            isFromHost: flags & WGP_FLOW_HOST.rawValue != 0, isPassed: flags & WGP_FLOW_PASS.rawValue != 0,
            isPromised: flags & WGP_FLOW_PROMISED.rawValue != 0, takesStack: flags & WGP_FLOW_STACK.rawValue != 0,
            isExempt: flags & WGP_FLOW_EXEMPT.rawValue != 0, masqueradePort: UInt16(bigEndian: value.nat_port),
            dropReason: value.reason == 0 ? nil : Reason(rawValue: value.reason))
    }
}

/// One half of a masquerade mapping.
public struct MasqueradeKey: Sendable, Hashable {
    public var source: IPAddress
    public var destination: IPAddress
    public var sourcePort: UInt16
    public var destinationPort: UInt16
    public var transport: UInt8
    /// The node's own tuple; otherwise the reply's.
    public var isOutgoing: Bool

    public init(
        source: IPAddress, destination: IPAddress, sourcePort: UInt16, destinationPort: UInt16, transport: UInt8,
        isOutgoing: Bool
    ) {
        self.source = source
        self.destination = destination
        self.sourcePort = sourcePort
        self.destinationPort = destinationPort
        self.transport = transport
        self.isOutgoing = isOutgoing
    }
}

/// The address and port that a half writes.
public struct MasqueradeEntry: Sendable, Hashable {
    public var address: IPAddress
    public var port: UInt16
    /// CLOCK_MONOTONIC, nanoseconds.
    public var last: UInt64
    public var tcpFlags: UInt8
}

/// The masquerade tables of both families.
public struct MasqueradeTable: Sendable {
    let ipv4: BPFMap<wgp_masquerade_key4, wgp_masquerade>
    let ipv6: BPFMap<wgp_masquerade_key6, wgp_masquerade>

    init(_ source: some MapSource) throws(BPFError) {
        ipv4 = try source.open("masquerade4")
        ipv6 = try source.open("masquerade6")
    }

    public func entries() throws(BPFError) -> [MasqueradeKey: MasqueradeEntry] {
        var result: [MasqueradeKey: MasqueradeEntry] = [:]
        for (key, value) in try ipv4.entries() {
            result[
                MasqueradeKey(
                    source: IPAddress(networkOrder32: key.source),
                    destination: IPAddress(networkOrder32: key.destination),
                    sourcePort: UInt16(bigEndian: key.source_port),
                    destinationPort: UInt16(bigEndian: key.destination_port), transport: key.protocol,
                    isOutgoing: UInt32(key.direction) == WGP_MASQUERADE_OUT.rawValue)] = entry(value, .ipv4)
        }
        for (key, value) in try ipv6.entries() {
            result[
                MasqueradeKey(
                    source: IPAddress(.ipv6, field: key.source), destination: IPAddress(.ipv6, field: key.destination),
                    sourcePort: UInt16(bigEndian: key.source_port),
                    destinationPort: UInt16(bigEndian: key.destination_port), transport: key.protocol,
                    isOutgoing: UInt32(key.direction) == WGP_MASQUERADE_OUT.rawValue)] = entry(value, .ipv6)
        }
        return result
    }

    private func entry(_ value: wgp_masquerade, _ family: AddressFamily) -> MasqueradeEntry {
        MasqueradeEntry(
            address: IPAddress(family, field: value.address), port: UInt16(bigEndian: value.port), last: value.last_ns,
            tcpFlags: value.tcp_flags)
    }

    /// One half as it is now; nil: it is gone.
    public func lookup(_ key: MasqueradeKey) throws(BPFError) -> MasqueradeEntry? {
        key.source.family == .ipv4
            ? try ipv4.lookup(value(Self.raw(key))).map { entry($0, .ipv4) }
            : try ipv6.lookup(value(Self.raw(key))).map { entry($0, .ipv6) }
    }

    private static func raw(_ key: MasqueradeKey) -> [UInt8] {
        let ports = memory(of: key.sourcePort.bigEndian) + memory(of: key.destinationPort.bigEndian)
        return key.source.bytes + key.destination.bytes + ports + [key.transport, UInt8(key.isOutgoing ? 0 : 1), 0, 0]
    }

    public func delete(_ key: MasqueradeKey) throws(BPFError) {
        if key.source.family == .ipv4 {
            try ipv4.delete(value(Self.raw(key)))
        } else {
            try ipv6.delete(value(Self.raw(key)))
        }
    }
}
