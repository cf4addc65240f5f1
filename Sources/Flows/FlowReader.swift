// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
public import Model

/// What makes a flow's addresses and devices readable.
public struct FlowNames: Sendable {
    /// Pods and nodes.
    public var addresses: AddressNames
    public var interfaces: [UInt32: String]
    /// This node's name.
    public var node: String?

    public init(addresses: [IPAddress: String] = [:], interfaces: [UInt32: String] = [:], node: String? = nil) {
        self.init(names: AddressNames(addresses), interfaces: interfaces, node: node)
    }

    public init(names: AddressNames, interfaces: [UInt32: String] = [:], node: String? = nil) {
        addresses = names
        self.interfaces = interfaces
        self.node = node
    }

    func device(_ index: UInt32) -> String { index == 0 ? "" : interfaces[index] ?? "\(index)" }
}

/// Reads the flow tables.
public struct FlowReader: Sendable {
    private let maps: NodeMaps

    public init(_ maps: NodeMaps) { self.maps = maps }

    /// All flows, the busiest first. `limit`: only so many; 0: all.
    public func biflows(_ names: FlowNames = FlowNames(), limit: Int = 0) throws -> [Biflow] {
        let pairs = try pairs()
        return try biflows(of: limit == 0 ? pairs : Array(pairs.prefix(limit)), names)
    }

    /// Both directions of all flows, the busiest first.
    public func pairs() throws -> [FlowPair] {
        let pairs = FlowPair.pairs(try maps.flows.list())
        let order = pairs.indices.sorted {
            (pairs[$0].bytes, pairs[$1].key.source) > (pairs[$1].bytes, pairs[$0].key.source)
        }
        return order.map { pairs[$0] }
    }

    /// What people read of these, in their order.
    public func biflows(of pairs: [FlowPair], _ names: FlowNames = FlowNames()) throws -> [Biflow] {
        if pairs.isEmpty { return [] }
        let context = try context(names)
        return pairs.map { context.biflow($0.key, $0.entry, $0.reverse) }
    }

    /// Records of what is due.
    public func records(_ due: [FlowCache.Due], _ names: FlowNames) throws -> [FlowRecord] {
        if due.isEmpty { return [] }
        let context = try context(names)
        return due.map { due in
            FlowRecord(
                context.biflow(due.pair.key, due.pair.entry, due.pair.reverse), due.reason, packets: due.packets,
                bytes: due.bytes, reversePackets: due.reversePackets, reverseBytes: due.reverseBytes,
                start: due.start, end: due.end)
        }
    }

    func context(_ names: FlowNames) throws -> Context {
        Context(
            names: names, owners: try maps.destinations.slotOwners(), destinations: maps.destinations,
            translations: try maps.masquerade.entries(), locals: try maps.locals.entries(),
            routes: RouteLookup(try maps.routes.entries()))
    }

    static func way(tunnelled: Bool, clear: Bool, crosses: Bool, slot: Int) -> String {
        if clear { return tunnelled ? "mixed" : "clear" }
        if tunnelled { return "tunnel" }
        if crosses { return "clear" }
        return slot == DestinationSlot.local ? "local" : slot == DestinationSlot.outside ? "outside" : "clear"
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
