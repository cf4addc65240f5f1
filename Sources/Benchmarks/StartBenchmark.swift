// SPDX-License-Identifier: Apache-2.0

import Lab
import Model

/// From the agent's start to steering.
struct StartBenchmark: Benchmark {
    static let name = "start"
    static let text = "from the agent's start until its programs steer, and until packets are encrypted"

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        var results: [Result] = []
        for families in [[AddressFamily.ipv4], [.ipv4, .ipv6]] {
            let suffix = families.count == 1 ? "" : ", both families"
            results += try await AgentRig.with(context, families: families) { rig in
                let encrypted = try await times(rig, context, until: .encrypting)
                let again = families.count > 1 ? nil : try await times(rig, context)
                var results = [
                    try Result(
                        name, "a clean node, two nodes\(suffix)",
                        try await timesAlone(rig, context), "ms", goal: .valueBelow(300)),
                    try Result(
                        name, "the same, until packets are encrypted\(suffix)", encrypted, "ms",
                        note: "the peer's agent, on the same processors, learns the new key, and they shake hands"),
                ]
                if let again {
                    results.append(
                        try Result(
                            name, "again, with all in place", again, "ms",
                            note: "packets are steered meanwhile; until the first pass is over"))
                }
                return results
            }
        }
        let nodes = context.effort.pick(5000, quick: 1000)
        results += try await AgentRig.with(context) { rig in
            try await rig.lab.stopAgent("node2", signal: 15)
            try rig.fill(nodes: nodes - 2)
            return [
                try Result(
                    name, "a clean node, \(Figure.text(Double(nodes))) nodes",
                    try await timesAlone(rig, context), "ms", goal: .valueBelow(2000))
            ]
        }
        return results
    }

    private static func repeats(_ context: BenchmarkContext) -> Int { min(5, context.effort.repeats) }

    /// The other nodes' agents would have processors of their own, and are ended; what they have set up stays.
    private static func timesAlone(_ rig: AgentRig, _ context: BenchmarkContext) async throws -> [Double] {
        try await rig.lab.stopAgent("node2", signal: 15)
        return try await times(rig, context, until: .steering)
    }

    private static func times(
        _ rig: AgentRig, _ context: BenchmarkContext, until progress: AgentRig.Progress
    ) async throws -> [Double] {
        var times: [Double] = []
        for _ in 0..<repeats(context) {
            try await rig.clean()
            times.append(try await rig.start(until: progress))
        }
        return times
    }

    /// Of an agent that finds all in place.
    private static func times(_ rig: AgentRig, _ context: BenchmarkContext) async throws -> [Double] {
        var times: [Double] = []
        for _ in 0..<repeats(context) {
            try await rig.lab.stopAgent("node1", signal: 15)
            times.append(try await rig.restart())
        }
        return times
    }
}
