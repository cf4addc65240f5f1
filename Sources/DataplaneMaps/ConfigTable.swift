// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model

/// What the programs need to know of the node's configuration (`struct wgp_config`).
public struct DataplaneConfig: Sendable, Hashable, Codable {
    /// One family's device.
    public struct Device: Sendable, Hashable, Codable {
        /// 0: there is none, though the family is on: its packets are guarded, never steered.
        public var interface: UInt32
        public var listeningPort: UInt16
        /// While the port changes, the one before, or the one to come; 0: none. What comes to the one
        /// of the two that nobody listens on is led to the other.
        public var otherPort: UInt16 = 0
        /// Nil: it has none yet.
        public var address: IPAddress?
        /// 0: unknown, sizes are not looked at.
        public var mtu: UInt16
        /// Most that a TCP SYN may offer as its segment size; 0: it is left alone.
        public var maximumSegment: UInt16

        public init(
            interface: UInt32, listeningPort: UInt16, address: IPAddress? = nil, mtu: UInt16 = 0,
            maximumSegment: UInt16 = 0
        ) {
            self.interface = interface
            self.listeningPort = listeningPort
            self.address = address
            self.mtu = mtu
            self.maximumSegment = maximumSegment
        }

        /// Whether WireGuard's packets come by this port.
        public func listens(on port: UInt16) -> Bool {
            port == listeningPort || otherPort != 0 && port == otherPort
        }
    }

    /// Nil: the family is off.
    public var ipv4: Device?
    public var ipv6: Device?
    public var firewallMark: UInt32
    /// The one before, while it changes; 0: none.
    public var oldFirewallMark: UInt32 = 0
    /// A peer is behind NAT: whoever it is may speak WireGuard to us.
    public var admitsAnybody = false
    public var isDirect: Bool
    /// The programs that are attached by clsact work; else those of tcx.
    public var isClsact = false
    /// What cannot be encrypted is dropped.
    public var isStrict = false
    /// Traffic of the nodes themselves is promised too.
    public var encryptsHosts = false
    /// Pods send from their own addresses only.
    public var checksSources = false
    /// A flow's first packet asks conntrack.
    public var asksConntrack = false
    /// Source ports of the masquerade, both ends included.
    public var masqueradePorts: ClosedRange<UInt16> = 32768...60999
    /// UDP ports of overlays, at most two.
    public var vxlanPorts: [UInt16] = []
    /// What stays in clear between nodes though hosts are encrypted, at most `maximumExemptPorts`.
    public var exemptPorts: [PortRange] = []
    /// Length of the prefixes that routes keep in hashes, by family; none: 0.
    public var blockLengths: [AddressFamily: Int] = [:]

    public func blockLength(_ family: AddressFamily) -> Int { blockLengths[family] ?? 0 }

    /// `WGP_MAX_EXEMPT_PORTS`.
    public static let maximumExemptPorts = Int(WGP_MAX_EXEMPT_PORTS)

    public init(ipv4: Device?, ipv6: Device?, firewallMark: UInt32, isDirect: Bool) {
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.firewallMark = firewallMark
        self.isDirect = isDirect
    }

    public subscript(family: AddressFamily) -> Device? {
        get { family == .ipv4 ? ipv4 : ipv6 }
        set { if family == .ipv4 { ipv4 = newValue } else { ipv6 = newValue } }
    }

    /// This, with some families' devices as another has them.
    public func keeping(_ families: Set<AddressFamily>, of other: DataplaneConfig?) -> DataplaneConfig {
        var result = self
        // What was never in place cannot stay: such a family is as this says.
        for family in families where other?[family] != nil { result[family] = other?[family] }
        return result
    }
}

/// The map of the one configuration entry.
public struct ConfigTable: Sendable {
    let map: BPFMap<UInt32, wgp_config>

    init(_ source: some MapSource) throws(BPFError) {
        map = try source.open("config")
    }

    /// What is in force; the second value is the generation.
    public func read() throws(BPFError) -> (DataplaneConfig, generation: UInt32) {
        let raw = try map.lookup(0) ?? wgp_config()
        return (raw.model, raw.generation)
    }

    /// Writes all, and raises the generation so that flows are decided anew.
    public func write(_ config: DataplaneConfig) throws(BPFError) {
        var raw = wgp_config(config)
        raw.generation = try (map.lookup(0) ?? wgp_config()).generation &+ 1
        try map.update(0, raw)
    }

