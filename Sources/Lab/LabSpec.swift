// SPDX-License-Identifier: Apache-2.0

public import Model
internal import OrderedCollections
internal import SystemDescriptors

/// Where a lab's resources are.
public enum LabDatastore: String, Sendable, Hashable, Codable, CaseIterable {
    /// A folder that all nodes see.
    case directory
    /// A real etcd, or a real kube-apiserver, on a machine of its own: the place `control`.
    case etcd, kubernetes
}

/// What a lab is made of.
public struct LabSpec: Sendable, Hashable, Codable {
    /// Names the lab; several may run side by side.
    public var name: String
    public var nodes: Int
    /// Pods of each node.
    public var pods: Int
    public var families: [AddressFamily]
    public var backend: WireGuardBackendChoice
    public var attachment: AttachmentChoice
    public var mode: ModeChoice
    /// Of the pods' devices, both ends.
    public var podMTU: UInt32
    public var datastore: LabDatastore
    public var platform: LabPlatform
    /// Folder of what is applied to an API server: `scripts/deploy`.
    public var manifests: String

    public init(
        name: String = "lab", nodes: Int = 3, pods: Int = 2, families: [AddressFamily] = [.ipv4],
        backend: WireGuardBackendChoice = .auto, attachment: AttachmentChoice = .auto, mode: ModeChoice = .auto,
        podMTU: UInt32 = 1420, datastore: LabDatastore = .directory, manifests: String = "scripts/deploy",
        platform: LabPlatform = .onPremises
    ) {
        self.platform = platform
        self.datastore = datastore
        self.manifests = manifests
        self.mode = mode
        self.podMTU = podMTU
        self.name = name
        self.nodes = nodes
        self.pods = pods
        self.families = families
        self.backend = backend
        self.attachment = attachment
    }

    /// Throws what is out of range.
    public func check() throws {
        var reader = FieldReader(.object([:]), resource: "lab")
        if !(1...40).contains(name.utf8.count) || !name.utf8.allSatisfy({ Self.isNameByte($0) }) {
            reader.report("--name", value: name, "is no lab name", remedy: "use 1 to 40 letters, digits and '-'")
        }
        if !(1...64).contains(nodes) {
            reader.report("--nodes", value: "\(nodes)", "is out of range", remedy: "use 1 to 64")
        }
        if !(0...40).contains(pods) {
            reader.report("--pods", value: "\(pods)", "is out of range", remedy: "use 0 to 40")
        }
        if !(1280...65535).contains(podMTU) {
            reader.report("--pod-mtu", value: "\(podMTU)", "is out of range", remedy: "use 1280 to 65535")
        }
        if datastore == .kubernetes, !fileExists("\(manifests)/base/rbac.yaml") {
            reader.report(
                "--manifests", value: manifests, "holds no base/rbac.yaml",
                remedy: "run it in the checkout, or name its scripts/deploy")
        }
        if !reader.problems.isEmpty { throw ProblemsError(reader.problems) }
    }

    private static func isNameByte(_ byte: UInt8) -> Bool {
        (48...57).contains(byte) || (97...122).contains(byte) || (65...90).contains(byte) || byte == 45
    }
}

/// The lab's addresses: fixed, so that people recognise them.
public enum LabAddresses {
    /// 10.0.0.N, fd00::N.
    public static func node(_ number: Int, _ family: AddressFamily) -> IPAddress {
        family == .ipv4
            ? IPAddress(family: .ipv4, bits: 0x0a00_0000 + UInt128(number))
            : IPAddress(family: .ipv6, bits: UInt128(0xfd00) << 112 + UInt128(number))
    }

    /// 10.0.0.254, fd00::fe: the underlay itself.
    public static func gateway(_ family: AddressFamily) -> IPAddress { node(254, family) }

    /// 10.0.0.250, fd00::fa: where etcd or the API server is.
    public static func control(_ family: AddressFamily) -> IPAddress { node(250, family) }

    /// 10.48.0.0/16, fd48::/48.
    public static func pool(_ family: AddressFamily) -> CIDR {
        prefix(family, bits: family == .ipv4 ? 0x0a30_0000 : UInt128(0xfd48) << 112, length: family == .ipv4 ? 16 : 48)
    }

    /// 10.48.N.0/26, fd48:0:0:N::/122.
    public static func block(_ number: Int, _ family: AddressFamily) -> CIDR {
        let shift: UInt128 = family == .ipv4 ? 8 : 64
        return prefix(
            family, bits: pool(family).address.bits + UInt128(number) << shift, length: family == .ipv4 ? 26 : 122)
    }

    /// The pod's address in its node's block: 1 for the first pod.
    public static func pod(_ node: Int, _ pod: Int, _ family: AddressFamily) -> IPAddress {
        IPAddress(family: family, bits: block(node, family).address.bits + UInt128(pod))
    }

    private static func prefix(_ family: AddressFamily, bits: UInt128, length: Int) -> CIDR {
        guard let cidr = CIDR(masking: IPAddress(family: family, bits: bits), prefixLength: length) else {
            preconditionFailure("the lab's prefixes are well formed")
        }
        return cidr
    }
}

/// A pod of the lab.
public struct LabPod: Sendable, Hashable, Codable {
    public var name: String
    /// Number of its node, from 1.
    public var node: Int
    public var addresses: [IPAddress]
    /// Host-side device.
    public var device: String
}

/// What a lab has made, kept in a file so that any process can use or end it.
public struct LabState: Sendable, Codable {
    public var spec: LabSpec
    public var pods: [LabPod] = []

    public init(spec: LabSpec) { self.spec = spec }
}

/// Where a lab's files are.
public struct LabPaths: Sendable, Hashable {
    public static let parent = "/run/wgplane-lab"
    public var root: String

    public init(_ name: String) { root = "\(Self.parent)/\(name)" }

    public var state: String { "\(root)/lab.json" }
    public var datastore: String { "\(root)/datastore" }
    /// Of the datastore's server: data, certificates, logs.
    public var control: String { "\(root)/control" }
    public var bpf: String { "\(root)/bpf" }
    public var namespaces: String { "\(root)/ns" }
    public func node(_ name: String) -> String { "\(root)/nodes/\(name)" }
    public func run(_ node: String) -> String { "\(self.node(node))/run" }
    /// Seen from outside: what is `/run/wgplane` on the node.
    public func runDirectory(_ node: String) -> String { "\(run(node))/wgplane" }
    public func log(_ node: String) -> String { "\(self.node(node))/agent.log" }
    /// Pins of a node, seen from outside: what is `/sys/fs/bpf/wgplane` on the node.
    public func pins(_ node: String) -> String { "\(bpf)/\(node)/wgplane" }

    /// What outlives a reboot, on a node.
    static let stateOnNode = "/run/wgplane/state"
    /// What nodes need to get at a server.
    static let accessOnNode = "/run/wgplane-access"
    /// Folder of the datastore as nodes see it.
    public static let datastoreOnNode = "/run/wgplane/datastore"
}
