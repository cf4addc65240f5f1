// SPDX-License-Identifier: Apache-2.0

/// Settings of one WireGuard device: of one family.
public struct DeviceSettings: Sendable, Hashable, Codable {
    /// Nil: nobody has said.
    public var enabled: Bool?
    public var interfaceName: String
    public var listeningPort: UInt16
    /// 0: from the underlay's.
    public var mtu: UInt32 = 0

    /// Felix's defaults.
    public init(_ family: AddressFamily) {
        interfaceName = family == .ipv4 ? "wireguard.cali" : "wg-v6.cali"
        listeningPort = family == .ipv4 ? 51820 : 51821
    }
}

/// The settings in force on one node, merged from all resources that bear on it.
public struct Settings: Sendable, Hashable, Codable {
    public var ipv4 = DeviceSettings(.ipv4)
    public var ipv6 = DeviceSettings(.ipv6)
    /// Seconds; 0: off.
    public var keepAlive: UInt16 = 0
    /// Nil: whichever source the datastore has.
    public var routeSource: RouteSource?
    public var attachment = AttachmentChoice.auto
    /// Regular expression of uplinks' names; Calico's default.
    public var dataInterfacePattern = "^((en|wl|ww|sl|ib)[Popsx].*|(eth|wlan|wwan|bond).*)"
    public var mode = ModeChoice.auto
    /// Nil: nobody has said; eBPF where the kernel can, else routes and rules.
    public var ebpfEnabled: Bool?
    public var backend = WireGuardBackendChoice.auto
    public var steeringPath = SteeringPathChoice.auto
    public var firewallMark: UInt32 = 0x2000_0000
    /// Of route mode's routing rule.
    public var rulePriority: UInt32 = 99
    /// Tables that route mode may use: the first that is free.
    public var routeTables: [ClosedRange<UInt32>] = [1...250]
    /// Packets are decrypted in a kernel thread of the device's own (NAPI).
    public var isThreaded = false
    public var offersMetrics = true
    public var packetLog = PacketLogLevel.off
    public var inputRule = InputRuleChoice.never
    /// Nil: nobody has said, and what is in force stays.
    public var strictMode: StrictModeChoice?
    /// Nil: nobody has said, and what was said last stays.
    public var keyPinning: KeyPinningChoice?
    /// Nil: nobody has said.
    public var hostEncryption: Bool?
    /// What stays in clear between nodes though hosts are encrypted: what a cluster needs to
    /// come up, as Felix's failsafe ports.
    public var hostExemptPorts = ["tcp:22", "tcp:179", "tcp:2379:2380", "tcp:5473", "tcp:6443"]
        .compactMap { PortRange($0) }
    public var segmentClamp = SegmentClamp.auto
    public var sourceCheck = SourceCheckChoice.enabled
    public var massDeletion = MassDeletionChoice.hold
    public var sourceSpoofing = SourceSpoofingChoice.disabled
    /// Source ports of the masquerade.
    public var natPorts: ClosedRange<UInt16> = 32768...60999
    /// UDP port of the CNI's VXLAN.
    public var vxlanPort: UInt16 = 4789
    public var flowExport = FlowExportSettings()
    public var dashboard = DashboardSettings()
    /// How pods' host-side devices are named, beside those that the kernel's routes tell.
    public var podInterfacePrefixes = ["cali", "eni", "azv", "lxc", "veth"]

    public init() {}

    public subscript(family: AddressFamily) -> DeviceSettings {
        get { family == .ipv4 ? ipv4 : ipv6 }
        set { if family == .ipv4 { ipv4 = newValue } else { ipv6 = newValue } }
    }

    /// As the devices are to be called.
    public var deviceNames: [String] { [ipv4.interfaceName, ipv6.interfaceName] }

    /// Whether WireGuard is switched on for a family; nil: nobody has said.
    public func isEnabled(_ family: AddressFamily) -> Bool? { mode == .disabled ? false : self[family].enabled }
}
