// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import BPFObjects
internal import CDataplaneABI
internal import Model

/// All maps of a node's data plane, opened from their pins.
public struct PinnedMaps: Sendable {
    public let layout: PinLayout
    public let config: ConfigTable
    public let destinations: DestinationTable
    public let routes: RouteTable
    public let locals: LocalTable
    public let endpoints: EndpointTable
    public let flows: FlowTable
    public let masquerade: MasqueradeTable
    public let counters: CounterTable

    /// Throws when a map is missing or has another layout.
    public init(_ layout: PinLayout) throws(BPFError) {
        self.layout = layout
        config = try ConfigTable(layout)
        destinations = try DestinationTable(layout)
        routes = try RouteTable(layout)
        locals = try LocalTable(layout)
        endpoints = try EndpointTable(layout)
        flows = try FlowTable(layout)
        masquerade = try MasqueradeTable(layout)
        counters = try CounterTable(layout)
    }

    /// Name, description and number of entries of every map; arrays count as full.
    public func list() throws(BPFError) -> [(name: String, information: BPFMapInformation, entries: Int)] {
        var result: [(name: String, information: BPFMapInformation, entries: Int)] = []
        func add<Key, Value>(_ map: BPFMap<Key, Value>) throws(BPFError) {
            let isArray = map.information.typeName.hasSuffix("array")
            result.append(
                (map.name, map.information, isArray ? map.information.maximumEntries : try map.keys().count))
        }
        try add(config.map)
        try add(counters.map)
        try add(destinations.map)
        try add(endpoints.table.ipv4)
        try add(endpoints.table.ipv6)
        try add(flows.ipv4)
        try add(flows.ipv6)
        try add(locals.table.ipv4)
        try add(locals.table.ipv6)
        try add(masquerade.ipv4)
        try add(masquerade.ipv6)
        try add(destinations.owners)
        try add(routes.addresses.ipv4)
        try add(routes.addresses.ipv6)
        try add(routes.prefixes4)
        try add(routes.prefixes6)
        return result
    }
}

/// The programs of the hooks.
public struct DataplanePrograms: Sendable {
    private var programs: [Key: BPFProgram] = [:]
    private let layout: PinLayout
    private var useCoarseClock: Bool

    private struct Key: Hashable {
        var hook: Hook
        var isEthernet: Bool
    }

    /// Loads the programs for Ethernet and WireGuard devices, which makes and pins the maps
    /// that are missing. Those for uplinks without an Ethernet header are loaded when asked for.
    public init(_ layout: PinLayout, useCoarseClock: Bool = true) throws(BPFError) {
        self.layout = layout
        self.useCoarseClock = useCoarseClock
        for (hook, isEthernet) in [
            (Hook.fromPod, true), (.toUplink, true), (.fromUplink, true), (.toWireGuard, false),
            (.fromWireGuard, false),
        ] { _ = try program(hook, isEthernet: isEthernet) }
    }

    /// The program of a hook for a device with or without an Ethernet header.
    public mutating func program(_ hook: Hook, isEthernet: Bool) throws(BPFError) -> BPFProgram {
        let key = Key(hook: hook, isEthernet: isEthernet)
        if let program = programs[key] { return program }
        while true {
            do {
                let program = try Self.load(
                    hook, layout, linkHeaderLength: isEthernet ? 14 : 0, coarse: useCoarseClock)
                programs[key] = program
                return program
            } catch {
                // Before 5.11 there is no bpf_ktime_get_coarse_ns, which verifiers refuse in
                // different words.
                guard useCoarseClock, case .verifier = error else { throw error }
                useCoarseClock = false
            }
        }
    }

    /// All programs that are loaded, with what tells them apart.
    public var all: [(hook: Hook, isEthernet: Bool, program: BPFProgram)] {
        programs.map { ($0.key.hook, $0.key.isEthernet, $0.value) }
            .sorted { ($0.hook.rawValue, $0.isEthernet ? 0 : 1) < ($1.hook.rawValue, $1.isEthernet ? 0 : 1) }
    }

    private static func load(
        _ hook: Hook, _ layout: PinLayout, linkHeaderLength: UInt32, coarse: Bool
    ) throws(BPFError) -> BPFProgram {
        let images: [BPFImage] = [.from_pod, .to_uplink, .from_uplink, .to_wireguard, .from_wireguard]
        guard let image = images.first(where: { $0.name == hook.name }),
            let bytes = image.base64.withUTF8Buffer({ Base64.decode(unsafe Array($0)) })
        else { preconditionFailure("the program of \(hook.name) is not embedded") }
        var object = try BPFObject(bytes, name: hook.name, pinFolder: layout.folder)
        try object.setConstants(wgp_constants(link_header_length: linkHeaderLength, coarse_clock: coarse ? 1 : 0))
        return try object.load()
    }
}
