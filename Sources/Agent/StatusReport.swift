// SPDX-License-Identifier: Apache-2.0

internal import Foundation
public import Model
internal import SystemDescriptors

/// What an agent tells of itself: written to a file at every change, read by `wgplane status`.
///
/// A contract (`schema` 1): fields are added, never changed or taken away within a schema.
public struct StatusReport: Sendable, Codable, Equatable {
    public struct Peer: Sendable, Codable, Equatable {
        public var node: String
        public var publicKey: PublicKey
        public var endpoint: String
        /// `ready`, `handshaking`, `changingKey`, `retiring`.
        public var state: String
        /// `tunnel`, `clear` (dropped in strict mode), `exempt` (in clear by the operator's choice).
        public var action: String
        /// Key that carries the node's traffic, where it is another than the one that it publishes.
        public var carrier: PublicKey?
    }

    /// What the agent has changed since its start.
    public struct Work: Sendable, Codable, Equatable {
        /// Changes asked for by netlink.
        public var netlinkChanges = 0
        /// Entries written to or taken from BPF maps.
        public var mapWrites = 0
        /// Peers of WireGuard devices made, changed or removed.
        public var peerChanges = 0

        public init(netlinkChanges: Int = 0, mapWrites: Int = 0, peerChanges: Int = 0) {
            self.netlinkChanges = netlinkChanges
            self.mapWrites = mapWrites
            self.peerChanges = peerChanges
        }
    }

    public struct Family: Sendable, Codable, Equatable {
        /// `on`, `draining`.
        public var phase: String
        public var device: String
        public var interface: UInt32
        public var publicKey: PublicKey?
        public var address: IPAddress?
        public var listeningPort: UInt16
        public var mtu: UInt32
        public var peers: [Peer]
        /// Nodes with pods that packets go to in clear.
        public var unencryptedNodes: [String]
    }

    public struct Attachment: Sendable, Codable, Equatable {
        public var hook: String
        public var device: String
    }

    public var schema = 1
    public var node: String
    public var process: Int32
    /// `ebpf`, `route`, `disabled`.
    public var mode: String
    /// Why this mode.
    public var modeReason = ""
    public var datastore: String
    /// The same as it is said to `--datastore`; empty: nobody has told.
    public var datastoreArgument = ""
    /// `ready`, `waiting` (it has not told all yet), `unavailable`, `stale` (an earlier agent's memory is in use).
    public var datastoreState: String
    public var routeSource: String
    /// `kernel`, `userspace`; empty while disabled.
    public var backend: String
    /// `tcx`, `clsact`; empty in other modes than eBPF.
    public var attachment: String
    /// `Direct`, `Stack`; empty in other modes than eBPF.
    public var steeringPath: String
    public var steeringPathReason: String
    /// What cannot be encrypted is dropped.
    public var strictMode = false
    /// Nodes' own traffic is encrypted too.
    public var hostEncryption = false
    public var ipv4: Family?
    public var ipv6: Family?
    public var attachments: [Attachment]
    /// Of route mode; 0 in others.
    public var routeTable: UInt32 = 0
    /// Where rules of ours are in the node's firewall: `nftables`, `iptables-nft`, `iptables-legacy`; empty: none.
    public var firewall = ""
    /// Chains of the firewall that would drop WireGuard's packets, and have a rule of ours before.
    public var firewallExceptions: [String] = []
    /// Every setting in force, and where it comes from.
    public var settings: [SettingValue] = []
    public var work = Work()
    public var problems: [Problem]

    public subscript(family: AddressFamily) -> Family? {
        get { family == .ipv4 ? ipv4 : ipv6 }
        set { if family == .ipv4 { ipv4 = newValue } else { ipv6 = newValue } }
    }

    /// Where an agent keeps it.
    public static func path(runDirectory: String) -> String { "\(runDirectory)/status.json" }

    public static func read(runDirectory: String) throws -> StatusReport {
        let bytes = try readFile(path(runDirectory: runDirectory))
        return try JSONDecoder().decode(StatusReport.self, from: Data(bytes))
    }

    public func write(runDirectory: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        try replaceFile(Self.path(runDirectory: runDirectory), with: Array(try encoder.encode(self)), mode: 0o600)
    }
}

extension StatusReport {
    /// Where the agent serves its page.
    public var dashboard: DashboardSettings { Settings(inForce: settings).dashboard }

    /// Reads one of an earlier version too: what it does not tell is as it begins.
    public init(from decoder: any Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        func word(_ key: CodingKeys) throws -> String { try fields.decodeIfPresent(String.self, forKey: key) ?? "" }
        self.init(
            node: try fields.decode(String.self, forKey: .node),
            process: try fields.decode(Int32.self, forKey: .process), mode: try word(.mode),
            modeReason: try word(.modeReason), datastore: try word(.datastore),
            datastoreState: try word(.datastoreState), routeSource: try word(.routeSource),
            backend: try word(.backend), attachment: try word(.attachment), steeringPath: try word(.steeringPath),
            steeringPathReason: try word(.steeringPathReason),
            attachments: try fields.decodeIfPresent([Attachment].self, forKey: .attachments) ?? [],
            problems: try fields.decodeIfPresent([Problem].self, forKey: .problems) ?? [])
        schema = try fields.decodeIfPresent(Int.self, forKey: .schema) ?? 1
        strictMode = try fields.decodeIfPresent(Bool.self, forKey: .strictMode) ?? false
        datastoreArgument = try word(.datastoreArgument)
        hostEncryption = try fields.decodeIfPresent(Bool.self, forKey: .hostEncryption) ?? false
        ipv4 = try fields.decodeIfPresent(Family.self, forKey: .ipv4)
        ipv6 = try fields.decodeIfPresent(Family.self, forKey: .ipv6)
        routeTable = try fields.decodeIfPresent(UInt32.self, forKey: .routeTable) ?? 0
        firewall = try word(.firewall)
        firewallExceptions = try fields.decodeIfPresent([String].self, forKey: .firewallExceptions) ?? []
        settings = try fields.decodeIfPresent([SettingValue].self, forKey: .settings) ?? []
        work = try fields.decodeIfPresent(Work.self, forKey: .work) ?? Work()
    }
}
