// SPDX-License-Identifier: Apache-2.0

import BPF
import CTestSupport
import DataplaneMaps
import Foundation
import Model
import Testing

/// What each way through the programs costs, in instructions: walked one by one over the maps as they are, and held
/// against the kernel's verdict on the same packet.
@Suite("Paths")
struct PathTests {
    /// One packet at one hook, whose verdict is known.
    private struct Path {
        var name: String
        var hook: Hook
        var packet: PacketBuilder
        var verdict: Int32
        var mark: UInt32 = 0
    }

    private static func paths(_ a: Addresses) -> [Path] {
        let wireguard = PacketBuilder(a.host, a.remoteNode).udp(a.port, a.port)
        let steered = PacketBuilder(a.pod, a.remotePod).udp(1000, 2000)
        let back = PacketBuilder(a.remotePod, a.pod).udp(2000, 1000).layer3()
        return [
            Path(name: "from_pod, new flow", hook: .fromPod, packet: steered, verdict: Harness.tunnelled),
            Path(name: "from_pod, known flow", hook: .fromPod, packet: steered, verdict: Harness.tunnelled),
            Path(
                name: "from_pod, known TCP flow", hook: .fromPod,
                packet: PacketBuilder(a.pod, a.remotePod).tcp(1001, 80, flags: 16), verdict: Harness.tunnelled),
            Path(
                name: "from_pod, to the world outside", hook: .fromPod,
                packet: PacketBuilder(a.pod, a.outside).udp(1, 2), verdict: Harness.passed),
            Path(
                name: "from_pod, forged source: drop", hook: .fromPod,
                packet: PacketBuilder(a.remotePod, a.remotePod).udp(1, 2), verdict: Harness.dropped),
            Path(
                name: "to_uplink, the node's own to outside", hook: .toUplink,
                packet: PacketBuilder(a.host, a.outside).udp(1, 2), verdict: Harness.passed),
            Path(
                name: "to_uplink, WireGuard's own", hook: .toUplink, packet: wireguard, verdict: Harness.passed,
                mark: 0x2000_0000),
            Path(
                name: "from_uplink, WireGuard from a peer", hook: .fromUplink,
                packet: PacketBuilder(a.remoteNode, a.host).udp(a.port, a.port), verdict: Harness.passed),
            Path(
                name: "from_uplink, WireGuard from a stranger: drop", hook: .fromUplink,
                packet: PacketBuilder(a.outside, a.host).udp(a.port, a.port), verdict: Harness.dropped),
            Path(
                name: "from_uplink, anything else", hook: .fromUplink,
                packet: PacketBuilder(a.outside, a.host).tcp(4000, 443, flags: 16), verdict: Harness.passed),
            Path(
                name: "to_wireguard, a pod's", hook: .toWireGuard, packet: steered.layer3(), verdict: Harness.passed),
            Path(name: "from_wireguard, known flow", hook: .fromWireGuard, packet: back, verdict: Harness.tunnelled),
        ]
    }

    @Test(
        "each way through the programs takes no more instructions than before",
        .enabled(if: BoundsTests.isKernel, "kernel: the bounds are another one's"),
        arguments: Addresses.both)
    func bounds(_ a: Addresses) throws {
        let bounds = try BoundsTests.bounds.get().pathInstructions
        let harness = try Harness()
        var config = try harness.maps.config.read().0
        config.checksSources = true
        try harness.maps.config.write(config)
        try harness.maps.interfaces.update(checked: Harness.interface)
        var programs: [Hook: OpaquePointer] = [:]
        defer { for program in programs.values { wgt_program_close(program) } }
        for path in Self.paths(a) {
            let name = "\(path.name), \(a.family)"
            if path.name.contains("known") {
                // Not by the first packet, which makes the flow.
                for _ in 0..<2 { _ = try harness.run(path.hook, path.packet, mark: path.mark) }
            }
            let program = try programs[path.hook] ?? Self.open(path, harness)
            programs[path.hook] = program
            let walk = Self.walk(program, path)
            #expect(walk.failure.map { String(cString: $0) } == nil, "\(name)")
            let kernel = try harness.run(path.hook, path.packet, mark: path.mark)
            #expect(
                walk.verdict == kernel.verdict && kernel.verdict == path.verdict,
                "\(name): \(walk.verdict), \(kernel.verdict)")
            print("\(name): \(walk.instructions) instructions, \(walk.helpers) helpers")
            #expect(walk.instructions <= bounds[name] ?? 0, "\(name)")
        }
    }

    private static func open(_ path: Path, _ harness: Harness) throws -> OpaquePointer {
        let source = try #require(harness.programs.source(path.hook, isEthernet: path.packet.hasEthernet))
        return try #require(
            wgt_program_open(
                source.image, source.image.count, harness.layout.folder, source.constants, source.constants.count),
            "errno \(errno)")
    }

    private static func walk(_ program: OpaquePointer, _ path: Path) -> wgt_walk {
        var bytes = path.packet.bytes
        var walk = wgt_walk()
        // As BPF_PROG_TEST_RUN has it: what stands where an Ethernet header's type would.
        walk.protocol = UInt16(bytes[12]) | UInt16(bytes[13]) << 8
        walk.size = bytes.count
        walk.mark = path.mark
        walk.ifindex = Harness.interface
        bytes.withUnsafeMutableBufferPointer { buffer in
            walk.packet = buffer.baseAddress
            wgt_program_walk(program, &walk)
        }
        return walk
    }
}
