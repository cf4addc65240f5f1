// SPDX-License-Identifier: Apache-2.0

import Lab
import Model

/// From the agent's start to steering.
struct StartBenchmark: Benchmark {
    static let name = "start"
    static let text = "from the agent's start to the first packet that would be encrypted"

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        var results = try await AgentRig.with(context) { rig in
            [
                Result(
                    name, "a clean node, two nodes", try await times(rig, context, clean: true), "ms",
                    goal: .valueBelow(300)),
                Result(
                    name, "again, with all in place", try await times(rig, context, clean: false), "ms",
                    note: "packets are steered meanwhile; until the first pass is over"),
            ]
        }
        results += try await AgentRig.with(context, families: [.ipv4, .ipv6]) { rig in
            [Result(name, "a clean node, two nodes, both families", try await times(rig, context, clean: true), "ms")]
        }
        let nodes = context.effort.pick(5000, quick: 1000)
        results += try await AgentRig.with(context) { rig in
            try rig.fill(nodes: nodes - 2)
            return [
                Result(
                    name, "a clean node, \(Figure.text(Double(nodes))) nodes",
                    try await times(rig, context, clean: true), "ms", goal: .valueBelow(2000))
            ]
        }
        return results
    }

    private static func times(_ rig: AgentRig, _ context: BenchmarkContext, clean: Bool) async throws -> [Double] {
        var times: [Double] = []
        for _ in 0..<min(5, context.effort.repeats) {
            if clean {
                try await rig.clean()
                times.append(try await rig.start())
            } else {
                try await rig.lab.stopAgent("node1", signal: 15)
                times.append(try await rig.restart())
            }
        }
        return times
    }
}
