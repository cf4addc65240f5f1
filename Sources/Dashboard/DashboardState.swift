// SPDX-License-Identifier: Apache-2.0

public import Model

/// What the page shows: `GET /api/v1/state`, and each second an event of `GET /api/v1/events`.
///
/// A contract (`schema` 1): fields are added, never changed or taken away within a schema.
public struct DashboardState: Sendable, Codable, Equatable {
    public struct Peer: Sendable, Codable, Equatable {
        /// The node at the other end.
        public var node: String
        /// `IPv4`, `IPv6`: what is carried.
        public var family: String
        public var device: String
        public var publicKey: String
        public var endpoint: String
        /// As in `wgplane status`.
        public var state: String
        public var action: String
        /// Unix time in seconds; nil: there was none.
        public var latestHandshake: Int64?
        /// As WireGuard counts them.
        public var receivedBytes: UInt64
        public var sentBytes: UInt64

        public init(
            node: String, family: String, device: String, publicKey: String, endpoint: String, state: String,
            action: String, latestHandshake: Int64?, receivedBytes: UInt64, sentBytes: UInt64
        ) {
            self.node = node
            self.family = family
            self.device = device
            self.publicKey = publicKey
            self.endpoint = endpoint
            self.state = state
            self.action = action
            self.latestHandshake = latestHandshake
            self.receivedBytes = receivedBytes
            self.sentBytes = sentBytes
        }
    }

    public struct Trouble: Sendable, Codable, Equatable {
        /// `error`, `warning`.
        public var severity: String
        public var text: String

        public init(severity: String, text: String) {
            self.severity = severity
            self.text = text
        }
    }

    public struct Node: Sendable, Codable, Equatable {
        public var name: String
        /// `ebpf`, `route`, `disabled`.
        public var mode: String
        public var modeReason = ""
        public var backend = ""
        public var steeringPath = ""
        public var strictMode = false
        public var hostEncryption = false
        public var datastoreState = ""
        public var agentRunning = true
        /// How the export of flow records goes; empty: there is none.
        public var export = ""
        public var peers: [Peer] = []
        public var problems: [Trouble] = []
        public var settings: [SettingValue] = []

        public init(name: String, mode: String) {
            self.name = name
            self.mode = mode
        }
    }

    /// Flows that had a packet within the last minute, from one node to another.
    public struct Cell: Sendable, Codable, Equatable {
        public var from: String
        public var to: String
        /// Flows by what became of them.
        public var encrypted = 0
        public var clear = 0
        public var dropped = 0

        public init(from: String, to: String) {
            self.from = from
            self.to = to
        }
    }

    public struct Flow: Sendable, Codable, Equatable {
        /// Where it was seen.
        public var node: String
        /// Nodes at its ends; nil: unknown, or outside.
        public var sourceNode: String?
        public var destinationNode: String?
        public var transport: String
        public var source: String
        public var sourcePort: UInt16
        public var sourceName: String?
        public var destination: String
        public var destinationPort: UInt16
        public var destinationName: String?
        public var way: String
        public var peer: String?
        public var packets: UInt64
        public var bytes: UInt64
        public var reversePackets: UInt64
        public var reverseBytes: UInt64
        public var verdict: String
        public var dropReason: String?
    }

    public struct Drop: Sendable, Codable, Equatable {
        public var node: String
        public var reason: String
        public var hook: String
        public var packets: UInt64
        public var text: String

        public init(node: String, reason: String, hook: String, packets: UInt64, text: String) {
            self.node = node
            self.reason = reason
            self.hook = hook
            self.packets = packets
            self.text = text
        }
    }

    public var schema = 1
    /// A node's name, or a cluster's.
    public var title: String
    /// Unix time in seconds.
    public var time: Double
    public var nodes: [Node]
    public var matrix: [Cell] = []
    /// The busiest.
    public var flows: [Flow] = []
    /// Of all flows, and of those that no other node tells of.
    public var flowCount = 0
    public var ownFlowCount = 0
    public var drops: [Drop] = []

    public init(title: String, time: Double, nodes: [Node]) {
        self.title = title
        self.time = time
        self.nodes = nodes
    }

    /// One state of a cluster from those of its nodes.
    public static func cluster(_ title: String, time: Double, _ nodes: [DashboardState]) -> Self {
        var whole = Self(title: title, time: time, nodes: nodes.flatMap(\.nodes))
        // A flow between two nodes is in both their tables: the source's node tells of it.
        for node in nodes { whole.matrix += node.matrix.filter { $0.from == node.title } }
        whole.flows = Array(
            nodes.flatMap(\.flows).filter { $0.sourceNode == nil || $0.sourceNode == $0.node }.sorted {
                $0.bytes + $0.reverseBytes > $1.bytes + $1.reverseBytes
            }.prefix(40))
        whole.ownFlowCount = nodes.reduce(0) { $0 + $1.ownFlowCount }
        whole.flowCount = whole.ownFlowCount
        whole.drops = nodes.flatMap(\.drops)
        return whole
    }
}
