// SPDX-License-Identifier: Apache-2.0

extension Settings {
    /// Reads what a layer says over what is there; fields with errors stay as they are.
    mutating func read(_ layer: SettingLayer, _ problems: inout [Problem]) -> SettingLayer.Outcome {
        var reader = FieldReader(layer.content, resource: layer.origin, isText: layer.isText)
        let outcome = reader.object("spec") { spec in
            if layer.kind == .felixConfiguration { readFelix(&spec) } else { readDataplane(&spec) }
            let refused = spec.problems.filter { $0.severity == .error }.map {
                $0.field.dropFirst("spec.".count).prefix { $0 != "[" && $0 != "." }
            }
            return SettingLayer.Outcome(mentioned: spec.present, refused: Set(refused.map(String.init)))
        }
        problems += reader.problems
        return outcome
    }

    /// The families' devices must not be one: equal names or ports of IPv6 give way to defaults.
    mutating func separateFamilies(_ problems: inout [Problem]) {
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

    private mutating func readFelix(_ spec: inout FieldReader) {
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
        if let seconds = spec.seconds("wireguardKeepAlive") { keepAlive = seconds }
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
        readFelixRouting(&spec)
        readFelixTraffic(&spec)
        spec.reportUnknownFields { $0.lowercased().hasPrefix("wireguard") }
    }

    private mutating func readFelixRouting(_ spec: inout FieldReader) {
        if let flag = spec.bool("bpfEnabled") { ebpfEnabled = flag }
        if let priority = spec.integer("wireguardRoutingRulePriority", in: 1...32765) {
            rulePriority = UInt32(priority)
        }
        if let flag = spec.bool("wireguardThreadingEnabled") { isThreaded = flag }
        if let flag = spec.bool("prometheusWireGuardMetricsEnabled") { offersMetrics = flag }
        if let level: PacketLogLevel = spec.choice("bpfLogLevel") { packetLog = level }
        if let ranges = Self.tables(&spec) { routeTables = ranges }
    }

    /// A list of objects with `min` and `max`, or, as text, `1-250,300-400`.
    private static func tables(_ spec: inout FieldReader) -> [ClosedRange<UInt32>]? {
        let name = "routeTableRanges"
        guard let found = spec.field(name) else { return nil }
        let ends: [(Int64?, Int64?)]
        if case .array(let values) = found {
            ends = values.map { value in
                func end(_ key: String) -> Int64? { if case .integer(let end) = value[key] { end } else { nil } }
                return (end("min"), end("max"))
            }
        } else {
            ends = found.text.split(separator: ",", omittingEmptySubsequences: false).map { part in
                let numbers = part.split(separator: "-", omittingEmptySubsequences: false).map { Int64($0) }
                return numbers.count == 2 ? (numbers[0], numbers[1]) : (nil, nil)
            }
        }
        let ranges = ends.compactMap { low, high -> ClosedRange<UInt32>? in
            guard let low, let high, low >= 1, high <= UInt32.max, low <= high else { return nil }
            let range = UInt32(low)...UInt32(high)
            return range.overlaps(253...255) ? nil : range
        }
        guard !ranges.isEmpty, ranges.count == ends.count else {
            spec.report(
                name, value: found.text, "is no list of routing tables' numbers",
                remedy: "write it like [{min: 1, max: 250}]; 253 to 255 are the kernel's own")
            return nil
        }
        return ranges
    }

    private mutating func readFelixTraffic(_ spec: inout FieldReader) {
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

    private mutating func readDataplane(_ spec: inout FieldReader) {
        if let choice: ModeChoice = spec.choice("mode") { mode = choice }
        if let choice: WireGuardBackendChoice = spec.choice("wireguardBackend") { backend = choice }
        if let choice: SteeringPathChoice = spec.choice("wireguardSteeringPath") { steeringPath = choice }
        if let choice: StrictModeChoice = spec.choice("wireguardStrictMode") { strictMode = choice }
        if let choice: KeyPinningChoice = spec.choice("wireguardKeyPinning") { keyPinning = choice }
        if let choice: MassDeletionChoice = spec.choice("massDeletion") { massDeletion = choice }
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
        if let choice: InputRuleChoice = spec.choice("wireguardInputRule") { inputRule = choice }
        if let texts = spec.list("wireguardHostExemptPorts") { applyExemptPorts(texts, &spec) }
        readFlowExport(&spec)
        readDashboard(&spec)
        spec.reportUnknownFields()
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
