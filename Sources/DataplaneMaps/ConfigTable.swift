// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model

/// What the programs need to know of the node's configuration.
public struct DataplaneConfig: Sendable, Hashable, Codable {
    /// One family's device.
    public struct Device: Sendable, Hashable, Codable {
        public var interface: UInt32
        public var listeningPort: UInt16
        /// Nil: it has none yet.
        public var address: IPAddress?

        public init(interface: UInt32, listeningPort: UInt16, address: IPAddress? = nil) {
            self.interface = interface
            self.listeningPort = listeningPort
            self.address = address
        }
    }

    /// Nil: the family is off.
    public var ipv4: Device?
    public var ipv6: Device?
    public var firewallMark: UInt32
    public var isDirect: Bool
    /// Source ports of the masquerade, both ends included.
    public var masqueradePorts: ClosedRange<UInt16> = 32768...60999

    public init(ipv4: Device?, ipv6: Device?, firewallMark: UInt32, isDirect: Bool) {
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.firewallMark = firewallMark
        self.isDirect = isDirect
    }

    public subscript(family: AddressFamily) -> Device? { family == .ipv4 ? ipv4 : ipv6 }

    /// This, with some families' devices as another has them.
    public func keeping(_ families: Set<AddressFamily>, of other: DataplaneConfig?) -> DataplaneConfig {
        var result = self
        if families.contains(.ipv4) { result.ipv4 = other?.ipv4 }
        if families.contains(.ipv6) { result.ipv6 = other?.ipv6 }
        return result
    }
}

/// The map of the one configuration entry.
public struct ConfigTable: Sendable {
    let map: BPFMap<UInt32, wgp_config>

    init(_ layout: PinLayout) throws(BPFError) {
        map = try BPFMap(pinned: layout.map("config"), name: "config")
    }

    /// What is in force; the second value is the generation.
    public func read() throws(BPFError) -> (DataplaneConfig, generation: UInt32) {
        let raw = try map.lookup(0) ?? wgp_config()
        func device(_ flag: UInt32, _ index: UInt32, _ port: UInt16, _ address: IPAddress) -> DataplaneConfig.Device? {
            guard raw.flags & flag != 0 else { return nil }
            return .init(interface: index, listeningPort: port, address: address.isUnspecified ? nil : address)
        }
        var config = DataplaneConfig(
            ipv4: device(
                WGP_CONFIG_ENABLED4.rawValue, raw.ifindex4, raw.port4, IPAddress(networkOrder32: raw.tunnel4)),
            ipv6: device(
                WGP_CONFIG_ENABLED6.rawValue, raw.ifindex6, raw.port6, IPAddress(.ipv6, field: raw.tunnel6)),
            firewallMark: raw.mark, isDirect: raw.flags & WGP_CONFIG_DIRECT.rawValue != 0)
        if raw.port_min <= raw.port_max { config.masqueradePorts = raw.port_min...raw.port_max }
        return (config, raw.generation)
    }

    /// Writes all, and raises the generation so that flows are decided anew.
    public func write(_ config: DataplaneConfig) throws(BPFError) {
        var raw = wgp_config()
        raw.generation = try (map.lookup(0) ?? wgp_config()).generation &+ 1
        if config.ipv4 != nil { raw.flags |= WGP_CONFIG_ENABLED4.rawValue }
        if config.ipv6 != nil { raw.flags |= WGP_CONFIG_ENABLED6.rawValue }
        if config.isDirect { raw.flags |= WGP_CONFIG_DIRECT.rawValue }
        raw.mark = config.firewallMark
        raw.ifindex4 = config.ipv4?.interface ?? 0
        raw.ifindex6 = config.ipv6?.interface ?? 0
        raw.port4 = config.ipv4?.listeningPort ?? 0
        raw.port6 = config.ipv6?.listeningPort ?? 0
        raw.port_min = config.masqueradePorts.lowerBound
        raw.port_max = config.masqueradePorts.upperBound
        raw.tunnel4 = config.ipv4?.address?.networkOrder32 ?? 0
        if let address = config.ipv6?.address { raw.tunnel6 = value(address.bytes) }
        try map.update(0, raw)
    }

    /// Makes every flow be decided anew.
    public func raiseGeneration() throws(BPFError) {
        guard var raw = try map.lookup(0) else { return }
        raw.generation &+= 1
        try map.update(0, raw)
    }
}

/// Packets and bytes that went one way at one hook.
public struct CounterValue: Sendable, Hashable, Codable {
    public var packets: UInt64 = 0
    public var bytes: UInt64 = 0
}

/// The per-CPU counters.
public struct CounterTable: Sendable {
    let map: BPFMap<UInt32, wgp_counter>

    init(_ layout: PinLayout) throws(BPFError) {
        map = try BPFMap(pinned: layout.map("counters"), name: "counters")
    }

    /// The sum over all CPUs.
    public func read(_ hook: Hook, _ reason: Reason) throws(BPFError) -> CounterValue {
        let index = reason.rawValue * WGP_HOOK_COUNT.rawValue + hook.rawValue
        var sum = CounterValue()
        for value in try map.lookupPerCPU(index) ?? [] {
            sum.packets += value.packets
            sum.bytes += value.bytes
        }
        return sum
    }

    /// All that are not zero, by reason and hook.
    public func readAll() throws(BPFError) -> [(hook: Hook, reason: Reason, value: CounterValue)] {
        var result: [(hook: Hook, reason: Reason, value: CounterValue)] = []
        for reason in Reason.allCases {
            for hook in Hook.allCases {
                let value = try read(hook, reason)
                if value.packets != 0 { result.append((hook, reason, value)) }
            }
        }
        return result
    }

    /// Over all hooks.
    public func total(_ reason: Reason) throws(BPFError) -> CounterValue {
        var sum = CounterValue()
        for hook in Hook.allCases {
            let value = try read(hook, reason)
            sum.packets += value.packets
            sum.bytes += value.bytes
        }
        return sum
    }
}
