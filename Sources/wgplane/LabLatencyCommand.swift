// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import Synchronization
import SystemDescriptors

struct LabFillCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fill", abstract: "Writes nodes and pods that nobody runs into a lab's etcd, for measurements.",
        discussion: """
            Run it where the datastore is; an API server is best stopped meanwhile, for it is gone past:
            wgplane lab exec control -- wgplane lab fill --nodes 5000 --pods 100000
            """)

    @OptionGroup var lab: LabNameOptions
    @Option(help: "Number of nodes: bench-1, bench-2, …") var nodes = 5000
    @Option(help: "Number of pods, on these nodes in turn.") var pods = 100_000

    func run() async throws {
        try await LabBenchmark.fill(lab.open(), nodes: nodes, pods: pods)
        print("\(nodes) nodes and \(pods) pods written")
    }
}

struct LabLatencyCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "latency",
        abstract:
            "Gives pods their addresses one after the other, and tells how long each takes to be in a node's map of routes.",
        discussion: """
            For labs whose routes are made of pods' addresses. Run it where the datastore is:
            wgplane lab exec control -- wgplane lab latency --count 200
            Each pod is created without an address, as Kubernetes does it. Milliseconds from before the request that
            gives the address to the entry; the pods are deleted afterwards.
            """)

    @OptionGroup var lab: LabNameOptions
    @OptionGroup var datastore: DatastoreOptions
    @Option(help: "Whose map.") var node = "node1"
    @Option(help: "On which node the pods are.") var owner = "bench-1"
    @Option(help: "How many pods.") var count = 200
    @OptionGroup var output: OutputOptions

    /// The JSON form: milliseconds.
    struct Result: Encodable {
        var schema = 1
        var count: Int
        /// Until the datastore has said that the address is written.
        var write: Distribution
        /// Until it is in the map, from before the request on.
        var entry: Distribution
    }

    struct Distribution: Encodable {
        var minimum: Double
        var median: Double
        var p99: Double
        var maximum: Double

        init(_ values: [Double]) {
            let sorted = values.sorted()
            func at(_ share: Double) -> Double {
                sorted.isEmpty ? 0 : sorted[min(sorted.count - 1, Int((Double(sorted.count) * share).rounded(.up)) - 1)]
            }
            (minimum, median, p99, maximum) = (sorted.first ?? 0, at(0.5), at(0.99), sorted.last ?? 0)
        }
    }

    func run() async throws {
        let maps = try lab.open().maps(node)
        var writes: [Double] = []
        var entries: [Double] = []
        try await datastore.use { store in
            for number in 0..<count {
                let address = IPAddress(family: .ipv4, bits: 0x0a30_0000 + 0xf000 + UInt128(number % 4000))
                let pod = LabBenchmark.pod("latency-\(number)", node: owner, [address])
                var bare = pod.content
                bare["status"] = nil
                let first = bare
                try await store.update(pod.key) { _ in first }
                // So that this client's own limit of requests is not what is measured.
                try await Task.sleep(for: .milliseconds(300))
                let start = Mutex(UInt64(0))
                try await store.update(pod.key) { current in
                    var content = current ?? first
                    content["status"] = pod.content["status"]
                    start.withLock { $0 = monotonicNanoseconds() }
                    return content
                }
                let began = start.withLock { $0 }
                writes.append(Double(monotonicNanoseconds() - began) / 1e6)
                let deadline = began + 30_000_000_000
                while try maps.routes.slot(of: address) < DestinationSlot.firstPeer {
                    guard monotonicNanoseconds() < deadline else {
                        throw ProblemsError(
                            Problem(
                                resource: pod.key.description, field: "status.podIP", value: "\(address)",
                                message: "was not in the map after 30 s", remedy: "is routeSource WorkloadIPs?"))
                    }
                    try await Task.sleep(for: .microseconds(200))
                }
                entries.append(Double(monotonicNanoseconds() - began) / 1e6)
            }
            for number in 0..<count {
                try await store.update(ResourceKey(.pod, "latency-\(number)")) { _ in nil }
            }
        }
        let result = Result(count: count, write: Distribution(writes), entry: Distribution(entries))
        if try Output.structured(result, output.format) { return }
        func line(_ name: String, _ values: Distribution) -> [String] {
            [name] + [values.minimum, values.median, values.p99, values.maximum].map { String(format: "%.1f", $0) }
        }
        Output.table(
            ["MILLISECONDS", "MIN", "MEDIAN", "P99", "MAX"],
            [line("written", result.write), line("in the map", result.entry)])
    }
}
