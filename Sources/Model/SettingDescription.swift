// SPDX-License-Identifier: Apache-2.0

/// What there is to know of a setting: its name, where it stands, what it may be, what it does.
public struct SettingDescription: Sendable, Hashable {
    public let name: String
    /// The kind of resource that it is a field of.
    public let resource: ResourceKind
    /// Names that Felix has for it elsewhere.
    public let otherNames: [String]
    public let range: String
    public let effect: String
    /// How a change comes into force.
    public let change: String
    /// The value as it could be said; empty: nobody has said.
    let text: @Sendable (Settings) -> String
    /// Takes the value from other settings.
    let copy: @Sendable (inout Settings, Settings) -> Void

    public var defaultText: String { text(Settings()) }

    public static func == (a: Self, b: Self) -> Bool { a.name == b.name }
    public func hash(into hasher: inout Hasher) { hasher.combine(name) }

    /// By its name, in any case.
    public static func named(_ name: String) -> SettingDescription? {
        let name = name.lowercased()
        return all.first { ([$0.name] + $0.otherNames).contains { $0.lowercased() == name } }
    }

    init<Value>(
        _ name: String, _ resource: ResourceKind, _ path: any WritableKeyPath<Settings, Value> & Sendable,
        _ range: String,
        _ effect: String, change: String = "at once", otherNames: [String] = [],
        text: @escaping @Sendable (Value) -> String = { "\($0)" }
    ) {
        self.name = name
        self.resource = resource
        self.otherNames = otherNames
        self.range = range
        self.effect = effect
        self.change = change
        self.text = { text($0[keyPath: path]) }
        copy = { $0[keyPath: path] = $1[keyPath: path] }
    }

    /// Of one family's device.
    init<Value>(
        _ name: String, _ family: AddressFamily, _ path: any WritableKeyPath<DeviceSettings, Value> & Sendable,
        _ range: String, _ effect: String, change: String = "at once",
        text: @escaping @Sendable (Value) -> String = { "\($0)" }
    ) {
        self.name = name + (family == .ipv4 ? "" : "V6")
        resource = .felixConfiguration
        otherNames = []
        self.range = range
        self.effect = effect
        self.change = change
        self.text = { text($0[family][keyPath: path]) }
        copy = { $0[family][keyPath: path] = $1[family][keyPath: path] }
    }

    /// Every setting, Felix's first.
    public static let all: [SettingDescription] =
        device(.ipv4) + device(.ipv6) + felix + dataplane + flowExport + dashboard

    static func word<Choice: RawRepresentable<String>>(_ choice: Choice) -> String { choice.rawValue }

    static func words<Choice: RawRepresentable<String> & CaseIterable>(_: Choice.Type) -> String {
        Choice.allCases.map(\.rawValue).joined(separator: ", ")
    }

    private static func device(_ family: AddressFamily) -> [SettingDescription] {
        [
            SettingDescription(
                "wireguardEnabled", family, \.enabled, "true, false",
                "encrypts \(family) between pods of different nodes",
                change: "at once; off after the others know", text: { $0.map { "\($0)" } ?? "" }),
            SettingDescription(
                "wireguardInterfaceName", family, \.interfaceName, "1 to 15 characters without space, / and :",
                "name of the WireGuard device",
                change: "at once; before Linux 6.2, and with wireguard-go, the device is replaced"),
            SettingDescription(
                "wireguardListeningPort", family, \.listeningPort, "1 to 65535", "UDP port of the node's WireGuard",
                change: "at once; what still comes to the old port is taken for 5 s"),
            SettingDescription(
                "wireguardMTU", family, \.mtu,
                "0, or \(family == .ipv4 ? 576 : 1280) to 65535",
                "MTU of the device; 0: the uplink's less \(family == .ipv4 ? 60 : 80)"),
        ]
    }

