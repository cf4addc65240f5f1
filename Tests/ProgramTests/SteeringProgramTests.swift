// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Model
import SystemDescriptors
import Testing

@Suite("Programs: steering")
struct SteeringProgramTests {
    @Test("from_pod redirects a local pod's packet for a remote pod", arguments: Addresses.both)
    func podIsSteered(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1000, 2000)
        let result = try harness.run(.fromPod, packet)
        #expect(result.verdict == Harness.tunnelled)
        #expect(result.mark == PacketMark.counted)
        #expect(result.packet == packet.hops(63).bytes, "a hop less, and nothing else")
        let flow = try #require(try harness.flows.first)
        #expect(flow.value.packets == 1 && flow.value.bytes == UInt64(packet.bytes.count - 14))
        #expect(flow.value.isTunnelled && flow.value.slot == a.slot)
        #expect(flow.key.sourcePort == 1000 && flow.key.destinationPort == 2000 && flow.key.interface == 1)
        #expect(try harness.count(.fromPod, .tunnelled) == 1)
    }

    @Test("a known flow is counted in its entry", arguments: Addresses.both)
    func flowIsCounted(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.pod, a.remotePod).tcp(1000, 80, flags: 16)
        for _ in 0..<5 { #expect(try harness.run(.fromPod, packet).verdict == Harness.tunnelled) }
        let flows = try harness.flows
        #expect(flows.count == 1)
        #expect(flows.first?.value.packets == 5)
        #expect(flows.first?.value.tcpFlags == 16)
    }

    @Test("segments of a GSO packet are counted as the wire would see them", .setsSegmentSize)
    func segmentsAreCounted() throws {
        let harness = try Harness()
        let payload = [UInt8](repeating: 7, count: 2000)
        let packet = PacketBuilder("10.48.1.1", "10.48.2.1").tcp(1000, 80, flags: 16, payload: payload)
        _ = try harness.run(.fromPod, packet, segments: 2, segmentSize: 1000)
        let flow = try #require(try harness.flows.first?.value)
        #expect(flow.packets == 2)
        #expect(flow.bytes == 2000 + 2 * 40)
        // As a virtual machine, or wireguard-go by its TUN device, hands them over: nobody has counted them.
        _ = try harness.run(.fromPod, packet, segments: 0, segmentSize: 900)
        let after = try #require(try harness.flows.first?.value)
        #expect(after.packets == 2 + 3)
        #expect(after.bytes == 2 * 2000 + 5 * 40)
    }

    @Test("what is not for a remote pod passes", arguments: Addresses.both)
    func othersPass(_ a: Addresses) throws {
        let harness = try Harness()
        for destination in [a.outside, a.remoteNode, a.host] {
            let packet = PacketBuilder(a.pod, destination).udp(1, 2)
            #expect(try harness.run(.fromPod, packet).verdict == Harness.passed)
        }
        #expect(try harness.count(.fromPod, .tunnelled) == 0)
        // ARP, and anything else that is not IP.
        let program = try harness.programs.program(.fromPod, isEthernet: true)
        let arp = [UInt8](repeating: 0xff, count: 12) + [0x08, 0x06] + [UInt8](repeating: 0, count: 46)
        #expect(try program.testRun(arp, interface: 1).verdict == Harness.passed)
    }

    @Test("a source that is no local pod's is not steered", arguments: Addresses.both)
    func foreignSourcePasses(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.outside, a.remotePod).udp(1, 2)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.passed)
        // Nor that of a pod behind another device.
        try harness.maps.locals.update(#require(IPAddress(a.pod)), LocalAddress(kind: .pod, interface: 99))
        try harness.maps.config.raiseGeneration()
        #expect(try harness.run(.fromPod, PacketBuilder(a.pod, a.remotePod).udp(1, 2)).verdict == Harness.passed)
    }

    @Test("a slot's action is in force with the next packet of a known flow", arguments: Addresses.both)
    func actionChanges(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.tunnelled)
        harness.maps.destinations.setAction(a.slot, .drop)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.dropped)
        #expect(try harness.count(.fromPod, .dropNoTunnel) == 1)
        harness.maps.destinations.setAction(a.slot, .draining)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.passed)
        harness.maps.destinations.setAction(a.slot, .tunnel)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.tunnelled)
    }

    @Test("a route that moves takes its flows along, and no others", arguments: Addresses.both)
    func routeMoves(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.tunnelled)
        let host = CIDR(host: try #require(IPAddress(a.remotePod)))
        try harness.maps.routes.update(host, slot: DestinationSlot.pool)
        // Not in force for known flows until the generation of the slot is raised.
        #expect(try harness.run(.fromPod, packet).verdict == Harness.tunnelled)
        harness.maps.destinations.raiseGeneration(a.slot)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.passed)
        #expect(try harness.flows.count == 1)
        #expect(try harness.flows.first?.value.packets == 3)
    }

    @Test(
        "on the stack path from_pod counts and marks, to_uplink steers", .setsIngressInterface,
        arguments: Addresses.both)
    func stackPath(_ a: Addresses) throws {
        let harness = try Harness()
        try harness.configure(direct: false)
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        let first = try harness.run(.fromPod, packet)
        #expect(first.verdict == Harness.passed && first.mark == PacketMark.counted)
        let second = try harness.run(.toUplink, packet, mark: first.mark, ingressInterface: 1)
        #expect(second.verdict == Harness.tunnelled)
        #expect(try harness.flows.count == 1, "one entry, found by the device the packet came in by")
        #expect(try harness.flows.first?.value.packets == 1, "counted once")
    }

    @Test(
        "a pod that nobody has told us of is steered too: its address is of our block", .setsIngressInterface,
        arguments: Addresses.both)
    func unknownPod(_ a: Addresses) throws {
        let harness = try Harness()
        let unknown = a.family == .ipv4 ? "10.48.1.40" : "fd48:0:0:1::28"
        let packet = PacketBuilder(unknown, a.remotePod).udp(1, 2)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.tunnelled)
        #expect(try harness.run(.toUplink, packet, ingressInterface: 1).verdict == Harness.tunnelled)
        #expect(try harness.run(.toUplink, packet).verdict == Harness.passed, "the host does not speak from it")
    }

    @Test("what came out of WireGuard does not leave again for a pod", .setsIngressInterface, arguments: Addresses.both)
    func notHere(_ a: Addresses) throws {
        let harness = try Harness()
        let device = Harness.wireGuard + (a.family == .ipv4 ? 0 : 1)
        for destination in [a.pod, a.remotePod] {
            let packet = PacketBuilder(a.remotePod, destination).udp(1, 2)
            #expect(try harness.run(.toUplink, packet, ingressInterface: device).verdict == Harness.dropped)
        }
        #expect(try harness.count(.toUplink, .dropNotHere) == 2)
        let outside = PacketBuilder(a.remotePod, a.outside).udp(1, 2)
        #expect(try harness.run(.toUplink, outside, ingressInterface: device).verdict == Harness.passed)
    }

    @Test("to_uplink steers pods that from_pod has not seen", .setsIngressInterface, arguments: Addresses.both)
    func uplinkCatches(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        #expect(try harness.run(.toUplink, packet, ingressInterface: 1).verdict == Harness.tunnelled)
        #expect(try harness.run(.toUplink, packet.layer3(), ingressInterface: 1).verdict == Harness.tunnelled)
    }

    @Test("WireGuard's own packets pass, and only those", .setsIngressInterface, arguments: Addresses.both)
    func outerPasses(_ a: Addresses) throws {
        let harness = try Harness()
        let mark: UInt32 = 0x2000_0000
        let outer = PacketBuilder(a.host, a.remoteNode).udp(a.port, a.port)
        #expect(try harness.run(.toUplink, outer, mark: mark).verdict == Harness.passed)
        // A pod that sets the mark gains nothing.
        for forged in [
            PacketBuilder(a.pod, a.remotePod).udp(a.port, a.port), PacketBuilder(a.pod, a.remotePod).tcp(a.port, 80),
        ] {
            #expect(try harness.run(.toUplink, forged, mark: mark, ingressInterface: 1).verdict == Harness.tunnelled)
        }
    }

    @Test("packets in clear for a pool are counted", .setsIngressInterface, arguments: Addresses.both)
    func clearIsCounted(_ a: Addresses) throws {
        let harness = try Harness()
        harness.maps.destinations.setAction(a.slot, .clear)
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        #expect(try harness.run(.toUplink, packet, ingressInterface: 1).verdict == Harness.passed)
        #expect(try harness.count(.toUplink, .clear) == 1)
        #expect(try harness.flows.first?.value.isClear == true)
    }

    @Test("every truncation is passed or dropped, never more", arguments: Addresses.both)
    func truncations(_ a: Addresses) throws {
        let harness = try Harness()
        let whole = PacketBuilder(a.pod, a.remotePod).tcp(1, 2).bytes
        let shortest = a.family == .ipv4 ? 34 : 54
        for length in shortest...whole.count {
            for hook in [Hook.fromPod, .toUplink, .fromUplink] {
                let program = try harness.programs.program(hook, isEthernet: true)
                let verdict = try program.testRun(Array(whole[..<length]), interface: 1).verdict
                #expect([Harness.passed, Harness.tunnelled].contains(verdict))
            }
        }
        #expect(try harness.count(.fromPod, .unparsable) > 0)
    }

    @Test("IPv6 extension headers are walked")
    func extensionHeaders() throws {
        let harness = try Harness()
        var packet = PacketBuilder("fd48:0:0:1::1", "fd48:0:0:2::1").udp(1000, 2000)
        packet.extensions = [(0, [0, 0, 0, 0, 0, 0, 0]), (60, [0, 0, 0, 0, 0, 0, 0])]
        #expect(try harness.run(.fromPod, packet).verdict == Harness.tunnelled)
        let key = try #require(try harness.flows.first?.key)
        #expect(key.transport == 17 && key.sourcePort == 1000 && key.destinationPort == 2000)
        // More than the bound is not for us to judge.
        packet.extensions = (0..<7).map { _ in (60, [0, 0, 0, 0, 0, 0, 0]) }
        #expect(try harness.run(.fromPod, packet).verdict == Harness.passed)
    }

    @Test("a family that is off is left alone", arguments: Addresses.both)
    func disabledFamily(_ a: Addresses) throws {
        let harness = try Harness()
        try harness.maps.config.write(DataplaneConfig(ipv4: nil, ipv6: nil, firewallMark: 0x2000_0000, isDirect: true))
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2)
        #expect(try harness.run(.fromPod, packet).verdict == Harness.passed)
        #expect(try harness.run(.toUplink, packet).verdict == Harness.passed)
    }
}

