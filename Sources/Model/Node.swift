// SPDX-License-Identifier: Apache-2.0

/// The annotations of a Node by which the cluster's agents meet.
public enum NodeAnnotation {
    public static func publicKey(_ family: AddressFamily) -> String {
        family == .ipv4 ? "projectcalico.org/WireguardPublicKey" : "projectcalico.org/WireguardPublicKeyV6"
    }
    public static func interfaceAddress(_ family: AddressFamily) -> String {
        family == .ipv4
            ? "projectcalico.org/IPv4WireguardInterfaceAddr" : "projectcalico.org/IPv6WireguardInterfaceAddr"
    }
    /// The operator's word that a node without WireGuard is reached in clear, strict mode or not: `true`.
    public static let strictModeExempt = "wgplane.io/strict-mode-exempt"
    /// The UDP port that a node's WireGuard listens on now: written by its agent.
    public static func listeningPort(_ family: AddressFamily) -> String {
        "wgplane.io/wireguard-listening-port" + (family == .ipv4 ? "" : "-v6")
    }
    /// Where others reach a node's WireGuard, if not at its own address: `198.51.100.7`, `198.51.100.7:4500`,
    /// or `none` for a node behind NAT, which begins itself and whose endpoint is learned.
    public static func endpoint(_ family: AddressFamily) -> String {
        "wgplane.io/wireguard-endpoint" + (family == .ipv4 ? "" : "-v6")
    }
    /// The one public key that is believed to be a node's, where keys are pinned: the operator's word.
    public static func pinnedKey(_ family: AddressFamily) -> String {
        "wgplane.io/pinned-key" + (family == .ipv4 ? "" : "-v6")
    }
    /// How often a node sends its peers a packet, to keep a NAT's mapping: `25s`.
    public static let keepAlive = "wgplane.io/wireguard-keepalive"
    /// Calico's own word for a node's address, `10.0.0.1/24`.
    public static func nodeAddress(_ family: AddressFamily) -> String {
        family == .ipv4 ? "projectcalico.org/IPv4Address" : "projectcalico.org/IPv6Address"
    }
}

/// Where others reach a node's WireGuard.
public enum EndpointChoice: Sendable, Hashable, Codable {
    /// Nil: the node's own port.
    case at(IPAddress, port: UInt16?)
    /// Wherever it was last heard from.
    case learned
}

/// What wgplane reads of a Kubernetes Node.
public struct NodeResource: Sendable, Hashable, Codable {
    public var name: String
    /// Underlay address by family: WireGuard's endpoint.
    public var addresses: [AddressFamily: IPAddress] = [:]
    public var publicKeys: [AddressFamily: PublicKey] = [:]
    /// As the operator says.
    public var pinnedKeys: [AddressFamily: PublicKey] = [:]
    /// The operator has named a key that cannot be read: none is believed.
    public var unreadablePins: Set<AddressFamily> = []
    /// A key is published, and nobody can read it.
    public var unreadableKeys: Set<AddressFamily> = []
    /// As its agent tells.
    public var listeningPorts: [AddressFamily: UInt16] = [:]
    /// As the operator says.
    public var endpoints: [AddressFamily: EndpointChoice] = [:]
    /// Seconds; nil: as the settings say.
    public var keepAlive: UInt16?
    /// Addresses of the WireGuard devices.
    public var interfaceAddresses: [AddressFamily: IPAddress] = [:]
    public var podCIDRs: [CIDR] = []
    /// Scheme of `spec.providerID`: `aws`, `azure`; empty: none.
    public var provider = ""
    /// `ebpf`, `route`, `disabled`, and why, as its agent tells by the condition `WireGuardReady`; empty: nothing told.
    public var mode = ""
    public var modeMessage = ""
    /// Its pods are reached in clear where it has no WireGuard, strict mode or not.
    public var isStrictModeExempt = false
}

