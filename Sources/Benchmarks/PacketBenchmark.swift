// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Foundation
import Model

/// What the programs cost a packet, by the kernel's own clock (`BPF_PROG_TEST_RUN`).
struct PacketBenchmark: Benchmark {
    static let name = "packet"
    static let text = "ns a packet of each program by test runs: known flow, new flow, drop, pass, in both families"

    /// A packet is used again within a test run, and each run takes one hop off it.
    private static let runs: Int32 = 200

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        try await ProgramRig.with { rig in
            var results: [Result] = []
            for family in AddressFamily.allCases {
                try fillFlows(rig, family, context.effort.pick(100_000, quick: 20_000))
                results += try known(rig, family, context)
                results += try others(rig, family, context)
                results += try fresh(rig, family, context)
            }
            return results
        }
    }

    /// Makes flows as packets make them.
    private static func fillFlows(_ rig: ProgramRig, _ family: AddressFamily, _ count: Int) throws {
        let program = try rig.program(.fromPod)
        for number in 0..<count {
            let made = try program.testRun(flow(rig, family, number), interface: ProgramRig.interface)
            guard made.verdict == steered else {
                throw BenchmarkError("flow \(number) was not steered: \(made.verdict)")
            }
        }
    }

    /// The packet of a flow: 1,000 destinations, then other ports.
    private static func flow(_ rig: ProgramRig, _ family: AddressFamily, _ number: Int) -> [UInt8] {
        ProgramRig.packet(
            rig.address(family, .pod), rig.remote(family, number % 1000 * 19), port: UInt16(20_000 + number / 1000))
    }

    /// The least of several averages: what the machine does beside adds, never takes away.
    private static func time(_ program: BPFProgram, _ packet: [UInt8], _ effort: Effort, verdict: Int32) throws
        -> Double
    {
        var best = UInt32.max
        for _ in 0..<effort.pick(400, quick: 100) {
            let result = try program.testRun(packet, interface: ProgramRig.interface, repetitions: runs)
            guard result.verdict == verdict else {
                throw BenchmarkError("\(program.name) returned \(result.verdict), not \(verdict)")
            }
            best = min(best, result.duration)
        }
        return Double(best)
    }

    private static let steered: Int32 = 7
    private static let passed: Int32 = -1
    private static let dropped: Int32 = 2

    /// The path that nearly all packets take.
    private static func known(_ rig: ProgramRig, _ family: AddressFamily, _ context: BenchmarkContext) throws
        -> [Result]
    {
        let packet = flow(rig, family, 500)
        let program = try rig.program(.fromPod)
        let uncounted = try rig.uncountedProgram(.fromPod)
        var turns = Alternation()
        turns.add("empty") { try time(rig.empty, packet, context.effort, verdict: passed) }
        turns.add("lookup") { try time(rig.lookup, packet, context.effort, verdict: passed) }
        turns.add("known") { try time(program, packet, context.effort, verdict: steered) }
        turns.add("uncounted") { try time(uncounted, packet, context.effort, verdict: steered) }
        let values = try turns.run(repeats: context.effort.repeats)
        return [
            try Result(name, "\(family): the empty program itself", values["empty"] ?? [], "ns"),
            try Result(
                name, "\(family): from_pod, known flow", try values.net("known", less: "empty"), "ns",
                yardstick: ("a look-up in a trie of 20,000 prefixes", try values.net("lookup", less: "empty")),
                goal: .ratioAtMost(1)),
            try Result(
                name, "\(family): from_pod, known flow, counted", try values.net("known", less: "empty"), "ns",
                yardstick: ("not counted", try values.net("uncounted", less: "empty"))),
        ]
    }

    private static func others(_ rig: ProgramRig, _ family: AddressFamily, _ context: BenchmarkContext) throws
        -> [Result]
    {
        let pod = rig.address(family, .pod)
        let peer = IPAddress(family: family, bits: (family == .ipv4 ? 0x0a01_0000 : UInt128(0xfd01) << 112) + 7)
        let outside = IPAddress(family: family, bits: family == .ipv4 ? 0xc633_6407 : UInt128(0x2001_0db8) << 96 + 7)
        let stranger = IPAddress(family: family, bits: ProgramRig.pool(family).address.bits + 33)
        let port: UInt16 = family == .ipv4 ? 51820 : 51821
        let cases: [(String, Hook, Bool, [UInt8], Int32)] = [
            ("from_pod, to the world outside", .fromPod, true, ProgramRig.packet(pod, outside), passed),
            (
                "from_pod, forged source: drop", .fromPod, true, ProgramRig.packet(stranger, rig.remote(family, 7)),
                dropped
            ),
            (
                "to_uplink, the node's own to outside", .toUplink, true,
                ProgramRig.packet(rig.address(family, .host), outside), passed
            ),
            (
                "to_uplink, WireGuard's own", .toUplink, true,
                ProgramRig.packet(rig.address(family, .host), peer, port: port, to: port), passed
            ),
            (
                "from_uplink, WireGuard from a peer", .fromUplink, true,
                ProgramRig.packet(peer, rig.address(family, .host), port: port, to: port), passed
            ),
            (
                "from_uplink, WireGuard from a stranger: drop", .fromUplink, true,
                ProgramRig.packet(outside, rig.address(family, .host), port: port, to: port), dropped
            ),
            (
                "from_uplink, anything else", .fromUplink, true,
                ProgramRig.packet(outside, rig.address(family, .host), to: 443), passed
            ),
            (
                "to_wireguard, a pod's", .toWireGuard, false,
                ProgramRig.packet(pod, rig.remote(family, 7), ethernet: false), passed
            ),
        ]
        var turns = Alternation()
        let programs = try cases.map { try rig.program($0.1, isEthernet: $0.2) }
        turns.add("empty") { try time(rig.empty, cases[0].3, context.effort, verdict: passed) }
        turns.add("lookup") { try time(rig.lookup, flow(rig, family, 500), context.effort, verdict: passed) }
        for (index, entry) in cases.enumerated() {
            turns.add(entry.0) { try time(programs[index], entry.3, context.effort, verdict: entry.4) }
        }
        let values = try turns.run(repeats: context.effort.repeats)
        return try cases.map {
            try Result(
                name, "\(family): \($0.0)", try values.net($0.0, less: "empty"), "ns",
                yardstick: ("a look-up in a trie of 20,000 prefixes", try values.net("lookup", less: "empty")))
        }
    }

    /// Flows that begin, and one of many that are known, in turn: each packet is another, so that each is a test run.
    private static func fresh(_ rig: ProgramRig, _ family: AddressFamily, _ context: BenchmarkContext) throws
        -> [Result]
    {
        let program = try rig.program(.fromPod)
        let arrival = try rig.program(.fromWireGuard, isEthernet: false)
        var next = 0
        func each(_ program: BPFProgram, _ packets: [[UInt8]], _ verdict: Int32) throws -> Double {
            var times: [Double] = []
            for packet in packets {
                let result = try program.testRun(packet, interface: ProgramRig.interface)
                guard result.verdict == verdict else {
                    throw BenchmarkError("\(program.name) returned \(result.verdict), not \(verdict)")
                }
                times.append(Double(result.duration))
            }
            return Figure.median(times)
        }
        let count = context.effort.pick(4000, quick: 1000)
        let known = (0..<count).map { flow(rig, family, $0 * 17 % context.effort.pick(100_000, quick: 20_000)) }
        let pod = rig.address(family, .pod)
        let arriving = (0..<count).map { number in
            ProgramRig.packet(rig.remote(family, number), pod, port: 7777, ethernet: false)
        }
        var turns = Alternation()
        turns.add("empty") { try each(rig.empty, known, passed) }
        turns.add("lookup") { try each(rig.lookup, known, passed) }
        turns.add("known") { try each(program, known, steered) }
        turns.add("new") {
            next += 1
            let packets = (0..<count).map { number in
                ProgramRig.packet(
                    pod, rig.remote(family, number % 1000 * 19), port: UInt16(30_000 + next * 5 + number / 1000))
            }
            return try each(program, packets, steered)
        }
        turns.add("arriving") { try each(arrival, arriving, steered) }
        let values = try turns.run(repeats: context.effort.repeats)
        let yardstick = (
            name: "a look-up in a trie of 20,000 prefixes", values: try values.net("lookup", less: "empty")
        )
        return [
            try Result(
                name, "\(family): from_pod, another known flow each time", try values.net("known", less: "empty"), "ns",
                yardstick: yardstick),
            try Result(
                name, "\(family): from_pod, new flow", try values.net("new", less: "empty"), "ns", yardstick: yardstick),
            try Result(
                name, "\(family): from_wireguard, another known flow each time",
                try values.net("arriving", less: "empty"),
                "ns",
                yardstick: yardstick),
        ]
    }
}