@Suite("Programs: from_uplink")
struct FromUplinkTests {
    @Test("WireGuard is for known nodes only", arguments: Addresses.both)
    func allowPolicy(_ a: Addresses) throws {
        let harness = try Harness()
        func verdict(_ source: String, _ destination: String, _ port: UInt16) throws -> Int32 {
            try harness.run(.fromUplink, PacketBuilder(source, destination).udp(40000, port)).verdict
        }
        #expect(try verdict(a.remoteNode, a.host, a.port) == Harness.passed)
        #expect(try verdict(a.outside, a.host, a.port) == Harness.dropped)
        #expect(try harness.count(.fromUplink, .dropUnknownEndpoint) == 1)
        // Another port, and somebody's own WireGuard in a pod, are none of ours.
        #expect(try verdict(a.outside, a.host, a.port + 10) == Harness.passed)
        #expect(try verdict(a.outside, a.pod, a.port) == Harness.passed)
        // The device's address may be the node's own.
        try harness.maps.locals.update(#require(IPAddress(a.host)), LocalAddress(kind: .tunnel))
        #expect(try verdict(a.outside, a.host, a.port) == Harness.dropped)
        #expect(try verdict(a.remoteNode, a.host, a.port) == Harness.passed)
        // An endpoint that goes is refused with the next packet.
        try harness.maps.endpoints.delete(#require(IPAddress(a.remoteNode)))
        #expect(try verdict(a.remoteNode, a.host, a.port) == Harness.dropped)
    }

    @Test("a port that changes: what comes to the one before is led to the new one", arguments: Addresses.both)
    func portChanges(_ a: Addresses) throws {
        let harness = try Harness()
        // Programs look for the socket that has the port.
        let socket = try InternetSocket(.udp, isIPv6: a.family == .ipv6, timeoutMilliseconds: 100)
        try socket.bind(SocketAddress([UInt8](repeating: 0, count: a.family == .ipv4 ? 4 : 16)))
        let port = try #require(try socket.local()).port
        let before = PacketBuilder(a.remoteNode, a.host).udp(40000, 4444, payload: Array("hello".utf8))
        let after = PacketBuilder(a.remoteNode, a.host).udp(40000, port, payload: Array("hello".utf8))
        var result = try harness.run(.fromUplink, before)
        #expect(result.verdict == Harness.passed && result.packet == before.bytes)
        var config = try harness.maps.config.read().0
        // The device has changed, and is yet to change.
        for (own, other) in [(port, UInt16(4444)), (4444, port)] {
            config[a.family]?.listeningPort = own
            config[a.family]?.otherPort = other
            try harness.maps.config.write(config)
            for packet in [before, after] {
                result = try harness.run(.fromUplink, packet)
                #expect(result.verdict == Harness.passed && result.packet == after.bytes)
            }
        }
        config[a.family]?.listeningPort = a.port
        config[a.family]?.otherPort = 4444
        try harness.maps.config.write(config)
        let stranger = PacketBuilder(a.outside, a.host).udp(40000, 4444)
        #expect(try harness.run(.fromUplink, stranger).verdict == Harness.dropped)
        // What still leaves by the port before, or with the mark before, is WireGuard's own.
        config.encryptsHosts = true
        config.oldFirewallMark = 0x0010_0000
        try harness.maps.config.write(config)
        try harness.maps.routes.update(CIDR(host: #require(IPAddress(a.remoteNode))), slot: a.slot)
        for (mark, port, isOuter) in [
            (UInt32(0x2000_0000), a.port, true), (0x2000_0000, 4444, true), (0x0010_0000, 4444, true),
            (0x0040_0000, a.port, false), (0x2000_0000, 4445, false),
        ] {
            let outer = PacketBuilder(a.host, a.remoteNode).udp(port, a.port)
            let verdict = try harness.run(.toUplink, outer, mark: mark).verdict
            #expect((verdict == Harness.passed) == isOuter, "mark \(mark), port \(port)")
        }
    }

    @Test("with a peer behind NAT anybody may speak WireGuard", arguments: Addresses.both)
    func roaming(_ a: Addresses) throws {
        let harness = try Harness()
        var config = try harness.maps.config.read().0
        config.admitsAnybody = true
        try harness.maps.config.write(config)
        let stranger = PacketBuilder(a.outside, a.host).udp(40000, a.port)
        #expect(try harness.run(.fromUplink, stranger).verdict == Harness.passed)
        let elsewhere = PacketBuilder(a.outside, a.host).udp(40000, a.port + 10)
        #expect(try harness.run(.fromUplink, elsewhere).verdict == Harness.passed)
    }

    @Test("a pod's packets that arrive in clear are recorded", arguments: Addresses.both)
    func clearArrivals(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.remotePod, a.pod).udp(5, 6)
        #expect(try harness.run(.fromUplink, packet).verdict == Harness.passed)
        let flow = try #require(try harness.flows.first)
        #expect(flow.value.isClear && flow.value.hook == .fromUplink)
    }
}
