// SPDX-License-Identifier: Apache-2.0

internal import Flows
internal import Foundation
internal import Model

/// A record as a line of JSON: a contract (`schema` 1), to which fields are added and nothing else.
struct ExportLine: Encodable {
    var schema = 1
    /// `flow` or `pair`.
    var record: String
    /// Of the exporter.
    var exporter: String
    /// RFC 3339, of the first packet that the record tells of, as far as that is known, and of the last.
    var start: String
    var end: String
    /// Since the record before.
    var packets: UInt64
    var bytes: UInt64
    var reversePackets: UInt64
    var reverseBytes: UInt64
    /// `idle`, `active`, `end`, `forced`.
    var reason: String?
    /// With the counts since the flow began.
    var flow: Biflow?
    var flows: UInt64?
    var pair: AggregateRecord.Pair?

    init(_ value: FlowRecord, exporter: String) {
        record = "flow"
        self.exporter = exporter
        (start, end) = (Self.time(value.start), Self.time(value.end))
        (packets, bytes) = (value.packets, value.bytes)
        (reversePackets, reverseBytes) = (value.reversePackets, value.reverseBytes)
        reason = value.reason.name
        flow = value.flow
    }

    init(_ value: AggregateRecord, exporter: String) {
        record = "pair"
        self.exporter = exporter
        (start, end) = (Self.time(value.start), Self.time(value.end))
        (packets, bytes) = (value.packets, value.bytes)
        (reversePackets, reverseBytes) = (value.reversePackets, value.reverseBytes)
        flows = value.flows
        pair = value.pair
    }

    private static func time(_ milliseconds: UInt64) -> String {
        Date(timeIntervalSince1970: Double(milliseconds) / 1000)
            .formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
    }
}
