// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
public import Foundation
public import Model
internal import Netlink
internal import SystemDescriptors
public import WireGuard

/// Everything that a support case needs of one node, at one moment, as one JSON document (`schema` 1).
///
/// No private key is in it: the kernel's answer with one is never read into it. A section that could not be
/// taken is named in `missing`, with the reason.
public struct NodeArchive: Sendable, Codable {
    /// A WireGuard device, without its private key.
    public struct Device: Sendable, Codable {
        public struct Peer: Sendable, Codable {
            public var publicKey: PublicKey
            public var endpoint: Endpoint?
            public var allowedIPs: [CIDR]
            /// Seconds; 0: off.
            public var persistentKeepalive: UInt16
            /// Unix time; nil: never.
            public var latestHandshake: Int64?
            public var receivedBytes: UInt64
            public var sentBytes: UInt64
        }

        public var name: String
        public var interface: UInt32
        public var backend: BackendKind
        public var publicKey: PublicKey?
        public var listeningPort: UInt16
        public var firewallMark: UInt32
        public var peers: [Peer]
    }

    public struct Link: Sendable, Codable {
        public var index: UInt32
        public var name: String
        public var kind: String
        public var mtu: UInt32
        public var isUp: Bool
        /// Our programs and others' at it, by tcx: their identifiers in the order in which they run.
        public var ingress: [UInt32]
        public var egress: [UInt32]
    }

    public struct Rule: Sendable, Codable {
        public var family: AddressFamily
        public var priority: UInt32
        public var table: UInt32
        public var mark: UInt32
        public var mask: UInt32
        public var isInverted: Bool
        public var origin: UInt8
    }

    public struct Route: Sendable, Codable {
        public var destination: CIDR
        public var interface: UInt32
        public var gateway: IPAddress?
        public var table: UInt32
        public var type: UInt8
        public var origin: UInt8
    }

    public static let kind = "wgplane.io/NodeArchive"

    public var schema = 1
    public var kind = Self.kind
    /// Version of wgplane that wrote it.
    public var version: String
    public var node: String
    public var taken: Date
    /// CLOCK_MONOTONIC in nanoseconds, which times of flows relate to.
    public var monotonic: UInt64
    public var kernel: String
    public var agentRunning: Bool
    public var report: StatusReport?
    public var maps: MapArchive?
    public var devices: [Device] = []
    public var links: [Link] = []
    public var rules: [Rule] = []
    public var routes: [Route] = []
    /// Pods and nodes by address.
    public var names: [String: String] = [:]
    /// Last lines of the agent's log.
    public var log: [String] = []
    public var missing: [String] = []

    /// Reads an archive; throws what it is that cannot be read, and why.
    public init(file: String) throws {
        func refusal(_ message: String) -> ProblemsError {
            ProblemsError(
                Problem(
                    resource: "Archive", field: "file", value: file, message: message,
                    remedy: "name a file that `wgplane maps dump --all --output FILE` has written"))
        }
        let bytes: [UInt8]
        do { bytes = try readFile(file, limit: 1 << 30) } catch { throw refusal("cannot be read: \(error)") }
        let decoder = JSONDecoder()
        decoder.dateDecodingStrategy = .iso8601
        struct Head: Decodable {
            var kind: String?
            var schema: Int?
        }
        let head = try? decoder.decode(Head.self, from: Data(bytes))
        guard let head, head.kind == Self.kind else { throw refusal("is no archive of a node") }
        guard head.schema == 1 else { throw refusal("has schema \(head.schema ?? 0), and this version reads 1") }
        do {
            self = try decoder.decode(NodeArchive.self, from: Data(bytes))
        } catch {
            throw refusal("is damaged: \(error)")
        }
    }

    /// The document.
    public func encoded() throws -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.dateEncodingStrategy = .iso8601
        return Array(try encoder.encode(self))
    }
}

