// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Model

/// Decides when a biflow gets a record, and what it tells: of each flow the counts that no record has told yet.
///
/// Hand it all flows of the table at each look, and those that are taken out of the table, with their last counts.
public struct FlowCache: Sendable {
    public struct TimeOuts: Sendable, Hashable {
        /// Of flows that go on.
        public var active: Duration
        /// Without a packet.
        public var idle: Duration

        public init(active: Duration = .seconds(60), idle: Duration = .seconds(15)) {
            self.active = active
            self.idle = idle
        }
    }

    /// What a record is due for, and what it tells.
    public struct Due: Sendable {
        public var pair: FlowPair
        public var reason: FlowEndReason
        /// Since the record before.
        public var packets: UInt64
        public var bytes: UInt64
        public var reversePackets: UInt64
        public var reverseBytes: UInt64
        /// Unix time in milliseconds, as far as it is known.
        public var start: UInt64
        public var end: UInt64
    }

    struct Told: Sendable, Hashable {
        var packets: UInt64 = 0
        var bytes: UInt64 = 0
        var reversePackets: UInt64 = 0
        var reverseBytes: UInt64 = 0
        /// When the last record of it was made, and its last packet then; CLOCK_MONOTONIC.
        var at: UInt64
        var last: UInt64 = 0
        /// The look at which the flow was there last.
        var look: UInt32 = 0
    }

    var told: [FlowKey: Told] = [:]
    private var looks: UInt32 = 0
    public var timeOuts: TimeOuts

    public init(_ timeOuts: TimeOuts = TimeOuts()) { self.timeOuts = timeOuts }

    /// Flows whose counts are remembered.
    public var count: Int { told.count }

    /// Records that are due. `now`: CLOCK_MONOTONIC in nanoseconds, `wall` the Unix time in milliseconds that goes with it.
    /// `gone`: flows that are not in the table any more. `isLast`: the exporter stops, and all is told. `limit`: of flows
    /// that stay so many at most; the others are due at the next look.
    public mutating func records(
        _ flows: [FlowPair], gone: [FlowPair] = [], now: UInt64, wall: UInt64, isLast: Bool = false,
        limit: Int = .max
    ) -> [Due] {
        var result: [Due] = []
        looks &+= 1
        for pair in gone {
            let before = before(pair)
            told[pair.key] = nil
            if let due = due(pair, Self.isOver(pair) ? .end : .idle, before, now, wall) { result.append(due) }
        }
        var waiting: [(pair: FlowPair, entry: Told, due: Due)] = []
        for pair in flows {
            var entry = before(pair)
            entry.look = looks
            told[pair.key] = entry
            if let reason = reason(pair, entry, now, isLast), let due = due(pair, reason, entry, now, wall) {
                waiting.append((pair, entry, due))
            }
        }
        // Who has waited longest comes first.
        if waiting.count > limit { waiting.sort { $0.entry.at < $1.entry.at } }
        for (pair, _, due) in waiting.prefix(limit) {
            result.append(due)
            told[pair.key] = Told(
                packets: pair.entry.packets, bytes: pair.entry.bytes, reversePackets: pair.reverse?.packets ?? 0,
                reverseBytes: pair.reverse?.bytes ?? 0, at: now, last: pair.last, look: looks)
        }
        if told.count > flows.count { told = told.filter { $0.value.look == looks } }
        return result
    }

    /// What was told of it; nothing, when that was of an earlier flow of the same key.
    private func before(_ pair: FlowPair) -> Told {
        guard let entry = told[pair.key], entry.last == 0 || pair.first <= entry.last else {
            return Told(at: pair.first)
        }
        return entry
    }

    /// TCP has ended it.
    private static func isOver(_ pair: FlowPair) -> Bool {
        guard pair.key.transport == 6 else { return false }
        return ["closed", "reset"].contains(connectionState(pair.entry.tcpFlags, pair.reverse?.tcpFlags ?? 0))
    }

    private func reason(_ pair: FlowPair, _ entry: Told, _ now: UInt64, _ isLast: Bool) -> FlowEndReason? {
        let last = pair.last
        guard
            last > entry.last
                || pair.entry.packets + (pair.reverse?.packets ?? 0) > entry.packets + entry.reversePackets
        else { return nil }
        if isLast { return .forced }
        if Self.isOver(pair) { return .end }
        if now > last, Double(now - last) >= timeOuts.idle.nanoseconds { return .idle }
        if now > entry.at, Double(now - entry.at) >= timeOuts.active.nanoseconds { return .active }
        return nil
    }

    private func due(
        _ pair: FlowPair, _ reason: FlowEndReason, _ before: Told, _ now: UInt64, _ wall: UInt64
    ) -> Due? {
        func since(_ count: UInt64, _ old: UInt64) -> UInt64 { count >= old ? count - old : count }
        let packets = since(pair.entry.packets, before.packets)
        let reversePackets = since(pair.reverse?.packets ?? 0, before.reversePackets)
        guard packets + reversePackets > 0 else { return nil }
        func unix(_ time: UInt64) -> UInt64 { wall - min(wall, (now > time ? now - time : 0) / 1_000_000) }
        return Due(
            pair: pair, reason: reason, packets: packets, bytes: since(pair.entry.bytes, before.bytes),
            reversePackets: reversePackets, reverseBytes: since(pair.reverse?.bytes ?? 0, before.reverseBytes),
            start: unix(before.last == 0 ? pair.first : before.last), end: unix(pair.last))
    }
}

extension Duration {
    /// As a number.
    var nanoseconds: Double { Double(components.seconds) * 1e9 + Double(components.attoseconds) / 1e9 }
}
