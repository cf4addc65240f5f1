// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
internal import SystemDescriptors

/// All maps of a node's data plane: opened from their pins, or read from an archive.
public struct NodeMaps: Sendable {
    public let config: ConfigTable
    public let destinations: DestinationTable
    public let routes: RouteTable
    public let locals: LocalTable
    public let endpoints: EndpointTable
    public let flows: FlowTable
    public let masquerade: MasqueradeTable
    public let counters: CounterTable
    public let interfaces: InterfaceTable
    public let allowedSources: AllowedSourceTable
    public let fragments: FragmentTable
    public let events: EventTable
    public let tunnel: TunnelTable
    /// Of strict mode's second lock; nil where it has never been armed.
    public let guardPrefixes: GuardTable?

    /// Throws when a map is missing or has another layout.
    public init(_ source: some MapSource) throws(BPFError) {
        config = try ConfigTable(source)
        destinations = try DestinationTable(source)
        routes = try RouteTable(source)
        locals = try LocalTable(source)
        endpoints = try EndpointTable(source)
        flows = try FlowTable(source)
        masquerade = try MasqueradeTable(source)
        counters = try CounterTable(source)
        interfaces = try InterfaceTable(source)
        allowedSources = try AllowedSourceTable(source)
        fragments = try FragmentTable(source)
        events = try EventTable(source)
        tunnel = try TunnelTable(source)
        guardPrefixes = try? GuardTable(source)
    }

    /// All maps that have entries, by name.
    public var all: [any AnyMap] {
        var maps: [any AnyMap] = [
            allowedSources.ipv4, allowedSources.ipv6, config.map, counters.map, destinations.map,
            endpoints.table.ipv4, endpoints.table.ipv6, events.control, flows.ipv4, flows.ipv6, fragments.ipv4,
            fragments.ipv6,
        ]
        if let guarded = guardPrefixes { maps += [guarded.ipv4, guarded.ipv6] }
        maps += [
            interfaces.map, locals.table.ipv4, locals.table.ipv6, masquerade.ipv4, masquerade.ipv6,
            destinations.owners, routes.addresses.ipv4, routes.addresses.ipv6, routes.blocks4, routes.blocks6,
            routes.prefixes4, routes.prefixes6, tunnel.map,
        ]
        return maps.sorted { $0.name < $1.name }
    }

    /// Pins again what somebody has unpinned: else the next agent, and who looks, would find nothing.
    public func restorePins(_ layout: PinLayout) throws {
        let present = Set((try? listNames(layout.folder)) ?? [])
        let lost = all.filter { !present.contains($0.name) }
        guard !lost.isEmpty || !present.contains(events.ring.name) else { return }
        try layout.create()
        for map in lost { try map.pin(at: layout.map(map.name)) }
        try events.ring.pin(at: layout.map(events.ring.name))
    }

    /// Name, description and number of entries of every map; of an array those that are not zero.
    public func list() throws(BPFError) -> [(name: String, information: BPFMapInformation, entries: Int)] {
        var result: [(name: String, information: BPFMapInformation, entries: Int)] = []
        for map in all { result.append((map.name, map.information, try map.count())) }
        result.append((events.ring.name, events.ring.information, 0))
        return result.sorted { $0.name < $1.name }
    }
}

extension PinLayout: MapSource {
    public func open<Key, Value>(_ name: String) throws(BPFError) -> BPFMap<Key, Value> {
        try BPFMap(pinned: map(name), name: name)
    }

    public func openRing(_ name: String) throws(BPFError) -> BPFRingMap {
        try BPFRingMap(pinned: map(name), name: name)
    }
}

/// Maps as an archive keeps them.
public struct MapArchive: Sendable, Codable {
    /// `WGP_LAYOUT_VERSION` of who wrote it.
    public var layout: Int
    public var maps: [MapImage]

    public init(_ maps: NodeMaps) throws(BPFError) {
        layout = PinLayout.version
        var images: [MapImage] = []
        for map in maps.all { images.append(try map.image()) }
        self.maps = images + [maps.events.ring.image]
    }
}

extension MapArchive: MapSource {
    public func open<Key, Value>(_ name: String) throws(BPFError) -> BPFMap<Key, Value> {
        try BPFMap(try image(name))
    }

    public func openRing(_ name: String) throws(BPFError) -> BPFRingMap { BPFRingMap(try image(name)) }

    private func image(_ name: String) throws(BPFError) -> MapImage {
        guard layout == PinLayout.version else {
            throw .archiveLayout(expected: PinLayout.version, found: layout)
        }
        guard let image = maps.first(where: { $0.name == name }) else {
            throw .layout(subject: "the archive", expected: "a map \(name)", found: "none")
        }
        return image
    }
}
