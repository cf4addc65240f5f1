// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
internal import Model

/// Takes out flows and masquerade mappings that have ended or idled too long.
public struct FlowSweeper: Sendable {
    private let maps: NodeMaps

    public init(_ maps: NodeMaps) { self.maps = maps }

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

    /// What a pass has found and taken out.
    public struct Swept: Sendable {
        /// Flows that stay, where they are wanted.
        public var flows: [FlowPair] = []
        /// Entries that there were, of the family that had more.
        public var entries = 0
        /// Those that went, with their last counters.
        public var gone: [FlowPair] = []
        public var mappings = 0
    }

    /// One pass at a time of CLOCK_MONOTONIC.
    ///
    /// An entry is taken out in one step with its last counters: a packet that comes meanwhile
    /// is counted in it, or makes another. Both directions of a flow go together, when neither is used.
    ///
    /// `withFlows`: false where it is not asked which flows stay, and those are looked at alone that may be over.
    public func sweep(now: UInt64, withFlows: Bool = true) throws -> Swept {
        var swept = Swept()
        let limit = Self.pressure * Double(maps.flows.capacity)
        var entries: [(key: FlowKey, entry: FlowEntry)] = []
        var counts: [AddressFamily: Int] = [:]
        if !withFlows { (entries, counts) = try overByThemselves(now) }
        if withFlows || counts.values.contains(where: { Double($0) > limit }) {
            entries = try maps.flows.list()
            let wide = entries.count { $0.key.source.family == .ipv6 }
            counts = [.ipv4: entries.count - wide, .ipv6: wide]
        }
        swept.entries = counts.values.max() ?? 0
        let crowded = counts.mapValues { Double($0) > limit }
        for var pair in FlowPair.pairs(entries) {
            let transport = pair.key.transport
            var seconds = Self.timeout(transport: transport, pair.entry, pair.reverse)
            if crowded[pair.key.source.family] == true, pair.reverse == nil,
                Self.isEmbryonic(transport: transport, entry: pair.entry)
            {
                seconds = min(seconds, 2)
            }
            let last = pair.last
            guard now > last, now - last > seconds * 1_000_000_000 else {
                if withFlows { swept.flows.append(pair) }
                continue
            }
            if let entry = try maps.flows.take(pair.key) { pair.entry = entry }
            if let key = pair.reverseKey, let entry = try maps.flows.take(key) { pair.reverse = entry }
            swept.gone.append(pair)
        }
        swept.mappings = try sweepMasquerade(now: now)
        return swept
    }

    /// Entries of flows of which one direction is over, taken by itself, and how many entries there are in all. A flow is
    /// never over before one of its directions is.
    private func overByThemselves(
        _ now: UInt64
    ) throws -> (entries: [(key: FlowKey, entry: FlowEntry)], counts: [AddressFamily: Int]) {
        var (narrow, wide) = (0, 0)
        var tuples: Set<UInt64> = []
        _ = try maps.flows.list { key, glance in
            if key.source.family == .ipv4 { narrow += 1 } else { wide += 1 }
            let seconds = Self.timeout(transport: key.transport, tcpFlags: glance.tcpFlags)
            if now > glance.last, now - glance.last > seconds * 1_000_000_000 { tuples.insert(FlowPair.tuple(key)) }
            return false
        }
        let entries = tuples.isEmpty ? [] : try maps.flows.list { key, _ in tuples.contains(FlowPair.tuple(key)) }
        return (entries, [.ipv4: narrow, .ipv6: wide])
    }

    /// A connection is over when one side has reset it or both have closed it.
    private static func timeout(transport: UInt8, _ entry: FlowEntry, _ reverse: FlowEntry?) -> UInt64 {
        guard let reverse, transport == 6 else { return timeout(transport: transport, tcpFlags: entry.tcpFlags) }
        let both = [entry.tcpFlags, reverse.tcpFlags].map { timeout(transport: 6, tcpFlags: $0) }
        if (entry.tcpFlags | reverse.tcpFlags) & 0x04 != 0 { return 40 }
        return both[0] == 30 && both[1] == 30 ? 30 : max(both[0], both[1])
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