    private static let felix: [SettingDescription] = [
        SettingDescription(
            "wireguardKeepAlive", .felixConfiguration, \.keepAlive, "0s to 65535s",
            "how often an idle peer is sent a packet, for NAT and firewalls between; 0s: never",
            otherNames: ["wireguardPersistentKeepAlive"], text: { "\($0)s" }),
        SettingDescription(
            "wireguardHostEncryptionEnabled", .felixConfiguration, \.hostEncryption, "true, false",
            "encrypts nodes' own traffic too; unset: on EKS and AKS only", text: { $0.map { "\($0)" } ?? "" }),
        SettingDescription(
            "wireguardThreadingEnabled", .felixConfiguration, \.isThreaded, "true, false",
            "the device's packets are taken by kernel threads of their own (NAPI), where the kernel has it"),
        SettingDescription(
            "wireguardRoutingRulePriority", .felixConfiguration, \.rulePriority, "1 to 32765",
            "priority of route mode's routing rule"),
        SettingDescription(
            "routeTableRanges", .felixConfiguration, \.routeTables, "lists of min and max, without 253 to 255",
            "routing tables that route mode may take: the first that is empty",
            text: { $0.map { "\($0.lowerBound)-\($0.upperBound)" }.joined(separator: ",") }),
        SettingDescription(
            "routeSource", .felixConfiguration, \.routeSource, words(RouteSource.self),
            "what says where pods' addresses are; unset: blocks where there are some, else podCIDRs, else pods",
            text: { $0?.rawValue ?? "" }),
        SettingDescription(
            "bpfEnabled", .felixConfiguration, \.ebpfEnabled, "true, false",
            "eBPF mode or route mode; unset: eBPF where the kernel can. Not looked at beside calico-node",
            text: { $0.map { "\($0)" } ?? "" }),
        SettingDescription(
            "bpfDataIfacePattern", .felixConfiguration, \.dataInterfacePattern, "a regular expression",
            "names of the devices that lead to other nodes"),
        SettingDescription(
            "bpfAttachType", .felixConfiguration, \.attachment, words(AttachmentChoice.self),
            "how programs are attached; Auto: TCX where the kernel has it",
            change: "at once; packets that are between two programs in that moment may be lost", text: word),
        SettingDescription(
            "bpfLogLevel", .felixConfiguration, \.packetLog, words(PacketLogLevel.self),
            "what the agent logs of packets: drops (Info), new flows too (Debug); at most 20 a second", text: word),
        SettingDescription(
            "prometheusWireGuardMetricsEnabled", .felixConfiguration, \.offersMetrics, "true, false",
            "WireGuard's families among the metrics, once there are any"),
        SettingDescription(
            "natPortRange", .felixConfiguration, \.natPorts, "FIRST:LAST", "source ports of the masquerade",
            text: { "\($0.lowerBound):\($0.upperBound)" }),
        SettingDescription(
            "vxlanPort", .felixConfiguration, \.vxlanPort, "1 to 65535",
            "UDP port of the CNI's VXLAN; flannel's 8472 is always known"),
        SettingDescription(
            "interfacePrefix", .felixConfiguration, \.podInterfacePrefixes, "names' beginnings",
            "how pods' devices are named, beside those that routes tell", text: { $0.joined(separator: ",") }),
        SettingDescription(
            "workloadSourceSpoofing", .felixConfiguration, \.sourceSpoofing, words(SourceSpoofingChoice.self),
            "Any: a pod may send from what its annotation cni.projectcalico.org/allowedSourcePrefixes lists",
            text: word),
    ]

}

extension SegmentClamp {
    /// As it could be said.
    var text: String {
        switch self {
        case .auto: "Auto"
        case .disabled: "Disabled"
        case .limit(let limit): "\(limit)"
        }
    }
}

extension SettingDescription {
    /// A line of the table in SETTINGS.md.
    public var documentationRow: String {
        let resource = self.resource == .felixConfiguration ? "Felix" : "Dataplane"
        let value = defaultText.isEmpty ? "unset" : "`\(defaultText.replacing("|", with: "\\|"))`"
        return "| `\(name)` | \(resource) | \(value) | \(range) | \(effect) | \(change) |"
    }
}
