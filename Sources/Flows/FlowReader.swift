// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
public import Model

/// What makes a flow's addresses and devices readable.
public struct FlowNames: Sendable {
    /// Pods and nodes by address.
    public var addresses: [IPAddress: String]
    public var interfaces: [UInt32: String]
    /// This node's name.
    public var node: String?

    public init(addresses: [IPAddress: String] = [:], interfaces: [UInt32: String] = [:], node: String? = nil) {
        self.addresses = addresses
        self.interfaces = interfaces
        self.node = node
    }

    func device(_ index: UInt32) -> String { index == 0 ? "" : interfaces[index] ?? "\(index)" }
}

/// Reads the flow tables.
public struct FlowReader: Sendable {
    private let maps: NodeMaps

    public init(_ maps: NodeMaps) { self.maps = maps }

    /// All flows, the busiest first.
    public func biflows(_ names: FlowNames = FlowNames()) throws -> [Biflow] {
        try biflows(of: maps.flows.entries(), names)
    }

    /// Biflows of these entries, the busiest first.
    public func biflows(of entries: [FlowKey: FlowEntry], _ names: FlowNames = FlowNames()) throws -> [Biflow] {
        if entries.isEmpty { return [] }
        let context = Context(
            names: names, owners: try maps.destinations.slotOwners(), destinations: maps.destinations,
            translations: try maps.masquerade.entries(), locals: try maps.locals.entries(),
            routes: RouteLookup(try maps.routes.entries()))
        let flows = Self.pairs(entries).map { pair in
            context.biflow(pair.key, pair.entry, pair.reverse.flatMap { entries[$0] })
        }
        return flows.sorted { ($0.bytes + $0.reverseBytes, $1.source) > ($1.bytes + $1.reverseBytes, $0.source) }
    }

    /// Each entry with that of the other direction, where there is one.
    static func pairs(_ entries: [FlowKey: FlowEntry]) -> [(key: FlowKey, entry: FlowEntry, reverse: FlowKey?)] {
        var result: [(key: FlowKey, entry: FlowEntry, reverse: FlowKey?)] = []
        result.reserveCapacity(entries.count)
        var done: Set<FlowKey> = []
        // The reverse direction came in by another device; match it on addresses and ports.
        var byTuple: [FlowKey: [FlowKey]] = [:]
        for key in entries.keys { byTuple[anywhere(key), default: []].append(key) }
        // The clock ticks every few milliseconds; a question and its answer may bear one time.
        let ordered = entries.sorted {
            ($0.value.first, rank($0.key)) < ($1.value.first, rank($1.key))
        }
        for (key, entry) in ordered where done.insert(key).inserted {
            let candidates = byTuple[anywhere(reversed(key))] ?? []
            let reverse = candidates.filter { !done.contains($0) }.min { $0.interface < $1.interface }
            if let reverse { done.insert(reverse) }
            result.append((key, entry, reverse))
        }
        return result
    }

    static func way(tunnelled: Bool, clear: Bool, crosses: Bool, slot: Int) -> String {
        if clear { return tunnelled ? "mixed" : "clear" }
        if tunnelled { return "tunnel" }
        if crosses { return "clear" }
        return slot == DestinationSlot.local ? "local" : slot == DestinationSlot.outside ? "outside" : "clear"
    }

    static func anywhere(_ key: FlowKey) -> FlowKey {
        var key = key
        key.interface = 0
        return key
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
