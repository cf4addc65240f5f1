// SPDX-License-Identifier: Apache-2.0

public import Flows
internal import Model

extension DashboardState {
    /// Flows that are shown.
    static let flowLimit = 40
    /// Nanoseconds after which a flow does not count among those between nodes.
    static let minute: UInt64 = 60_000_000_000

    /// Takes a node's flows, the busiest first. `now`: CLOCK_MONOTONIC in nanoseconds.
    public mutating func show(_ biflows: [Biflow], of count: Int, node: String, now: UInt64) {
        flowCount = count
        ownFlowCount = count - biflows.count { $0.sourceNode != nil && $0.sourceNode != node }
        flows = biflows.prefix(Self.flowLimit).map { Flow($0, node: node) }
        var cells: [String: Cell] = [:]
        for flow in biflows where now < flow.last + Self.minute {
            guard let from = flow.sourceNode, let to = flow.destinationNode, from != to else { continue }
            let key = "\(from)>\(to)"
            var cell = cells[key] ?? Cell(from: from, to: to)
            if flow.dropReason != nil, flow.verdict == "drop" {
                cell.dropped += 1
            } else if flow.isEncrypted {
                cell.encrypted += 1
            } else {
                cell.clear += 1
            }
            cells[key] = cell
        }
        matrix = cells.sorted { $0.key < $1.key }.map(\.value)
    }
}

extension DashboardState.Flow {
    init(_ flow: Biflow, node: String) {
        self.init(
            node: node, sourceNode: flow.sourceNode, destinationNode: flow.destinationNode, transport: flow.transport,
            source: flow.source.description, sourcePort: flow.sourcePort,
            sourceName: flow.sourceName, destination: flow.destination.description,
            destinationPort: flow.destinationPort, destinationName: flow.destinationName, way: flow.way,
            peer: flow.peer, packets: flow.packets, bytes: flow.bytes, reversePackets: flow.reversePackets,
            reverseBytes: flow.reverseBytes, verdict: flow.verdict, dropReason: flow.dropReason)
    }
}
