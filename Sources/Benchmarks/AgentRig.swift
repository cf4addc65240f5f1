// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Logging
import Model
import OrderedCollections
import SystemDescriptors

/// A lab whose node1 has the agent that is measured.
struct AgentRig: Sendable {
    let lab: Lab
    let wgplane: String
    /// `kernel` or `userspace`.
    let wireguard: String

    /// Brings a lab up, runs a body, and takes it down.
    static func with<Value>(
        _ context: BenchmarkContext, nodes: Int = 2, families: [AddressFamily] = [.ipv4],
        datastore: LabDatastore = .directory,
        platform: LabPlatform = .onPremises, _ body: (AgentRig) async throws -> Value
    ) async throws -> Value {
        let spec = LabSpec(
            name: "bench\(ProcessInfo.processInfo.processIdentifier)", nodes: nodes, pods: 1, families: families,
            backend: context.wireguard == "kernel" ? .kernel : .userspace, datastore: datastore, platform: platform)
        let lab = try await Lab.up(
            spec, enabled: true, binary: context.wgplane,
            logger: Logger(label: "bench") { _ in SwiftLogNoOpLogHandler() })
        do {
            try await lab.waitUntilSettled(enabled: true)
            let value = try await body(AgentRig(lab: lab, wgplane: context.wgplane, wireguard: context.wireguard))
            try await lab.down()
            return value
        } catch {
            try? await lab.down()
            throw error
        }
    }

    /// Writes nodes that nobody runs, each with a block, as an operator's tools would: one YAML file a resource.
    func fill(nodes: Int) throws {
        for number in 0..<nodes {
            for manifest in LabBenchmark.nodeWithBlock(number + 1) {
                let name = "\(lab.paths.datastore)/\(manifest.key.kind.plural)/\(manifest.key.name).yaml"
                try ManifestText.yaml(manifest.content).write(toFile: name, atomically: false, encoding: .utf8)
            }
        }
    }

    /// Switches encryption on or off and waits until it is so.
    func encrypt(_ isOn: Bool) async throws {
        let store = DirectoryDatastore(
            path: lab.paths.datastore, logger: Logger(label: "bench") { _ in SwiftLogNoOpLogHandler() })
        try await store.update(ResourceKey(.felixConfiguration, "default")) { current in
            var content = current ?? .object([:])
            for field in ["wireguardEnabled", "wireguardEnabledV6"] { content[["spec", field]] = .bool(isOn) }
            return content
        }
        try await lab.waitUntilSettled(enabled: isOn)
    }

    /// Takes away all that agents have left on node1, as after `wgplane cleanup` on a machine that never had one.
    func clean() async throws {
        try await lab.stopAgent("node1", signal: 15)
        try run(["cleanup"])
    }

    /// Runs wgplane on node1.
    func run(_ arguments: [String], output: String? = nil) throws {
        let place = try lab.place("node1")
        let launch = ProgramLaunch(
            [wgplane] + arguments, environment: lab.environment("node1"), log: output, ownSession: false)
        let status = try place.run { try launch.run() }
        guard status == 0 else { throw BenchmarkError("wgplane \(arguments.joined(separator: " ")): status \(status)") }
    }

    /// How far node1's data plane is with packets from its pod to node2's.
    enum Progress {
        /// The programs steer them: to node2's peer as soon as that has answered.
        case steering
        /// The peer has answered: they would be encrypted.
        case encrypting
    }

    func has(_ progress: Progress) -> Bool {
        let layout = PinLayout(root: lab.paths.pins("node1"))
        guard layout.pinnedLinks().contains(where: { $0.hook == .fromPod }), let maps = try? NodeMaps(layout),
            let slot = try? maps.routes.slot(of: LabAddresses.pod(2, 1, .ipv4)), slot >= DestinationSlot.firstPeer
        else { return false }
        return progress == .steering || maps.destinations[slot].action == .tunnel
    }

    /// Milliseconds from the agent's start until the data plane is so far.
    func start(until progress: Progress) async throws -> Double {
        let began = monotonicNanoseconds()
        try await lab.startAgent("node1")
        while !has(progress) {
            guard monotonicNanoseconds() - began < 60_000_000_000 else {
                throw BenchmarkError("node1 does not steer after 60 s; its log: \(lab.paths.log("node1"))")
            }
            try await Task.sleep(for: .microseconds(500))
        }
        return Double(monotonicNanoseconds() - began) / 1e6
    }

    /// Milliseconds until an agent that finds all in place has made its first pass.
    func restart() async throws -> Double {
        let before = lab.status("node1")?.process
        let began = monotonicNanoseconds()
        try await lab.startAgent("node1")
        while lab.status("node1").map({ $0.process == before || $0.ipv4?.peers.isEmpty != false }) ?? true {
            guard monotonicNanoseconds() - began < 60_000_000_000 else { throw BenchmarkError("no status after 60 s") }
            try await Task.sleep(for: .microseconds(500))
        }
        return Double(monotonicNanoseconds() - began) / 1e6
    }

    // MARK: The agent's process

    private func process() async throws -> Int32 {
        guard let process = await lab.agent("node1") else { throw BenchmarkError("node1 has no agent") }
        return process.identifier
    }

    /// A field of `/proc/PID/status`, in MiB: `VmRSS`, `VmHWM`.
    func memory(_ field: String = "VmRSS") async throws -> Double {
        let text = try String(contentsOfFile: "/proc/\(await process())/status", encoding: .utf8)
        let line = text.split(separator: "\n").first { $0.hasPrefix("\(field):") }
        guard let line,
            let kibibytes = line.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap({ Double($0) })
        else { throw BenchmarkError("the agent's status has no \(field)") }
        return kibibytes / 1024
    }

    /// Seconds of a processor so far, in user mode and in the kernel.
    func processorTime() async throws -> Double {
        let text = try String(contentsOfFile: "/proc/\(await process())/stat", encoding: .utf8)
        guard let end = text.lastIndex(of: ")") else { return 0 }
        let fields = text[end...].split(separator: " ")
        // 14 and 15 of proc(5), counted from the state behind the name, in ticks of 10 ms.
        return [12, 13].compactMap { fields.indices.contains($0) ? Double(fields[$0]) : nil }.reduce(0, +) / 100
    }

    /// Share of a processor that the agent takes, over so many seconds.
    func load(seconds: Int) async throws -> Double {
        let (before, began) = (try await processorTime(), monotonicNanoseconds())
        try await Task.sleep(for: .seconds(seconds))
        let elapsed = Double(monotonicNanoseconds() - began) / 1e9
        return (try await processorTime() - before) / elapsed * 100
    }
}
