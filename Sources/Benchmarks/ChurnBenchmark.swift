// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
import Foundation
import Lab
import Model
import Synchronization
import SystemDescriptors

/// Pods that come and go: from the datastore to the map.
struct ChurnBenchmark: Benchmark {
    static let name = "churn"
    static let text =
        "from the file of a pod that comes to its map entry, 100 to 5,000 changes a second of pods on other nodes, whose agents are ended (directory)"

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        try await AgentRig.with(context, nodes: others.count + 1, platform: .eks) { rig in
            // Their WireGuard devices go on without their agents, which would have other machines' processors.
            for node in others { try await rig.lab.stopAgent(node, signal: 15) }
            var results: [Result] = []
            for rate in [100, 1000, 5000] { results += try await measure(rig, rate, context) }
            return results
        }
    }

    /// Nodes that have the pods in turn.
    private static let others = (2...5).map { "node\($0)" }

    private static func address(_ number: Int) -> IPAddress { LabBenchmark.podAddress(number % 60_000) }

    private static func measure(_ rig: AgentRig, _ rate: Int, _ context: BenchmarkContext) async throws -> [Result] {
        let seconds = context.effort.pick(60, quick: 10)
        let folder = "\(rig.lab.paths.datastore)/pods"
        let maps = try rig.lab.maps("node1")
        // Pods that are there at a time.
        let window = min(5000, rate * seconds / 8)
        let ledger = Ledger(window: window)
        async let times = Task.detachedThread { try ledger.watch(maps) }
        // Half of the changes are pods that come, half those that go.
        let count = rate * seconds / 2
        async let elapsed = Task.detachedThread { try ledger.write(count, rate: rate, folder) }
        // From when as many go as come.
        try await Task.sleep(for: .seconds(seconds / 2))
        let before = try await rig.memory()
        let written = try await elapsed
        let after = try await rig.memory()
        let latencies = try await times
        // One by one: all at once would be held back as the loss of a disk.
        for number in max(0, count - window)..<count {
            try removeFile("\(folder)/churn-\(number % 60_000).json")
            try await Task.sleep(for: .milliseconds(1))
        }
        try await rig.lab.wait("the pods are gone again", within: .seconds(60)) {
            try maps.routes.addressEntries().count < 10
        }
        let text = "\(Figure.text(Double(rate))) changes/s"
        let achieved = Double(2 * count) / written
        let isFull = achieved >= Double(rate) * 0.98
        return [
            try Result(
                name, "\(text): median", [Figure.median(latencies)], "ms",
                note: isFull ? nil : "only \(Figure.text(achieved))/s were written"),
            // Of pods that come; at a rate that was reached.
            try Result(
                name, "\(text): p99", [Figure.percentile(latencies, 0.99)], "ms",
                goal: isFull ? .valueBelow(5) : nil),
            try Result(name, "\(text): most", [latencies.max() ?? 0], "ms"),
            try Result(name, "\(text): memory gained in the second half", [after - before], "MiB"),
        ]
    }

    /// Which pods have been written and are not in the map yet.
    private final class Ledger: Sendable {
        private let pending = Mutex<[(number: Int, began: UInt64)]>([])
        private let isFinished = Mutex(false)
        private let window: Int

        init(window: Int) { self.window = window }

        /// Writes pods at a rate, and takes away those that a window ago were written; returns the seconds it took.
        func write(_ count: Int, rate: Int, _ folder: String) throws -> Double {
            defer { isFinished.withLock { $0 = true } }
            let start = monotonicNanoseconds()
            for number in 0..<count {
                let due = start + UInt64(number) * 2_000_000_000 / UInt64(rate)
                let now = monotonicNanoseconds()
                if due > now { sleepMicroseconds(UInt32((due - now) / 1000)) }
                let began = monotonicNanoseconds()
                pending.withLock { $0.append((number, began)) }
                try replaceFile("\(folder)/churn-\(number % 60_000).json", with: pod(number))
                if number >= window { try removeFile("\(folder)/churn-\((number - window) % 60_000).json") }
            }
            return Double(monotonicNanoseconds() - start) / 1e9
        }

        /// Looks for them in the map, some thousand times a second; returns milliseconds of each.
        func watch(_ maps: NodeMaps) throws -> [Double] {
            var times: [Double] = []
            while true {
                let isLast = isFinished.withLock { $0 }
                let waiting = pending.withLock { Array($0.prefix(24)) }
                var done: Set<Int> = []
                for pod in waiting
                where try maps.routes.ownSlot(of: address(pod.number)) ?? 0 >= DestinationSlot.firstPeer {
                    times.append(Double(monotonicNanoseconds() - pod.began) / 1e6)
                    done.insert(pod.number)
                }
                if !done.isEmpty { pending.withLock { $0.removeAll { done.contains($0.number) } } }
                if isLast, waiting.isEmpty { return times }
                if let first = waiting.first, monotonicNanoseconds() - first.began > 30_000_000_000 {
                    throw BenchmarkError("pod \(first.number) was not in the map after 30 s")
                }
                if done.count < waiting.count { sleepMicroseconds(200) }
                if waiting.isEmpty { sleepMicroseconds(200) }
            }
        }
    }

    private static func pod(_ number: Int) -> [UInt8] {
        let address = address(number)
        return Array(
            """
            {"apiVersion":"v1","kind":"Pod","metadata":{"name":"churn-\(number % 60_000)","namespace":"default"},\
            "spec":{"nodeName":"\(others[number % others.count])","containers":[{"name":"main","image":"lab.invalid/pod"}]},\
            "status":{"phase":"Running","podIP":"\(address)","podIPs":[{"ip":"\(address)"}]}}
            """.utf8)
    }
}
