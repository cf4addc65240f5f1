// SPDX-License-Identifier: Apache-2.0

internal import Model

/// Why a record is made (IPFIX flowEndReason, RFC 5102 section 5.11.3).
public enum FlowEndReason: UInt8, Sendable, Hashable {
    /// No packet for the idle time-out.
    case idle = 1
    /// It goes on, and the active time-out has passed.
    case active = 2
    /// TCP has ended it.
    case end = 3
    /// The exporter stops.
    case forced = 4
    /// The table was full.
    case resources = 5

    public var name: String { "\(self)" }
}

/// What an exporter tells of a biflow: what has come since the last record of it, and in all.
public struct FlowRecord: Sendable, Hashable {
    public var flow: Biflow
    public var reason: FlowEndReason
    /// Since the record before.
    public var packets: UInt64
    public var bytes: UInt64
    public var reversePackets: UInt64
    public var reverseBytes: UInt64
    /// Unix time in milliseconds: of this record's first packet, as far as that is known, and of its last.
    public var start: UInt64
    public var end: UInt64

    public init(
        _ flow: Biflow, _ reason: FlowEndReason, packets: UInt64, bytes: UInt64, reversePackets: UInt64,
        reverseBytes: UInt64, start: UInt64, end: UInt64
    ) {
        self.flow = flow
        self.reason = reason
        self.packets = packets
        self.bytes = bytes
        self.reversePackets = reversePackets
        self.reverseBytes = reverseBytes
        self.start = start
        self.end = end
    }
}
