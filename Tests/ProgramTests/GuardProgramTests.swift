// SPDX-License-Identifier: Apache-2.0

import BPF
import Foundation
import DataplaneMaps
import Model
import SystemDescriptors
import Testing

@Suite("Programs: strict mode, sources, sizes")
struct GuardProgramTests {
    private func change(_ harness: Harness, _ body: (inout DataplaneConfig) -> Void) throws {
        var config = try harness.maps.config.read().0
        body(&config)
        try harness.maps.config.write(config)
    }

    @Test(
        "strict mode drops what would leave in clear, and what arrives so", .setsIngressInterface,
        arguments: Addresses.both)
    func strict(_ a: Addresses) throws {
        let harness = try Harness()
        harness.maps.destinations.setAction(a.slot, .clear)
        let out = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        let back = PacketBuilder(a.remotePod, a.pod).udp(2, 1)
        // Passed and counted while it is not strict: the leak counter is there for everyone.
        #expect(try harness.run(.fromPod, out).verdict == Harness.passed)
        #expect(try harness.run(.toUplink, out, ingressInterface: 1).verdict == Harness.passed)
        #expect(try harness.run(.fromUplink, back).verdict == Harness.passed)
        #expect(try harness.count(.toUplink, .clear) == 1)
        #expect(try harness.count(.fromUplink, .clearArrived) == 1)
        try change(harness) { $0.isStrict = true }
        for action in [DestinationAction.clear, .draining] {
            harness.maps.destinations.setAction(a.slot, action)
            #expect(try harness.run(.fromPod, out).verdict == Harness.dropped)
            #expect(try harness.run(.toUplink, out, ingressInterface: 1).verdict == Harness.dropped)
            #expect(try harness.run(.toUplink, PacketBuilder(a.host, a.remotePod).udp(5, 6)).verdict == Harness.dropped)
            #expect(try harness.run(.fromUplink, back).verdict == Harness.dropped)
        }
        #expect(try harness.count(.toUplink, .dropClear) == 4)
        #expect(try harness.count(.fromUplink, .dropClearArrived) == 2)
        #expect(try harness.flows.contains { $0.value.dropReason == .dropClear })
        // A pod of the pool that no node has, and one that the stack sends the wrong way.
        let nobody = a.family == .ipv4 ? "10.48.200.1" : "fd48:0:0:200::1"
        #expect(try harness.run(.fromPod, PacketBuilder(a.pod, nobody).udp(1, 2)).verdict == Harness.dropped)
        // By the operator's choice.
        harness.maps.destinations.setAction(a.slot, .exempt)
        #expect(try harness.run(.toUplink, out, ingressInterface: 1).verdict == Harness.passed)
        #expect(try harness.run(.fromUplink, back).verdict == Harness.passed)
        #expect(try harness.count(.toUplink, .clearExempt) == 1)
        // Nothing else is touched.
        #expect(try harness.run(.toUplink, PacketBuilder(a.pod, a.outside).udp(1, 2)).verdict == Harness.passed)
        #expect(try harness.run(.fromUplink, PacketBuilder(a.outside, a.pod).udp(1, 2)).verdict == Harness.passed)
        #expect(try harness.run(.fromUplink, PacketBuilder(a.remotePod, a.host).udp(1, 2)).verdict == Harness.passed)
    }

    @Test("what an overlay carries is recognised", arguments: Addresses.both)
    func overlays(_ a: Addresses) throws {
        let harness = try Harness()
        try change(harness) { $0.vxlanPorts = [4789, 8472] }
        let header: [UInt8] = [8, 0, 0, 0, 0, 0, 1, 0]
        func vxlan(_ inner: PacketBuilder, _ port: UInt16 = 4789) -> PacketBuilder {
            PacketBuilder(a.host, a.remoteNode).udp(4242, port, payload: header + inner.bytes)
        }
        func ipip(_ inner: PacketBuilder) -> PacketBuilder {
            var packet = PacketBuilder(a.host, a.remoteNode)
            packet.transport = a.family == .ipv4 ? 4 : 41
            packet.segment = inner.layer3().bytes
            return packet
        }
        let pods = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        let others = PacketBuilder(a.pod, a.outside).udp(1, 2)
        for packet in [vxlan(pods), vxlan(pods, 8472), ipip(pods)] {
            #expect(try harness.run(.toUplink, packet).verdict == Harness.passed)
        }
        #expect(try harness.count(.toUplink, .clearEncapsulated) == 3)
        try change(harness) { $0.isStrict = true }
        for packet in [vxlan(pods), vxlan(pods, 8472), ipip(pods)] {
            #expect(try harness.run(.toUplink, packet).verdict == Harness.dropped)
            #expect(try harness.run(.fromUplink, packet).verdict == Harness.dropped)
        }
        #expect(try harness.count(.toUplink, .dropEncapsulated) == 3)
        for packet in [vxlan(others), vxlan(pods, 4790), ipip(others)] {
            #expect(try harness.run(.toUplink, packet).verdict == Harness.passed)
        }
    }

