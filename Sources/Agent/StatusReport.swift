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
    /// `ebpf`, `disabled`.
    public var mode: String
    public var datastore: String
    /// `ready`, `waiting`, `unavailable`.
    public var datastoreState: String
    public var routeSource: String
    /// `kernel`, `userspace`; empty while disabled.
    public var backend: String
    /// `tcx`, `clsact`; empty while disabled.
    public var attachment: String
    /// `Direct`, `Stack`; empty while disabled.
    public var steeringPath: String
    public var steeringPathReason: String
    /// What cannot be encrypted is dropped.
    public var strictMode = false
    /// Nodes' own traffic is encrypted too.
    public var hostEncryption = false
    public var ipv4: Family?
    public var ipv6: Family?
    public var attachments: [Attachment]
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
