// SPDX-License-Identifier: Apache-2.0

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

    struct Told: Sendable, Hashable {
        var packets: UInt64 = 0
        var bytes: UInt64 = 0
        var reversePackets: UInt64 = 0
        var reverseBytes: UInt64 = 0
        /// When the last record of it was made, and its last packet then; CLOCK_MONOTONIC.
        var at: UInt64
        var last: UInt64 = 0
    }

    var told: [Biflow.Name: Told] = [:]
    public var timeOuts: TimeOuts

    public init(_ timeOuts: TimeOuts = TimeOuts()) { self.timeOuts = timeOuts }

    /// Flows whose counts are remembered.
    public var count: Int { told.count }

    /// Records that are due. `now`: CLOCK_MONOTONIC in nanoseconds, `wall` the Unix time in milliseconds that goes with it.
    /// `gone`: flows that are not in the table any more. `isLast`: the exporter stops, and all is told.
    public mutating func records(
        _ flows: [Biflow], gone: [Biflow] = [], now: UInt64, wall: UInt64, isLast: Bool = false
    ) -> [FlowRecord] {
        var result: [FlowRecord] = []
        var present: Set<Biflow.Name> = []
        for flow in gone {
            let name = flow.name
            if let record = record(
                flow, name, flow.state == "closed" || flow.state == "reset" ? .end : .idle, now, wall)
            {
                result.append(record)
            }
            told[name] = nil
        }
        for flow in flows {
            let name = flow.name
            present.insert(name)
            let entry = told[name] ?? Told(at: flow.first)
            told[name] = entry
            guard let reason = reason(flow, entry, now, isLast) else { continue }
            if let record = record(flow, name, reason, now, wall) { result.append(record) }
        }
        told = told.filter { present.contains($0.key) }
        return result
    }

    private func reason(_ flow: Biflow, _ entry: Told, _ now: UInt64, _ isLast: Bool) -> FlowEndReason? {
        let isNews = flow.last > entry.last || flow.packets + flow.reversePackets > entry.packets + entry.reversePackets
        if isLast { return isNews ? .forced : nil }
        if flow.state == "closed" || flow.state == "reset" { return isNews ? .end : nil }
        guard isNews else { return nil }
        if now > flow.last, Double(now - flow.last) >= timeOuts.idle.nanoseconds { return .idle }
        if now > entry.at, Double(now - entry.at) >= timeOuts.active.nanoseconds { return .active }
        return nil
    }

    private mutating func record(
        _ flow: Biflow, _ name: Biflow.Name, _ reason: FlowEndReason, _ now: UInt64, _ wall: UInt64
    ) -> FlowRecord? {
        let before = told[name] ?? Told(at: flow.first)
        func since(_ count: UInt64, _ old: UInt64) -> UInt64 { count >= old ? count - old : count }
        let packets = since(flow.packets, before.packets)
        let reversePackets = since(flow.reversePackets, before.reversePackets)
        guard packets + reversePackets > 0 else { return nil }
        func unix(_ time: UInt64) -> UInt64 { wall - min(wall, (now > time ? now - time : 0) / 1_000_000) }
        told[name] = Told(
            packets: flow.packets, bytes: flow.bytes, reversePackets: flow.reversePackets,
            reverseBytes: flow.reverseBytes, at: now, last: flow.last)
        return FlowRecord(
            flow, reason, packets: packets, bytes: since(flow.bytes, before.bytes), reversePackets: reversePackets,
            reverseBytes: since(flow.reverseBytes, before.reverseBytes),
            start: unix(before.last == 0 ? flow.first : before.last), end: unix(flow.last))
    }
}

extension Duration {
    /// As a number.
    var nanoseconds: Double { Double(components.seconds) * 1e9 + Double(components.attoseconds) / 1e9 }
}
