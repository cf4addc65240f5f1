// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
public import Model

/// Both directions of a flow as one record (a biflow, RFC 5103).
public struct Biflow: Sendable, Hashable, Codable {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or the number.
    public var transport: String
    /// The side that spoke first.
    public var source: IPAddress
    public var sourcePort: UInt16
    public var destination: IPAddress
    public var destinationPort: UInt16
    public var packets: UInt64
    public var bytes: UInt64
    public var reversePackets: UInt64
    public var reverseBytes: UInt64
    /// Nanoseconds of CLOCK_MONOTONIC.
    public var first: UInt64
    public var last: UInt64
    /// `tunnel`, `clear`, `local`, `outside`.
    public var way: String
    /// Both directions went through WireGuard only.
    public var isEncrypted: Bool
    public var sourceName: String?
    public var destinationName: String?
    /// Node at the other end.
    public var peer: String?
}

/// Reads the flow tables.
public struct FlowReader: Sendable {
    private let maps: PinnedMaps

    public init(_ maps: PinnedMaps) { self.maps = maps }

    /// All flows, the busiest first. `names`: of pods and nodes by address.
    public func biflows(names: [IPAddress: String] = [:]) throws -> [Biflow] {
        let entries = try maps.flows.entries()
        let owners = try maps.destinations.slotOwners()
        var result: [Biflow] = []
        var done: Set<FlowKey> = []
        // The reverse direction came in by another device; match it on addresses and ports.
        var byTuple: [FlowKey: [FlowKey]] = [:]
        for key in entries.keys { byTuple[Self.anywhere(key), default: []].append(key) }
        // The clock ticks every few milliseconds; a question and its answer may bear one time.
        let ordered = entries.sorted {
            ($0.value.first, Self.rank($0.key)) < ($1.value.first, Self.rank($1.key))
        }
        for (key, entry) in ordered where !done.contains(key) {
            done.insert(key)
            var flow = Self.oneWay(key, entry)
            let candidates = byTuple[Self.anywhere(Self.reversed(key))] ?? []
            if let reverse = candidates.filter({ !done.contains($0) }).min(by: { $0.interface < $1.interface }),
                let other = entries[reverse]
            {
                done.insert(reverse)
                flow.reversePackets = other.packets
                flow.reverseBytes = other.bytes
                flow.first = min(flow.first, other.first)
                flow.last = max(flow.last, other.last)
                let crosses = entry.slot >= DestinationSlot.firstPeer || other.slot >= DestinationSlot.firstPeer
                let clear = entry.isClear || other.isClear
                flow.way = Self.way(
                    tunnelled: entry.isTunnelled || other.isTunnelled, clear: clear, crosses: crosses, slot: entry.slot)
                flow.peer = (owners[entry.slot] ?? owners[other.slot])?.node
            } else {
                flow.peer = owners[entry.slot]?.node
            }
            flow.isEncrypted = flow.way == "tunnel"
            flow.sourceName = names[key.source]
            flow.destinationName = names[key.destination]
            result.append(flow)
        }
        return result.sorted { ($0.bytes + $0.reverseBytes, $1.source) > ($1.bytes + $1.reverseBytes, $0.source) }
    }

    private static func oneWay(_ key: FlowKey, _ entry: FlowEntry) -> Biflow {
        Biflow(
            transport: transportName(key.transport), source: key.source, sourcePort: key.sourcePort,
            destination: key.destination, destinationPort: key.destinationPort, packets: entry.packets,
            bytes: entry.bytes, reversePackets: 0, reverseBytes: 0, first: entry.first, last: entry.last,
            way: way(
                tunnelled: entry.isTunnelled || entry.hook == .fromWireGuard, clear: entry.isClear,
                crosses: entry.slot >= DestinationSlot.firstPeer, slot: entry.slot),
            isEncrypted: false)
    }

    private static func way(tunnelled: Bool, clear: Bool, crosses: Bool, slot: Int) -> String {
        if clear { return tunnelled ? "mixed" : "clear" }
        if tunnelled { return "tunnel" }
        if crosses { return "clear" }
        return slot == DestinationSlot.local ? "local" : slot == DestinationSlot.outside ? "outside" : "clear"
    }

    private static func anywhere(_ key: FlowKey) -> FlowKey {
        var key = key
        key.interface = 0
        return key
    }

    private static func reversed(_ key: FlowKey) -> FlowKey {
        var result = key
        (result.source, result.destination) = (key.destination, key.source)
        // ICMP has the identifier of echo in the one port, type and code in the other.
        if let answer = echoTypes[key.destinationPort], key.transport == 1 || key.transport == 58 {
            result.destinationPort = answer
        } else {
            (result.sourcePort, result.destinationPort) = (key.destinationPort, key.sourcePort)
        }
        return result
    }

    /// Type and code of echo request and reply, and back (RFC 792, RFC 4443).
    private static let echoTypes: [UInt16: UInt16] = [0x0800: 0, 0: 0x0800, 0x8000: 0x8100, 0x8100: 0x8000]

