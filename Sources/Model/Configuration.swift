// SPDX-License-Identifier: Apache-2.0

/// Which of Calico's sources says where a node's pod addresses are.
public enum RouteSource: String, Sendable, Hashable, Codable, CaseIterable {
    case calicoIPAM = "CalicoIPAM"
    case podCIDRs = "PodCIDRs"
    case workloadIPs = "WorkloadIPs"
}

/// Which implementation of WireGuard carries the packets.
public enum WireGuardBackendChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case auto = "Auto"
    case kernel = "Kernel"
    case userspace = "Userspace"
}

/// How BPF programs are attached to devices.
public enum AttachmentChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case auto = "Auto"
    case tcx = "TCX"
    case tc = "TC"
}

/// Whether pods' packets are redirected at once or go through the kernel's forwarding.
public enum SteeringPathChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case auto = "Auto"
    case direct = "Direct"
    case stack = "Stack"
}

/// The data plane of a node.
public enum ModeChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case auto = "Auto"
    case ebpf = "EBPF"
    case disabled = "Disabled"
}

/// What happens to traffic that is to be encrypted and cannot be.
public enum StrictModeChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case disabled = "Disabled"
    case enabled = "Enabled"
}

/// Whether a pod may send from addresses that are not its own (Calico's field).
public enum SourceSpoofingChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case disabled = "Disabled"
    /// From those that its annotation `cni.projectcalico.org/allowedSourcePrefixes` names.
    case any = "Any"
}

/// Whether pods' source addresses are checked.
public enum SourceCheckChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case enabled = "Enabled"
    case disabled = "Disabled"
}

/// What becomes of the segment size that TCP SYNs through the tunnel offer.
public enum SegmentClamp: Sendable, Hashable, Codable {
    /// As the device's MTU allows.
    case auto
    case disabled
    case limit(UInt16)
}

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
    public var backend = WireGuardBackendChoice.auto
    public var steeringPath = SteeringPathChoice.auto
    public var firewallMark: UInt32 = 0x2000_0000
    /// Nil: nobody has said, and what is in force stays.
    public var strictMode: StrictModeChoice?
    /// Nil: nobody has said.
    public var hostEncryption: Bool?
    /// What stays in clear between nodes though hosts are encrypted: what a cluster needs to
    /// come up, as Felix's failsafe ports.
    public var hostExemptPorts = ["tcp:22", "tcp:179", "tcp:2379:2380", "tcp:5473", "tcp:6443"]
        .compactMap { PortRange($0) }
    public var segmentClamp = SegmentClamp.auto
    public var sourceCheck = SourceCheckChoice.enabled
    public var sourceSpoofing = SourceSpoofingChoice.disabled
    /// Source ports of the masquerade.
    public var natPorts: ClosedRange<UInt16> = 32768...60999
    /// UDP port of the CNI's VXLAN.
    public var vxlanPort: UInt16 = 4789
    /// How pods' host-side devices are named, beside those that the kernel's routes tell.
    public var podInterfacePrefixes = ["cali", "eni", "azv", "lxc", "veth"]

    public init() {}

    public subscript(family: AddressFamily) -> DeviceSettings {
        get { family == .ipv4 ? ipv4 : ipv6 }
        set { if family == .ipv4 { ipv4 = newValue } else { ipv6 = newValue } }
    }

    /// Whether WireGuard is switched on for a family; nil: nobody has said.
    public func isEnabled(_ family: AddressFamily) -> Bool? { mode == .disabled ? false : self[family].enabled }
}

extension Settings {
    /// Merges `default`, then `node.<name>`, field by field: Felix's resource and ours.
    public init(
        felix: [Manifest], dataplane: [Manifest], node: String, problems: inout [Problem]
    ) {
        self.init()
        func inOrder(_ manifests: [Manifest]) -> [Manifest] {
            ["default", "node.\(node)"].compactMap { name in manifests.first { $0.key.name == name } }
        }
        for manifest in inOrder(felix) { applyFelix(manifest, &problems) }
        for manifest in inOrder(dataplane) { applyDataplane(manifest, &problems) }
        separateFamilies(&problems)
    }

