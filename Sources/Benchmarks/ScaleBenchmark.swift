// SPDX-License-Identifier: Apache-2.0

import CBenchmark
import DataplaneMaps
import Foundation
import Lab
import Model
import SystemDescriptors

/// What a large cluster costs an agent at rest.
struct ScaleBenchmark: Benchmark {
    static let name = "scale"
    static let text = "memory and CPU of an agent at rest: 1,000 and 5,000 nodes, 100,000 pods, 100,000 flows (etcd)"

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        var results: [Result] = []
        let sizes = context.effort.pick([(1000, 100_000), (5000, 100_000)], quick: [(1000, 20_000)])
        for (nodes, pods) in sizes {
            results += try await AgentRig.with(context, nodes: 1, datastore: .etcd, platform: .eks) { rig in
                try await measure(rig, nodes, pods, context)
            }
        }
        return results
    }

    private static func measure(_ rig: AgentRig, _ nodes: Int, _ pods: Int, _ context: BenchmarkContext) async throws
        -> [Result]
    {
        try await rig.lab.stopAgent("node1", signal: 15)
        let control = try rig.lab.place("control")
        let launch = ProgramLaunch(
            [rig.wgplane, "lab", "fill", "--name", rig.lab.spec.name, "--nodes", "\(nodes)", "--pods", "\(pods)"],
            environment: rig.lab.environment("control"), ownSession: false)
        guard try control.run({ try launch.run() }) == 0 else { throw BenchmarkError("the lab cannot be filled") }
        let began = monotonicNanoseconds()
        try await rig.lab.startAgent("node1")
        let maps = try rig.lab.maps("node1")
        while try maps.routes.addressEntries().count < pods {
            guard monotonicNanoseconds() - began < 180_000_000_000 else {
                throw BenchmarkError("not complete in 180 s")
            }
            try await Task.sleep(for: .milliseconds(100))
        }
        let complete = Double(monotonicNanoseconds() - began) / 1e9
        // What the start has left to do. Nobody runs these nodes, and for a minute their answers are waited for.
        try await Task.sleep(for: .seconds(70))
        let source = try await FlowSource.open(rig, flows: pods)
        try await source.send()
        try await Task.sleep(for: .seconds(3))
        let found = try maps.flows.list().count
        let memory = (now: try await rig.memory(), most: try await rig.memory("VmHWM"))
        // A flow of one packet is over after a minute: the same once more, half way.
        let pause = context.effort.pick(30, quick: 10)
        async let again: Void = source.send(after: pause)
        let load = try await rig.load(seconds: 2 * pause)
        try await again
        let left = try maps.flows.list().count
        guard min(found, left) >= pods * 99 / 100, max(found, left) <= pods * 101 / 100 else {
            throw BenchmarkError("\(found) flows at first and \(left) in the end, of \(pods)")
        }
        let text =
            "\(Figure.text(Double(nodes))) nodes, \(Figure.text(Double(pods))) pods, \(Figure.text(Double(found))) flows"
        return [
            try Result(name, "\(text): resident", [memory.now], "MiB", goal: .valueBelow(150)),
            try Result(name, "\(text): at most since its start", [memory.most], "MiB"),
            try Result(name, "\(text): idle", [load], "% of a core", goal: .valueBelow(1)),
            try Result(name, "\(text): from its start to all routes", [complete], "s"),
        ]
    }
}

/// A pod that sends a datagram to each of so many other pods, from one port.
private struct FlowSource {
    private let socket: SharedDescriptor
    private let addresses: [UInt8]

    static func open(_ rig: AgentRig, flows: Int) async throws -> FlowSource {
        let place = try rig.lab.place("node1-pod1")
        let socket = try await Task.detachedThread {
            try place.run {
                let socket = wgb_udp_socket(0, 0)
                guard socket >= 0 else { throw BenchmarkError("no socket: errno \(-socket)") }
                return SharedDescriptor(OwnedDescriptor(owning: socket))
            }
        }
        return FlowSource(
            socket: socket, addresses: (0..<flows).flatMap { LabBenchmark.podAddress($0).bytes })
    }

    /// `seconds`: to wait before it does.
    func send(after seconds: Int = 0) async throws {
        try await Task.sleep(for: .seconds(seconds))
        let (socket, addresses) = (socket, addresses)
        try await Task.detachedThread {
            let count = addresses.count / 4
            let sent = wgb_udp_send(socket.rawValue, 0, addresses, count, 32, UInt64(count), 0)
            guard sent.error == 0 else { throw BenchmarkError("cannot send: errno \(sent.error)") }
        }
    }
}
