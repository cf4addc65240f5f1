// SPDX-License-Identifier: Apache-2.0

public import DataplaneMaps
internal import Model

/// Both directions of a flow, as the table has them: what is cheap to look at each few seconds.
public struct FlowPair: Sendable, Hashable {
    /// The direction that began.
    public var key: FlowKey
    public var entry: FlowEntry
    /// The other one; nil: there is none.
    public var reverseKey: FlowKey?
    public var reverse: FlowEntry?

    public init(_ key: FlowKey, _ entry: FlowEntry, reverseKey: FlowKey? = nil, reverse: FlowEntry? = nil) {
        self.key = key
        self.entry = entry
        self.reverseKey = reverseKey
        self.reverse = reverse
    }

    public var first: UInt64 { min(entry.first, reverse?.first ?? entry.first) }
    public var last: UInt64 { max(entry.last, reverse?.last ?? 0) }
    /// Of both directions.
    public var bytes: UInt64 { entry.bytes + (reverse?.bytes ?? 0) }

    /// The other one of each entry is matched on addresses and ports: it came in by another device.
    public static func pairs(_ entries: [(key: FlowKey, entry: FlowEntry)]) -> [FlowPair] {
        var order = entries.indices.map { (hash: tuple(entries[$0].key), index: $0) }
        order.sort { $0.hash < $1.hash }
        var result: [FlowPair] = []
        result.reserveCapacity(entries.count)
        var start = 0
        while start < order.count {
            var end = start + 1
            while end < order.count, order[end].hash == order[start].hash { end += 1 }
            if end == start + 1 {
                let (key, entry) = entries[order[start].index]
                result.append(FlowPair(key, entry))
            } else {
                match(order[start..<end].map { entries[$0.index] }, &result)
            }
            start = end
        }
        return result
    }

    /// Pairs among entries of one tuple, and of those whose hash is the same by chance.
    private static func match(_ entries: [(key: FlowKey, entry: FlowEntry)], _ result: inout [FlowPair]) {
        // The clock ticks every few milliseconds; a question and its answer may bear one time.
        let entries = entries.sorted {
            ($0.entry.first, rank($0.key), $0.key.interface) < ($1.entry.first, rank($1.key), $1.key.interface)
        }
        var isDone = [Bool](repeating: false, count: entries.count)
        for (index, (key, entry)) in entries.enumerated() where !isDone[index] {
            isDone[index] = true
            let wanted = reversed(key)
            // The eldest, so that a flow keeps its other direction also when that changes its device.
            guard let other = entries.indices.first(where: { !isDone[$0] && isSame(entries[$0].key, wanted) }) else {
                result.append(FlowPair(key, entry))
                continue
            }
            isDone[other] = true
            result.append(FlowPair(key, entry, reverseKey: entries[other].key, reverse: entries[other].entry))
        }
    }

    private static func isSame(_ a: FlowKey, _ b: FlowKey) -> Bool {
        a.source == b.source && a.destination == b.destination && a.sourcePort == b.sourcePort
            && a.destinationPort == b.destinationPort && a.transport == b.transport
    }

    /// The same for a flow's two directions, whatever their devices.
    static func tuple(_ key: FlowKey) -> UInt64 {
        if key.transport == 1 || key.transport == 58 {
            let type = min(key.destinationPort, echoTypes[key.destinationPort] ?? key.destinationPort)
            let ends = mix(word(key.source)) &+ mix(word(key.destination))
            return mix(ends ^ UInt64(key.sourcePort) << 24 ^ UInt64(type) << 8 ^ UInt64(key.transport))
        }
        let one = mix(word(key.source) ^ UInt64(key.sourcePort) << 40)
        let other = mix(word(key.destination) ^ UInt64(key.destinationPort) << 40)
        return mix(one &+ other ^ UInt64(key.transport))
    }

    private static func word(_ address: IPAddress) -> UInt64 {
        let bits = address.bits
        return UInt64(truncatingIfNeeded: bits) ^ mix(UInt64(truncatingIfNeeded: bits >> 64))
    }

    /// So that no sender of packets can make many tuples one.
    private static let seed = UInt64.random(in: 1...UInt64.max)

    /// A bijection that spreads bits (splitmix64).
    private static func mix(_ value: UInt64) -> UInt64 {
        var value = value &+ seed
        value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
        return value ^ value >> 31
    }

    static func reversed(_ key: FlowKey) -> FlowKey {
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
}