    /// The families' devices must not be one: equal names or ports of IPv6 give way to defaults.
    private mutating func separateFamilies(_ problems: inout [Problem]) {
        func refuse(_ field: String, _ value: String) {
            problems.append(
                Problem(
                    resource: "FelixConfiguration/default", field: "spec.\(field)", value: value,
                    message: "is IPv4's too, and is not in force", remedy: "give each family its own"))
        }
        if ipv4.interfaceName == ipv6.interfaceName {
            refuse("wireguardInterfaceNameV6", ipv6.interfaceName)
            let names = [DeviceSettings(.ipv6).interfaceName, DeviceSettings(.ipv4).interfaceName]
            ipv6.interfaceName = names.first { $0 != ipv4.interfaceName } ?? ipv6.interfaceName
        }
        if ipv4.listeningPort == ipv6.listeningPort {
            refuse("wireguardListeningPortV6", "\(ipv6.listeningPort)")
            let ports = [DeviceSettings(.ipv6).listeningPort, DeviceSettings(.ipv4).listeningPort]
            ipv6.listeningPort = ports.first { $0 != ipv4.listeningPort } ?? ipv6.listeningPort
        }
    }

    /// The same, for whoever tells the problems elsewhere.
    public init(felix: [Manifest], dataplane: [Manifest], node: String) {
        var ignored: [Problem] = []
        self.init(felix: felix, dataplane: dataplane, node: node, problems: &ignored)
    }

    private mutating func applyFelix(_ manifest: Manifest, _ problems: inout [Problem]) {
        var reader = FieldReader(manifest.content, resource: manifest.key.description)
        reader.object("spec") { spec in
            for (family, suffix) in [(AddressFamily.ipv4, ""), (.ipv6, "V6")] {
                if let flag = spec.bool("wireguardEnabled" + suffix) { self[family].enabled = flag }
                if let name = spec.string("wireguardInterfaceName" + suffix) {
                    if Self.isInterfaceName(name) {
                        self[family].interfaceName = name
                    } else {
                        spec.report(
                            "wireguardInterfaceName" + suffix, value: name, "is no device name that Linux takes",
                            remedy: "use 1 to 15 characters without space and '/'")
                    }
                }
                if let port = spec.integer("wireguardListeningPort" + suffix, in: 1...65535) {
                    self[family].listeningPort = UInt16(port)
                }
                if let mtu = spec.integer("wireguardMTU" + suffix, in: 0...65535) {
                    if mtu == 0 || mtu >= (family == .ipv4 ? 576 : 1280) {
                        self[family].mtu = UInt32(mtu)
                    } else {
                        spec.report(
                            "wireguardMTU" + suffix, value: "\(mtu)", "is too small for \(family)",
                            remedy:
                                "use 0 for the underlay's less the overhead, or at least \(family == .ipv4 ? 576 : 1280)"
                        )
                    }
                }
            }
            if let seconds = spec.duration("wireguardKeepAlive") {
                if (0...65535).contains(seconds) {
                    keepAlive = UInt16(seconds)
                } else {
                    spec.report(
                        "wireguardKeepAlive", value: "\(seconds)s", "is out of range", remedy: "use 0s to 65535s")
                }
            }
            if let source: RouteSource = spec.choice("routeSource") { routeSource = source }
            if let choice: AttachmentChoice = spec.choice("bpfAttachType") { attachment = choice }
            if let pattern = spec.string("bpfDataIfacePattern"), !pattern.isEmpty {
                if (try? Regex(pattern)) != nil {
                    dataInterfacePattern = pattern
                } else {
                    spec.report(
                        "bpfDataIfacePattern", value: pattern, "is no regular expression",
                        remedy: "write it like ^(eth|ens).*")
                }
            }
            applyFelixTraffic(&spec)
            spec.reportUnknownFields(
                also: [
                    "bpfEnabled", "wireguardRoutingRulePriority", "wireguardThreadingEnabled",
                    "wireguardPersistentKeepAlive",
                ]
            ) { $0.lowercased().hasPrefix("wireguard") }
        }
        problems += reader.problems
    }