    /// Low for the side that most likely spoke first: echo requests, and who speaks to a lower port.
    private static func rank(_ key: FlowKey) -> Int {
        if key.transport == 1 || key.transport == 58 {
            return key.destinationPort == 0x0800 || key.destinationPort == 0x8000 ? 0 : 1
        }
        return Int(key.destinationPort)
    }

    /// By IANA protocol number.
    public static func transportName(_ number: UInt8) -> String {
        switch number {
        case 1: "icmp"
        case 6: "tcp"
        case 17: "udp"
        case 58: "icmpv6"
        case 132: "sctp"
        default: "\(number)"
        }
    }
}

/// Takes out flows and masquerade mappings that have ended or idled too long.
public struct FlowSweeper: Sendable {
    private let maps: PinnedMaps

    public init(_ maps: PinnedMaps) { self.maps = maps }

    /// Seconds without a packet after which a flow is over; Calico's values.
    static func timeout(transport: UInt8, tcpFlags: UInt8) -> UInt64 {
        switch transport {
        case 6:
            if tcpFlags & 0x04 != 0 { return 40 }
            if tcpFlags & 0x01 != 0 { return 30 }
            return tcpFlags & 0x10 != 0 ? 3600 : 20
        case 17: return 60
        case 1, 58: return 5
        default: return 600
        }
    }

    /// Seconds that a mapping outlives its last packet. An established connection may idle for
    /// long and must find its port again: five days, as nf_conntrack has it.
    static func mappingTimeout(transport: UInt8, tcpFlags: UInt8) -> UInt64 {
        let ordinary = max(30, timeout(transport: transport, tcpFlags: tcpFlags))
        if transport != 6 || ordinary != 3600 { return transport == 6 ? max(120, ordinary) : ordinary }
        return 432_000
    }

    /// Share of a full table from which on flows that have not become any go first.
    static let pressure = 0.8

    /// A flow of one packet, or a TCP connection that nobody has answered: in a flood, most are.
    static func isEmbryonic(transport: UInt8, entry: FlowEntry) -> Bool {
        transport == 6 ? entry.tcpFlags & 0x10 == 0 : entry.packets < 2
    }

    /// One pass at a time of CLOCK_MONOTONIC; returns how many flows and mappings went.
    ///
    /// An entry is taken out in one step with its last counters: a packet that comes meanwhile
    /// is counted in it, or makes another.
    public func sweep(now: UInt64) throws -> (flows: Int, mappings: Int) {
        var flows = 0
        let entries = try maps.flows.entries()
        for family in AddressFamily.allCases {
            let own = entries.filter { $0.key.source.family == family }
            let isCrowded = Double(own.count) > Self.pressure * Double(maps.flows.capacity)
            for (key, entry) in own {
                var seconds = Self.timeout(transport: key.transport, tcpFlags: entry.tcpFlags)
                if isCrowded, Self.isEmbryonic(transport: key.transport, entry: entry) { seconds = min(seconds, 2) }
                let limit = seconds * 1_000_000_000
                if now > entry.last, now - entry.last > limit, try maps.flows.take(key) != nil { flows += 1 }
            }
        }
        return (flows, try sweepMasquerade(now: now))
    }

    /// The half by which the answers to a mapping's packets come.
    private static func reply(to key: MasqueradeKey, _ entry: MasqueradeEntry) -> MasqueradeKey {
        let isICMP = key.transport == 1 || key.transport == 58
        return MasqueradeKey(
            source: key.destination, destination: entry.address,
            sourcePort: isICMP ? entry.port : key.destinationPort, destinationPort: isICMP ? 0 : entry.port,
            transport: key.transport, isOutgoing: false)
    }

    /// Both halves of a mapping go together, when neither has been used.
    private func sweepMasquerade(now: UInt64) throws -> Int {
        let entries = try maps.masquerade.entries()
        var gone = 0
        for (key, entry) in entries where key.isOutgoing {
            let reply = Self.reply(to: key, entry)
            let other = entries[reply]
            let last = max(entry.last, other?.last ?? 0)
            let limit =
                Self.mappingTimeout(transport: key.transport, tcpFlags: entry.tcpFlags | (other?.tcpFlags ?? 0))
                * 1_000_000_000
            guard now > last, now - last > limit else { continue }
            // A flow that has resumed meanwhile keeps its port.
            let again = max(try maps.masquerade.lookup(key)?.last ?? 0, try maps.masquerade.lookup(reply)?.last ?? 0)
            guard now > again, now - again > limit else { continue }
            try maps.masquerade.delete(key)
            try maps.masquerade.delete(reply)
            gone += 1
        }
        // Replies' halves whose other half is gone: an agent ended between the two.
        let used = Set(entries.filter { $0.key.isOutgoing }.map { Self.reply(to: $0.key, $0.value) })
        for (key, entry) in entries where !key.isOutgoing && !used.contains(key) {
            let limit = Self.mappingTimeout(transport: key.transport, tcpFlags: 0) * 1_000_000_000
            guard now > entry.last, now - entry.last > limit else { continue }
            try maps.masquerade.delete(key)
        }
        return gone
    }
}