extension NodeArchive {
    /// Takes one of this node as it is. `names`: of pods and nodes by address.
    public init(_ view: NodeView, version: String, names: [IPAddress: String]) {
        self.init(
            version: version, node: view.node, taken: Date(), monotonic: monotonicNanoseconds(),
            kernel: kernelRelease, agentRunning: view.isAgentRunning,
            names: Dictionary(uniqueKeysWithValues: names.map { ($0.key.description, $0.value) }))
        report = attempt("report") { try view.report() }
        maps = attempt("maps") { try MapArchive(view.maps()) }
        for family in AddressFamily.allCases {
            guard let name = report?[family]?.device else { continue }
            if let (backend, state) = attempt("device \(name)", { try view.device(name) }) ?? nil {
                devices.append(Device(name, backend, state))
            }
        }
        do { try takeNetwork() } catch { missing.append("network: \(error)") }
        log = view.recentLog()
        if log.isEmpty { missing.append("log: the agent keeps none in its run directory") }
    }

    private init(
        version: String, node: String, taken: Date, monotonic: UInt64, kernel: String, agentRunning: Bool,
        names: [String: String]
    ) {
        self.version = version
        self.node = node
        self.taken = taken
        self.monotonic = monotonic
        self.kernel = kernel
        self.agentRunning = agentRunning
        self.names = names
    }

    private mutating func attempt<Result>(_ what: String, _ body: () throws -> Result) -> Result? {
        do {
            return try body()
        } catch {
            missing.append("\(what): \(error)")
            return nil
        }
    }

    private mutating func takeNetwork() throws {
        let session = try RouteSession()
        links = try session.links().map(Link.init)
        for family in AddressFamily.allCases {
            rules += try session.rules(family).map(Rule.init)
            routes += try session.routes(family).map(Route.init)
        }
    }
}

extension NodeArchive.Device {
    init(_ name: String, _ backend: BackendKind, _ state: DeviceState) {
        self.init(
            name: name, interface: state.interface, backend: backend, publicKey: state.publicKey,
            listeningPort: state.listeningPort, firewallMark: state.firewallMark,
            peers: state.peers.sorted { $0.key < $1.key }.map { key, peer in
                Peer(
                    publicKey: key, endpoint: peer.endpoint, allowedIPs: peer.allowedIPs.sorted(),
                    persistentKeepalive: peer.keepAlive, latestHandshake: peer.lastHandshake,
                    receivedBytes: peer.receivedBytes, sentBytes: peer.sentBytes)
            })
    }

    var state: DeviceState {
        DeviceState(
            name: name, interface: interface, publicKey: publicKey, listeningPort: listeningPort,
            firewallMark: firewallMark,
            peers: Dictionary(
                peers.map { peer in
                    (
                        peer.publicKey,
                        PeerState(
                            endpoint: peer.endpoint, allowedIPs: Set(peer.allowedIPs),
                            keepAlive: peer.persistentKeepalive, lastHandshake: peer.latestHandshake,
                            receivedBytes: peer.receivedBytes, sentBytes: peer.sentBytes)
                    )
                }, uniquingKeysWith: { first, _ in first }))
    }
}

extension NodeArchive.Rule {
    init(_ rule: RoutingRule) {
        self.init(
            family: rule.family, priority: rule.priority, table: rule.table, mark: rule.mark, mask: rule.mask,
            isInverted: rule.isInverted, origin: rule.origin)
    }
}

extension NodeArchive.Route {
    init(_ route: Netlink.Route) {
        self.init(
            destination: route.destination, interface: route.index, gateway: route.gateway, table: route.table,
            type: route.type, origin: route.origin)
    }
}

extension NodeArchive.Link {
    init(_ link: Netlink.Link) {
        self.init(
            index: link.index, name: link.name, kind: link.kind, mtu: link.mtu, isUp: link.isUp,
            ingress: Attachment.tcxPrograms(interface: link.index, direction: .ingress),
            egress: Attachment.tcxPrograms(interface: link.index, direction: .egress))
    }
}