extension NodeResource {
    /// Reads a Node; fields with problems count as absent.
    public init(_ manifest: Manifest, problems: inout [Problem]) {
        var reader = FieldReader(manifest.content, resource: manifest.key.description)
        var result = NodeResource(name: manifest.key.name)
        let annotations = manifest.annotations
        reader.object("spec") { spec in
            var texts = spec.strings("podCIDRs")
            if texts.isEmpty, let single = spec.string("podCIDR") { texts = [single] }
            result.provider = String((spec.string("providerID") ?? "").prefix { $0 != ":" })
            for text in texts where !text.isEmpty {
                if let cidr = CIDR(text) {
                    result.podCIDRs.append(cidr)
                } else {
                    spec.report(
                        "podCIDRs", value: text, "is not a prefix with its host bits zero",
                        remedy: "write it like 10.244.1.0/24")
                }
            }
        }
        reader.object("status") { status in
            let addresses: [IPAddress] = status.objects("addresses") { entry in
                guard entry.string("type") == "InternalIP" else { return nil }
                return entry.address("address")
            }
            for address in addresses where result.addresses[address.family] == nil {
                result.addresses[address.family] = address
            }
            let told: [(String, String)] = status.objects("conditions") { condition in
                guard condition.string("type") == "WireGuardReady" else { return nil }
                return (condition.string("reason") ?? "", condition.string("message") ?? "")
            }
            if let (reason, message) = told.first { (result.mode, result.modeMessage) = (reason.lowercased(), message) }
        }
        if let text = annotations[NodeAnnotation.strictModeExempt] {
            result.isStrictModeExempt = text == "true"
            if text != "true", text != "false" {
                reader.report(
                    "metadata.annotations[\(NodeAnnotation.strictModeExempt)]", value: text, "is not true or false",
                    remedy: "set it to true, or remove it")
            }
        }
        if let text = annotations[NodeAnnotation.keepAlive] {
            let seconds = FieldReader.seconds(text) ?? -1
            if (0...65535).contains(seconds) {
                result.keepAlive = UInt16(seconds)
            } else {
                reader.report(
                    "metadata.annotations[\(NodeAnnotation.keepAlive)]", value: text,
                    "is no duration from 0s to 65535s", remedy: "write it like 25s")
            }
        }
        for family in AddressFamily.allCases {
            func annotation<Value>(_ name: String, _ expected: String, _ parse: (String) -> Value?) -> Value? {
                guard let text = annotations[name], !text.isEmpty else { return nil }
                if let value = parse(text) { return value }
                reader.report(
                    "metadata.annotations[\(name)]", value: text, "is not \(expected)",
                    remedy: "remove the annotation; the node's agent writes it anew")
                return nil
            }
            if let address = annotation(
                NodeAnnotation.nodeAddress(family), "an \(family) address",
                { text in
                    IPAddress(String(text.split(separator: "/").first ?? "")).flatMap { $0.family == family ? $0 : nil }
                })
            {
                result.addresses[family] = address
            }
            result.listeningPorts[family] = annotation(
                NodeAnnotation.listeningPort(family), "a port", { UInt16($0).flatMap { $0 == 0 ? nil : $0 } })
            if let text = annotations[NodeAnnotation.endpoint(family)] {
                result.endpoints[family] = EndpointChoice(text, family)
                if result.endpoints[family] == nil {
                    reader.report(
                        "metadata.annotations[\(NodeAnnotation.endpoint(family))]", value: text,
                        "is not an \(family) address, with or without a port",
                        remedy:
                            "write it like \(family == .ipv4 ? "198.51.100.7:51820" : "[2001:db8::7]:51821"), or none")
                }
            }
            result.publicKeys[family] = annotation(
                NodeAnnotation.publicKey(family), "a WireGuard public key of 32 bytes in base64", { PublicKey($0) })
            if result.publicKeys[family] == nil, annotations[NodeAnnotation.publicKey(family)]?.isEmpty == false {
                result.unreadableKeys.insert(family)
            }
            if let text = annotations[NodeAnnotation.pinnedKey(family)] {
                result.pinnedKeys[family] = PublicKey(text)
                if result.pinnedKeys[family] == nil {
                    result.unreadablePins.insert(family)
                    reader.report(
                        "metadata.annotations[\(NodeAnnotation.pinnedKey(family))]", value: text,
                        "is not a WireGuard public key of 32 bytes in base64",
                        remedy: "copy it from `wg show` on the node, or remove it")
                }
            }
            result.interfaceAddresses[family] = annotation(
                NodeAnnotation.interfaceAddress(family), "an \(family) address",
                { IPAddress($0).flatMap { $0.family == family ? $0 : nil } })
        }
        problems += reader.problems
        self = result
    }
}

/// What wgplane reads of a Kubernetes Pod.
public struct PodResource: Sendable, Hashable, Codable {
    public var namespace: String
    public var name: String
    /// Node that it is bound to; empty: not yet.
    public var node: String
    public var addresses: [IPAddress]
    public var isHostNetwork: Bool
    /// One of Calico's own agents.
    public var isCalicoNode = false
    /// Succeeded or Failed: it runs no more, and its addresses may be another's.
    public var isFinished: Bool
    /// What it may send from beside its own addresses, where that is permitted.
    public var allowedSources: [CIDR] = []
    /// What has made it, `deployment/web`; empty: nobody has.
    public var workload = ""