    @Test("the second lock holds by itself", arguments: Addresses.both)
    func secondLock(_ a: Addresses) throws {
        let harness = try Harness()
        for hook in [Hook.guardOut, .guardIn] {
            for isEthernet in [true, false] { _ = try harness.programs.program(hook, isEthernet: isEthernet) }
        }
        let guards = try GuardTable(harness.layout)
        try guards.update(try #require(CIDR(a.family == .ipv4 ? "10.48.0.0/16" : "fd48::/48")), .pool)
        let pods = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        let wrapped = PacketBuilder(a.host, a.remoteNode).udp(9, 4789, payload: [8, 0, 0, 0, 0, 0, 1, 0] + pods.bytes)
        for hook in [Hook.guardOut, .guardIn] {
            for packet in [pods, pods.layer3(), wrapped, wrapped.layer3()] {
                #expect(try harness.run(hook, packet).verdict == Harness.dropped)
            }
            for packet in [
                PacketBuilder(a.host, a.remotePod).udp(1, 2), PacketBuilder(a.pod, a.outside).udp(1, 2),
                PacketBuilder(a.host, a.remoteNode).udp(a.port, a.port),
            ] { #expect(try harness.run(hook, packet).verdict == Harness.passed) }
            let reason: Reason = hook == .guardOut ? .dropClear : .dropClearArrived
            #expect(try harness.count(hook, reason) == 2 && harness.count(hook, .dropEncapsulated) == 2)
        }
        try guards.update(try #require(CIDR(a.family == .ipv4 ? "10.48.2.0/24" : "fd48:0:0:2::/64")), .exempt)
        #expect(try harness.run(.guardOut, pods).verdict == Harness.passed)
    }

    @Test("a pod sends from its own addresses only", arguments: Addresses.both)
    func sources(_ a: Addresses) throws {
        let harness = try Harness()
        try change(harness) { $0.checksSources = true }
        let forged = PacketBuilder(a.outside, a.remotePod).udp(1, 2)
        #expect(try harness.run(.fromPod, forged).verdict == Harness.passed, "nobody knows whose device it is")
        try harness.maps.interfaces.update(checked: 1)
        try harness.maps.config.raiseGeneration()
        let unknown = a.family == .ipv4 ? "10.48.1.40" : "fd48:0:0:1::28"
        for source in [a.outside, a.host, unknown, a.remotePod] {
            #expect(try harness.run(.fromPod, PacketBuilder(source, a.remotePod).udp(1, 2)).verdict == Harness.dropped)
        }
        #expect(try harness.count(.fromPod, .dropSpoofed) == 4)
        #expect(try harness.flows.count == 1, "a flood of forged sources leaves no entries")
        #expect(try harness.run(.fromPod, PacketBuilder(a.pod, a.remotePod).udp(1, 2)).verdict == Harness.tunnelled)
        // Link business: address configuration, neighbour discovery.
        let business =
            a.family == .ipv4
            ? [PacketBuilder("0.0.0.0", "255.255.255.255").udp(68, 67)]
            : [
                PacketBuilder("fe80::1", "ff02::1").icmp(type: 135, code: 0, payload: [UInt8](repeating: 0, count: 16)),
                PacketBuilder("::", "ff02::1").icmp(type: 135, code: 0, payload: [UInt8](repeating: 0, count: 16)),
            ]
        for packet in business { #expect(try harness.run(.fromPod, packet).verdict == Harness.passed) }
        // More, by annotation.
        let host = CIDR(host: try #require(IPAddress(a.outside)))
        try harness.maps.allowedSources.update(AllowedSource(interface: 1, prefix: host))
        #expect(try harness.run(.fromPod, forged).verdict == Harness.passed)
    }

    @Test(
        "what is too big for the tunnel is answered with its MTU", .setsIngressInterface, .setsSegmentSize,
        arguments: Addresses.both)
    func tooBig(_ a: Addresses) throws {
        let harness = try Harness()
        try change(harness) {
            $0.ipv4?.mtu = 1440
            $0.ipv6?.mtu = 1420
        }
        var packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2, payload: [UInt8](repeating: 7, count: 1450))
        packet.fragment = 0x4000
        let quoted = Array(packet.layer3().bytes.prefix(a.family == .ipv4 ? 80 : 128))
        let mtu: [UInt8] = a.family == .ipv4 ? [0, 0, 5, 160] : [0, 0, 5, 140]
        func answer(_ source: String) -> PacketBuilder {
            var answer = PacketBuilder(source, a.pod).icmp(
                type: a.family == .ipv4 ? 3 : 2, code: a.family == .ipv4 ? 4 : 0, payload: quoted)
            answer.segment.replaceSubrange(4..<8, with: mtu)
            return answer
        }
        // Of an IP header without identification, and with the link's addresses turned round.
        func same(_ result: [UInt8], _ expected: PacketBuilder) -> Bool {
            var bytes = expected.bytes
            bytes.replaceSubrange(0..<12, with: packet.bytes[6..<12] + packet.bytes[0..<6])
            if a.family == .ipv4 {
                bytes.replaceSubrange(18..<20, with: [0, 0])
                bytes.replaceSubrange(24..<26, with: [0, 0])
                bytes.replaceSubrange(24..<26, with: PacketBuilder.word(internetChecksum(Array(bytes[14..<34]))))
            }
            return result == bytes
        }
        let fromPod = try harness.run(.fromPod, packet)
        #expect(fromPod.verdict == Harness.tunnelled && same(fromPod.packet, answer(a.tunnel)))
        let toUplink = try harness.run(.toUplink, packet, ingressInterface: 1)
        #expect(toUplink.verdict == Harness.tunnelled && same(toUplink.packet, answer(a.remotePod)))
        #expect(toUplink.mark == 0, "it goes to the device that it came in by")
        // What the host itself has sent is answered by way of the uplink.
        var own = packet
        own.source = try #require(IPAddress(a.host))
        let toHost = try harness.run(.toUplink, own)
        #expect(toHost.verdict == Harness.tunnelled && toHost.mark == PacketMark.counted)
        // from_uplink lets our own answer in, in strict mode too.
        try change(harness) { $0.isStrict = true }
        #expect(try harness.run(.fromUplink, answer(a.remotePod), mark: PacketMark.counted).verdict == Harness.passed)
        if a.family == .ipv4 {
            packet.fragment = 0
            #expect(try harness.run(.fromPod, packet).packet.count == packet.bytes.count)
            #expect(try harness.count(.fromPod, .oversized) == 1)
        }
        // Segments are judged one by one.
        let large = PacketBuilder(a.pod, a.remotePod).tcp(1, 2, flags: 16, payload: [UInt8](repeating: 7, count: 2700))
        #expect(try harness.run(.fromPod, large, segments: 2, segmentSize: 1350).packet.count == large.bytes.count)
    }

    @Test("answers are limited in number")
    func answersAreLimited() throws {
        let harness = try Harness()
        try change(harness) { $0.ipv4?.mtu = 600 }
        var packet = PacketBuilder("10.48.1.1", "10.48.2.1").udp(1, 2, payload: [UInt8](repeating: 7, count: 700))
        packet.fragment = 0x4000
        let began = ContinuousClock.now
        for _ in 0..<2000 { _ = try harness.run(.fromPod, packet) }
        let tenths = Int((ContinuousClock.now - began) / .milliseconds(100))
        let answered = try harness.count(.fromPod, .dropTooBig)
        // A hundred in a tenth of a second, by each processor; what a slow machine sends may all be answered.
        let limit = 100 * (tenths + 2) * ProcessInfo.processInfo.activeProcessorCount
        #expect(answered >= 100 && answered <= limit, "\(answered) in \(tenths) tenths of a second")
        #expect(try harness.count(.fromPod, .dropTooBigQuiet) + answered == 2000)
    }

    @Test("the last hop is the stack's to tell", arguments: Addresses.both)
    func hopLimit(_ a: Addresses) throws {
        let harness = try Harness()
        let last = PacketBuilder(a.pod, a.remotePod).udp(1, 2).hops(1)
        #expect(try harness.run(.fromPod, last).verdict == Harness.passed)
        let arriving = PacketBuilder(a.remotePod, a.pod).udp(1, 2).hops(1).layer3()
        #expect(try harness.run(.fromWireGuard, arriving).verdict == Harness.passed)
        #expect(try harness.run(.fromWireGuard, arriving.hops(2)).verdict == Harness.tunnelled)
        // What does not fit into the pod's device is the stack's too.
        try harness.maps.locals.update(
            #require(IPAddress(a.pod)), LocalAddress(kind: .pod, interface: 1, mtu: a.family == .ipv4 ? 600 : 1280))
        let large = PacketBuilder(a.remotePod, a.pod).udp(1, 2, payload: [UInt8](repeating: 7, count: 1300)).layer3()
        #expect(try harness.run(.fromWireGuard, large).verdict == Harness.passed)
    }

    @Test("a SYN's segment size is lowered to what the tunnel takes, at any offset", arguments: Addresses.both)
    func segmentSize(_ a: Addresses) throws {
        let harness = try Harness()
        try change(harness) {
            $0.ipv4?.maximumSegment = 1400
            $0.ipv6?.maximumSegment = 1360
        }
        let limit = PacketBuilder.word(a.family == .ipv4 ? 1400 : 1360)
        for padding in 0..<4 {
            let before = [UInt8](repeating: 1, count: padding)
            let after = [UInt8](repeating: 0, count: (8 - padding - 4) % 4)
            func packet(_ size: [UInt8], _ flags: UInt8) -> PacketBuilder {
                PacketBuilder(a.pod, a.remotePod).tcp(1, 2, flags: flags, options: before + [2, 4] + size + after)
            }
            let large = PacketBuilder.word(8960)
            #expect(try harness.run(.fromPod, packet(large, 2)).packet == packet(limit, 2).hops(63).bytes)
            #expect(try harness.run(.fromPod, packet(large, 18)).packet == packet(limit, 18).hops(63).bytes)
            #expect(try harness.run(.fromPod, packet([2, 0], 2)).packet == packet([2, 0], 2).hops(63).bytes)
        }
        #expect(try harness.count(.fromPod, .mssClamped) == 8)
    }

    @Test("the way back of what the stack has steered is the stack", .setsIngressInterface, arguments: Addresses.both)
    func returnByStack(_ a: Addresses) throws {
        let harness = try Harness()
        let device = Harness.interface
        try change(harness) {
            $0.ipv4?.interface = device
            $0.ipv6?.interface = device
        }
        let answer = PacketBuilder(a.remotePod, a.pod).udp(53, 4000).layer3()
        _ = try harness.run(.fromWireGuard, PacketBuilder(a.remotePod, a.pod).udp(54, 4000).layer3())
        let pod = try #require(IPAddress(a.pod))
        try harness.maps.locals.update(pod, LocalAddress(kind: .pod, interface: 7))
        let question = PacketBuilder(a.pod, a.remotePod).udp(4000, 53)
        #expect(try harness.run(.toUplink, question, ingressInterface: 7).verdict == Harness.tunnelled)
        try harness.maps.locals.update(pod, LocalAddress(kind: .pod, interface: device))
        #expect(try harness.run(.fromWireGuard, answer).verdict == Harness.passed, "netfilter undoes what it did")
        #expect(
            try harness.run(.fromWireGuard, PacketBuilder(a.remotePod, a.pod).udp(54, 4000).layer3()).verdict
                == Harness.tunnelled, "others are delivered at once")
    }

    @Test("drops and new flows are told to who listens, and to nobody else")
    func events() throws {
        let harness = try Harness()
        var reader = try harness.maps.events.reader()
        let packet = PacketBuilder("10.48.1.1", "10.48.2.1").udp(7, 8)
        let strange = PacketBuilder("192.0.2.1", "10.0.0.1").udp(40000, 51820)
        _ = try harness.run(.fromPod, packet)
        _ = try harness.run(.fromUplink, strange)
        #expect(try reader.next(withinMilliseconds: 0).isEmpty)
        let later = monotonicNanoseconds() + 60_000_000_000
        try harness.maps.events.listen(to: .drop, until: later)
        try harness.maps.events.listen(to: .flow, until: later)
        _ = try harness.run(.fromPod, PacketBuilder("10.48.1.1", "10.48.2.1").udp(7, 9))
        _ = try harness.run(.fromPod, packet)
        _ = try harness.run(.fromUplink, strange)
        let events = try reader.next(withinMilliseconds: 100)
        #expect(events.map(\.kind) == [.flow, .drop])
        #expect(events.first?.key.destinationPort == 9 && events.first?.hook == .fromPod)
        #expect(events.last?.reason == .dropUnknownEndpoint && events.last?.key.source.description == "192.0.2.1")
    }
}