    /// Makes every flow be decided anew.
    public func raiseGeneration() throws(BPFError) {
        guard var raw = try map.lookup(0) else { return }
        raw.generation &+= 1
        try map.update(0, raw)
    }
}

extension wgp_config {
    private static let flagBits: [(any WritableKeyPath<DataplaneConfig, Bool> & Sendable, UInt32)] = [
        (\.isDirect, WGP_CONFIG_DIRECT.rawValue), (\.isStrict, WGP_CONFIG_STRICT.rawValue),
        (\.encryptsHosts, WGP_CONFIG_HOSTS.rawValue), (\.checksSources, WGP_CONFIG_SOURCES.rawValue),
        (\.isClsact, WGP_CONFIG_CLSACT.rawValue), (\.asksConntrack, WGP_CONFIG_CONNTRACK.rawValue),
        (\.admitsAnybody, WGP_CONFIG_ROAMING.rawValue),
    ]

    init(_ config: DataplaneConfig) {
        self.init()
        for (path, bit) in Self.flagBits where config[keyPath: path] { flags |= bit }
        mark = config.firewallMark
        old_mark = config.oldFirewallMark
        other_port4 = config.ipv4?.otherPort ?? 0
        other_port6 = config.ipv6?.otherPort ?? 0
        if let device = config.ipv4 {
            flags |= WGP_CONFIG_ENABLED4.rawValue
            (ifindex4, port4, mtu4, mss4) = (device.interface, device.listeningPort, device.mtu, device.maximumSegment)
            tunnel4 = device.address?.networkOrder32 ?? 0
        }
        if let device = config.ipv6 {
            flags |= WGP_CONFIG_ENABLED6.rawValue
            (ifindex6, port6, mtu6, mss6) = (device.interface, device.listeningPort, device.mtu, device.maximumSegment)
            if let address = device.address { tunnel6 = value(address.bytes) }
        }
        port_min = config.masqueradePorts.lowerBound
        port_max = config.masqueradePorts.upperBound
        vxlan_ports = (config.vxlanPorts.first ?? 0, config.vxlanPorts.dropFirst().first ?? 0)
        let ranges = config.exemptPorts.prefix(DataplaneConfig.maximumExemptPorts)
        exempt_count = UInt16(ranges.count)
        block4 = UInt8(config.blockLength(.ipv4))
        block6 = UInt8(config.blockLength(.ipv6))
        var bytes = ranges.flatMap {
            memory(
                of: wgp_port_range(
                    first: $0.ports.lowerBound, last: $0.ports.upperBound, protocol: $0.transport, pad: (0, 0, 0)))
        }
        bytes += [UInt8](repeating: 0, count: MemoryLayout.size(ofValue: exempt) - bytes.count)
        exempt = value(bytes)
    }

    var model: DataplaneConfig {
        let address4 = IPAddress(networkOrder32: tunnel4)
        let address6 = IPAddress(.ipv6, field: tunnel6)
        var config = DataplaneConfig(
            ipv4: flags & WGP_CONFIG_ENABLED4.rawValue == 0
                ? nil
                : .init(
                    interface: ifindex4, listeningPort: port4, address: address4.isUnspecified ? nil : address4,
                    mtu: mtu4, maximumSegment: mss4),
            ipv6: flags & WGP_CONFIG_ENABLED6.rawValue == 0
                ? nil
                : .init(
                    interface: ifindex6, listeningPort: port6, address: address6.isUnspecified ? nil : address6,
                    mtu: mtu6, maximumSegment: mss6),
            firewallMark: mark, isDirect: false)
        config.ipv4?.otherPort = other_port4
        config.ipv6?.otherPort = other_port6
        config.oldFirewallMark = old_mark
        for (path, bit) in Self.flagBits { config[keyPath: path] = flags & bit != 0 }
        if block4 != 0 { config.blockLengths[.ipv4] = Int(block4) }
        if block6 != 0 { config.blockLengths[.ipv6] = Int(block6) }
        if port_min <= port_max { config.masqueradePorts = port_min...port_max }
        config.vxlanPorts = [vxlan_ports.0, vxlan_ports.1].filter { $0 != 0 }
        let all = memory(of: exempt)
        let size = MemoryLayout<wgp_port_range>.size
        for index in 0..<min(Int(exempt_count), DataplaneConfig.maximumExemptPorts) {
            let range: wgp_port_range = value(Array(all[index * size..<(index + 1) * size]))
            guard range.first <= range.last else { continue }
            config.exemptPorts.append(PortRange(transport: range.protocol, ports: range.first...range.last))
        }
        return config
    }
}