    /// `namespace/name`.
    public var description: String { "\(namespace)/\(name)" }
}

/// A pod that several tables have.
public final class SharedPod: Sendable {
    public let pod: PodResource

    public init(_ pod: PodResource) { self.pod = pod }
}

extension PodResource {
    /// As people read it: the namespace `default` is left out.
    public var shortName: String { namespace == "default" ? name : description }

    /// `namespace/kind/name` of what has made it; nil: nobody has.
    public var workloadName: String? { workload.isEmpty ? nil : "\(namespace)/\(workload)" }

    public var key: ResourceKey { ResourceKey(.pod, name, namespace: namespace) }

    /// Reads a Pod; fields with problems count as absent.
    public init(_ manifest: Manifest, problems: inout [Problem]) {
        var reader = FieldReader(manifest.content, resource: manifest.key.description)
        namespace = manifest.key.namespace
        name = manifest.key.name
        (node, isHostNetwork) = reader.object("spec") { spec in
            (spec.string("nodeName") ?? "", spec.bool("hostNetwork") ?? false)
        }
        isCalicoNode = manifest.content[["metadata", "labels", "k8s-app"]]?.text == "calico-node"
        (addresses, isFinished) = reader.object("status") { status in
            let phase = status.string("phase") ?? ""
            var found: [IPAddress] = status.objects("podIPs") { $0.address("ip") }
            if found.isEmpty, let single = status.address("podIP") { found = [single] }
            return (found, phase == "Succeeded" || phase == "Failed")
        }
        problems += reader.problems
        readAllowedSources(manifest, &problems)
        workload = Self.workload(manifest.content)
    }

    /// The owner that controls it; of a ReplicaSet whose name ends in the pod's template hash the Deployment.
    private static func workload(_ content: ManifestValue) -> String {
        guard case .array(let owners)? = content[["metadata", "ownerReferences"]] else { return "" }
        let owner = owners.first { $0["controller"]?.text == "true" } ?? owners.first
        guard let kind = owner?["kind"]?.text, let name = owner?["name"]?.text else { return "" }
        if kind == "ReplicaSet", let hash = content[["metadata", "labels", "pod-template-hash"]]?.text,
            name.hasSuffix("-\(hash)")
        {
            return "deployment/\(name.dropLast(hash.count + 1))"
        }
        return "\(kind.lowercased())/\(name)"
    }

    /// Calico's annotation: a list of prefixes in JSON.
    private mutating func readAllowedSources(_ manifest: Manifest, _ problems: inout [Problem]) {
        let name = "cni.projectcalico.org/allowedSourcePrefixes"
        guard let text = manifest.annotations[name] else { return }
        let trimmed = text.filter { !$0.isWhitespace }
        let items = trimmed.dropFirst().dropLast().split(separator: ",").map { $0.filter { $0 != "\"" } }
        let prefixes = items.map { item in CIDR(item) ?? IPAddress(item).map { CIDR(host: $0) } }
        guard trimmed.hasPrefix("["), trimmed.hasSuffix("]"), !prefixes.contains(nil) else {
            problems.append(
                Problem(
                    resource: manifest.key.description, field: "metadata.annotations[\(name)]", value: text,
                    message: "is no list of prefixes, and permits nothing",
                    remedy: "write it like [\"192.0.2.0/24\", \"2001:db8::/64\"]"))
            return
        }
        allowedSources = prefixes.compactMap { $0 }
    }
}

extension EndpointChoice {
    /// Reads `198.51.100.7`, `198.51.100.7:4500`, `2001:db8::7`, `[2001:db8::7]:4500`, `none`.
    init?(_ text: String, _ family: AddressFamily) {
        if text == "none" {
            self = .learned
            return
        }
        var host = text[...]
        var port: UInt16?
        if let colon = text.lastIndex(of: ":"), family == .ipv4 || text.hasPrefix("[") && !text.hasSuffix("]") {
            guard let number = UInt16(text[text.index(after: colon)...]), number != 0 else { return nil }
            port = number
            host = text[..<colon]
        }
        if host.hasPrefix("["), host.hasSuffix("]") { host = host.dropFirst().dropLast() }
        guard let address = IPAddress(String(host)), address.family == family else { return nil }
        self = .at(address, port: port)
    }
}
