// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Flows
import Model
import SystemDescriptors
import Testing

@Suite("Flows")
struct FlowTableTests {
    @Test("two directions are one biflow, from the side that spoke first", arguments: Addresses.both)
    func biflow(_ a: Addresses) throws {
        let harness = try Harness()
        for _ in 0..<3 { _ = try harness.run(.fromPod, PacketBuilder(a.pod, a.remotePod).tcp(40000, 80)) }
        let answer = PacketBuilder(a.remotePod, a.pod).tcp(80, 40000, flags: 18).layer3()
        for _ in 0..<2 { _ = try harness.run(.fromWireGuard, answer) }
        let names = [try #require(IPAddress(a.pod)): "mine", try #require(IPAddress(a.remotePod)): "theirs"]
        let flows = try FlowReader(harness.maps).biflows(FlowNames(addresses: names))
        #expect(flows.count == 1)
        let flow = try #require(flows.first)
        #expect(flow.sourceName == "mine" && flow.destinationName == "theirs" && flow.destinationPort == 80)
        #expect(flow.packets == 3 && flow.reversePackets == 2)
        #expect(flow.way == "tunnel" && flow.isEncrypted && flow.peer == "node2" && flow.transport == "tcp")
    }

    @Test("an echo and its reply are one biflow, and the asker is its source", arguments: Addresses.both)
    func echo(_ a: Addresses) throws {
        let harness = try Harness()
        _ = try harness.run(.fromPod, PacketBuilder(a.pod, a.remotePod).echo(9))
        _ = try harness.run(.fromWireGuard, PacketBuilder(a.remotePod, a.pod).echo(9, reply: true).layer3())
        let flows = try FlowReader(harness.maps).biflows()
        #expect(flows.count == 1)
        #expect(flows.first?.source.description == a.pod && flows.first?.reversePackets == 1)
    }

    @Test("clear, mixed and local flows are told apart", .setsIngressInterface, arguments: Addresses.both)
    func ways(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        harness.maps.destinations.setAction(a.slot, .clear)
        _ = try harness.run(.toUplink, packet, ingressInterface: 1)
        #expect(try FlowReader(harness.maps).biflows().first?.way == "clear")
        harness.maps.destinations.setAction(a.slot, .tunnel)
        _ = try harness.run(.fromPod, packet)
        let mixed = try #require(try FlowReader(harness.maps).biflows().first)
        #expect(mixed.way == "mixed" && !mixed.isEncrypted)
    }

    private func counts(_ swept: FlowSweeper.Swept) -> [Int] { [swept.gone.count, swept.mappings] }

    @Test(
        "what idles too long is taken out, both halves of a mapping together", arguments: Addresses.both, [true, false])
    func sweeping(_ a: Addresses, withFlows: Bool) throws {
        let harness = try Harness()
        let mark = PacketMark.counted | PacketMark.host
        _ = try harness.run(.fromPod, PacketBuilder(a.pod, a.remotePod).udp(1, 2))
        _ = try harness.run(.fromPod, PacketBuilder(a.pod, a.remotePod).tcp(1, 2, flags: 16))
        _ = try harness.run(.toWireGuard, PacketBuilder(a.host, a.remotePod).udp(5, 6).layer3(), mark: mark)
        let sweeper = FlowSweeper(harness.maps)
        let second: UInt64 = 1_000_000_000
        let now = monotonicNanoseconds()
        #expect(try counts(sweeper.sweep(now: now, withFlows: withFlows)) == [0, 0])
        #expect(
            try counts(sweeper.sweep(now: now + 61 * second, withFlows: withFlows)) == [1, 1],
            "UDP is over after a minute")
        #expect(try harness.maps.masquerade.entries().isEmpty)
        #expect(try harness.flows.keys.map(\.transport) == [6])
        #expect(
            try counts(sweeper.sweep(now: now + 3601 * second, withFlows: withFlows)) == [1, 0],
            "an established connection after an hour")
    }
}