    private mutating func applyFelixTraffic(_ spec: inout FieldReader) {
        if let flag = spec.bool("wireguardHostEncryptionEnabled") { hostEncryption = flag }
        if let text = spec.string("natPortRange", orInteger: true) {
            if let range = PortRange.ports(text) {
                natPorts = range
            } else {
                spec.report("natPortRange", value: text, "is no range of ports", remedy: "write it like 32768:60999")
            }
        }
        if let port = spec.integer("vxlanPort", in: 1...65535) { vxlanPort = UInt16(port) }
        if let choice: SourceSpoofingChoice = spec.choice("workloadSourceSpoofing") { sourceSpoofing = choice }
        if let text = spec.string("interfacePrefix") {
            let names = text.split(separator: ",").map { $0.trimmingPrefix(" ").description }
            if !names.isEmpty, names.allSatisfy(Self.isInterfaceName) {
                podInterfacePrefixes = names
            } else {
                spec.report(
                    "interfacePrefix", value: text, "is no list of device names' beginnings",
                    remedy: "write it like cali,eni")
            }
        }
    }

    private mutating func applyDataplane(_ manifest: Manifest, _ problems: inout [Problem]) {
        var reader = FieldReader(manifest.content, resource: manifest.key.description)
        reader.object("spec") { spec in
            if let choice: ModeChoice = spec.choice("mode") { mode = choice }
            if let choice: WireGuardBackendChoice = spec.choice("wireguardBackend") { backend = choice }
            if let choice: SteeringPathChoice = spec.choice("wireguardSteeringPath") { steeringPath = choice }
            if let choice: StrictModeChoice = spec.choice("wireguardStrictMode") { strictMode = choice }
            if let choice: SourceCheckChoice = spec.choice("sourceCheck") { sourceCheck = choice }
            if let text = spec.string("wireguardFirewallMark") {
                let digits = text.lowercased().hasPrefix("0x") ? UInt32(text.dropFirst(2), radix: 16) : UInt32(text)
                if let mark = digits, mark != 0, mark & 0x3000 == 0 {
                    firewallMark = mark
                } else {
                    spec.report(
                        "wireguardFirewallMark", value: text, "is no usable mark",
                        remedy: "use a number other than 0 without the bits 0x3000, like 0x20000000")
                }
            }
            if let text = spec.string("wireguardMSSClamp", orInteger: true) {
                if text == "Auto" || text == "Disabled" {
                    segmentClamp = text == "Auto" ? .auto : .disabled
                } else if let limit = UInt16(text), limit >= 536 {
                    segmentClamp = .limit(limit)
                } else {
                    spec.report(
                        "wireguardMSSClamp", value: text, "is no segment size",
                        remedy: "use Auto, Disabled, or a number from 536 on")
                }
            }
            if let texts = spec.list("wireguardHostExemptPorts") { applyExemptPorts(texts, &spec) }
            spec.reportUnknownFields()
        }
        problems += reader.problems
    }

    private mutating func applyExemptPorts(_ texts: [String], _ spec: inout FieldReader) {
        let ranges = texts.map { PortRange($0) }
        if let bad = ranges.firstIndex(of: nil) {
            spec.report(
                "wireguardHostExemptPorts[\(bad)]", value: texts[bad], "is no protocol with ports",
                remedy: "write it like tcp:6443 or udp:8000:8100")
        } else if ranges.count > Self.maximumExemptPorts {
            spec.report(
                "wireguardHostExemptPorts", value: "\(texts.count) entries", "is too long",
                remedy: "use at most \(Self.maximumExemptPorts) ranges")
        } else {
            hostExemptPorts = ranges.compactMap { $0 }
        }
    }

    /// `WGP_MAX_EXEMPT_PORTS`.
    static let maximumExemptPorts = 16

    /// What Linux takes as a device name (`dev_valid_name`).
    public static func isInterfaceName(_ name: String) -> Bool {
        (1...15).contains(name.utf8.count) && name != "." && name != ".."
            && !name.utf8.contains { $0 == 0x2f || $0 == 0x3a || $0 <= 0x20 || $0 == 0x7f }
    }
}
