// SPDX-License-Identifier: Apache-2.0

public import Model

/// What was counted of all flows between two pods, workloads or nodes since the last record of them.
public struct AggregateRecord: Sendable, Hashable, Codable {
    public struct Pair: Sendable, Hashable, Codable {
        /// Pod or workload; nil at the level of nodes. What has no name is `outside`, or `node`.
        public var source: String?
        public var destination: String?
        public var sourceNode: String
        public var destinationNode: String
        /// 4 or 6.
        public var family: UInt8
        /// IP protocol number; 0 at the level of nodes.
        public var protocolNumber: UInt8
        public var way: String
        public var isEncrypted: Bool
        /// Why packets of it were dropped.
        public var dropReason: String?
    }

    public var pair: Pair
    /// Records of flows that it is made of.
    public var flows: UInt64 = 0
    public var packets: UInt64 = 0
    public var bytes: UInt64 = 0
    public var reversePackets: UInt64 = 0
    public var reverseBytes: UInt64 = 0
    /// Unix time in milliseconds of the first and the last packet.
    public var start: UInt64
    public var end: UInt64
}

/// Adds records of flows up to records of pairs.
public struct FlowAggregator: Sendable {
    public let level: FlowAggregation
    private var sums: [AggregateRecord.Pair: AggregateRecord] = [:]
    /// Pairs that are told of by themselves between two records; what is beyond is told of as `others`.
    static let limit = 65_536

    public init(_ level: FlowAggregation) { self.level = level }

    public var count: Int { sums.count }

    /// `names`: of workloads.
    public mutating func add(_ records: [FlowRecord], names: AddressNames) {
        for record in records {
            var pair = pair(record.flow, names)
            if sums[pair] == nil, sums.count >= Self.limit {
                (pair.source, pair.destination) = ("others", "others")
            }
            var sum = sums[pair] ?? AggregateRecord(pair: pair, start: record.start, end: record.end)
            sum.flows += 1
            sum.packets += record.packets
            sum.bytes += record.bytes
            sum.reversePackets += record.reversePackets
            sum.reverseBytes += record.reverseBytes
            sum.start = min(sum.start, record.start)
            sum.end = max(sum.end, record.end)
            sums[pair] = sum
        }
    }

    /// All pairs' records; it begins again.
    public mutating func take() -> [AggregateRecord] {
        defer { sums = [:] }
        return sums.values.sorted { ($0.pair.source ?? "", $0.start) < ($1.pair.source ?? "", $1.start) }
    }

    private func pair(_ flow: Biflow, _ names: AddressNames) -> AggregateRecord.Pair {
        func name(_ address: IPAddress, _ name: String?, _ node: String?) -> String? {
            switch level {
            case .nodePair: nil
            case .workloadPair: names.workload(address) ?? name ?? (node == nil ? "outside" : "node")
            case .flow, .podPair: name ?? (node == nil ? "outside" : "node")
            }
        }
        return AggregateRecord.Pair(
            source: name(flow.source, flow.sourceName, flow.sourceNode),
            destination: name(flow.destination, flow.destinationName, flow.destinationNode),
            sourceNode: flow.sourceNode ?? "", destinationNode: flow.destinationNode ?? "",
            family: flow.source.family.rawValue, protocolNumber: level == .nodePair ? 0 : flow.protocolNumber,
            way: flow.way, isEncrypted: flow.isEncrypted, dropReason: flow.dropReason)
    }
}
