// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Model
import Testing

@Suite("Programs: masquerade")
struct MasqueradeProgramTests {
    static let hostMark = PacketMark.counted | PacketMark.host

    /// One packet of each transport with a port, from a source to a destination.
    static func packets(_ source: String, _ destination: String) -> [PacketBuilder] {
        [
            PacketBuilder(source, destination).udp(40000, 53), PacketBuilder(source, destination).tcp(40001, 80),
            PacketBuilder(source, destination).echo(77),
        ]
    }

    @Test("to_uplink steers what the host begins", arguments: Addresses.both)
    func hostIsSteered(_ a: Addresses) throws {
        let harness = try Harness()
        for packet in Self.packets(a.host, a.remotePod) {
            let result = try harness.run(.toUplink, packet)
            #expect(result.verdict == Harness.tunnelled)
            #expect(result.mark == Self.hostMark)
        }
    }

    @Test("what began outside the tunnel goes on outside", arguments: Addresses.both)
    func hostContinues(_ a: Addresses) throws {
        let harness = try Harness()
        let answers = [
            PacketBuilder(a.host, a.remotePod).tcp(80, 40000, flags: 18),
            PacketBuilder(a.host, a.remotePod).tcp(80, 40001, flags: 16),
            PacketBuilder(a.host, a.remotePod).echo(5, reply: true),
        ]
        for packet in answers { #expect(try harness.run(.toUplink, packet).verdict == Harness.passed) }
        // UDP: the question was seen to come in clear.
        _ = try harness.run(.fromUplink, PacketBuilder(a.remotePod, a.host).udp(7, 8))
        #expect(try harness.run(.toUplink, PacketBuilder(a.host, a.remotePod).udp(8, 7)).verdict == Harness.passed)
        #expect(try harness.run(.toUplink, PacketBuilder(a.host, a.remotePod).udp(8, 9)).verdict == Harness.tunnelled)
        // What speaks from the tunnel's address was asked through the tunnel; errors quote such.
        for packet in [
            PacketBuilder(a.tunnel, a.remotePod).tcp(80, 40009, flags: 18),
            PacketBuilder(a.tunnel, a.remotePod).echo(6, reply: true),
            PacketBuilder(a.host, a.remotePod).icmp(type: a.family == .ipv4 ? 3 : 1, code: 3, payload: [1, 2, 3, 4]),
        ] { #expect(try harness.run(.toUplink, packet).verdict == Harness.tunnelled) }
        // A new connection on a tuple that went in clear is a new flow.
        #expect(
            try harness.run(.toUplink, PacketBuilder(a.host, a.remotePod).tcp(80, 40001)).verdict == Harness.tunnelled)
    }

    @Test("a connection begun while the peer was not ready stays in clear when it is", arguments: Addresses.both)
    func begunInClear(_ a: Addresses) throws {
        let harness = try Harness()
        harness.maps.destinations.setAction(a.slot, .clear)
        func verdict(_ flags: UInt8) throws -> Int32 {
            try harness.run(.toUplink, PacketBuilder(a.host, a.remotePod).tcp(40000, 80, flags: flags)).verdict
        }
        #expect(try verdict(2) == Harness.passed)
        harness.maps.destinations.setAction(a.slot, .tunnel)
        #expect(try verdict(16) == Harness.passed)
        harness.maps.destinations.raiseGeneration(a.slot)
        #expect(try verdict(16) == Harness.passed)
        #expect(try verdict(2) == Harness.tunnelled, "a new connection on the tuple")
        #expect(try verdict(16) == Harness.tunnelled, "and goes on there")
    }

    @Test("the source becomes the device's, and the answer finds back", arguments: Addresses.both)
    func thereAndBack(_ a: Addresses) throws {
        let harness = try Harness()
        let answers = [
            PacketBuilder(a.remotePod, a.tunnel).udp(53, 40000),
            PacketBuilder(a.remotePod, a.tunnel).tcp(80, 40001, flags: 18),
            PacketBuilder(a.remotePod, a.tunnel).echo(77, reply: true),
        ]
        let restored = [
            PacketBuilder(a.remotePod, a.host).udp(53, 40000),
            PacketBuilder(a.remotePod, a.host).tcp(80, 40001, flags: 18),
            PacketBuilder(a.remotePod, a.host).echo(77, reply: true),
        ]
        for (index, packet) in Self.packets(a.host, a.remotePod).enumerated() {
            let out = try harness.run(.toWireGuard, packet.layer3(), mark: Self.hostMark)
            #expect(out.verdict == Harness.passed && out.mark == 0, "our marks do not leave")
            let expected = Self.packets(a.tunnel, a.remotePod)[index].layer3()
            #expect(out.packet == expected.bytes, "addresses and checksums, byte for byte")
            let back = try harness.run(.fromWireGuard, answers[index].layer3())
            #expect(back.verdict == Harness.passed)
            #expect(back.packet == restored[index].layer3().bytes)
        }
        #expect(try harness.count(.toWireGuard, .masqueraded) == 3)
        #expect(try harness.count(.fromWireGuard, .unmasqueraded) == 3)
        #expect(try harness.maps.masquerade.entries().count == 6, "two halves each")
    }

    @Test("a port that is taken is exchanged", arguments: Addresses.both)
    func portCollision(_ a: Addresses) throws {
        let harness = try Harness()
        // The device's own address sends from port 40000 to the same server.
        let own = PacketBuilder(a.tunnel, a.remotePod).udp(40000, 53).layer3()
        #expect(try harness.run(.toWireGuard, own, mark: Self.hostMark).packet == own.bytes)
        let packet = PacketBuilder(a.host, a.remotePod).udp(40000, 53).layer3()
        let first = try harness.run(.toWireGuard, packet, mark: Self.hostMark)
        let header = a.family == .ipv4 ? 20 : 40
        let port = UInt16(first.packet[header]) << 8 | UInt16(first.packet[header + 1])
        #expect(port != 40000 && (32768...60999).contains(port))
        #expect(first.packet == PacketBuilder(a.tunnel, a.remotePod).udp(port, 53).layer3().bytes)
        // The next packet of the flow has the same port; the answer goes back to the host's own.
        #expect(try harness.run(.toWireGuard, packet, mark: Self.hostMark).packet == first.packet)
        let answer = PacketBuilder(a.remotePod, a.tunnel).udp(53, port).layer3()
        #expect(
            try harness.run(.fromWireGuard, answer).packet
                == PacketBuilder(a.remotePod, a.host).udp(53, 40000).layer3().bytes)
    }

    @Test("ports that run out are counted and dropped", arguments: Addresses.both)
    func exhaustion(_ a: Addresses) throws {
        let harness = try Harness()
        try harness.configure(ports: 50000...50001)
        // A second host address that wants the same ports of the same server.
        let second = a.family == .ipv4 ? "10.0.0.77" : "fd00::77"
        try harness.maps.locals.update(#require(IPAddress(second)), LocalAddress(kind: .host))
        var verdicts: [Int32] = []
        for port in UInt16(50000)...50001 {
            for host in [a.host, second] {
                let packet = PacketBuilder(host, a.remotePod).udp(port, 53).layer3()
                verdicts.append(try harness.run(.toWireGuard, packet, mark: Self.hostMark).verdict)
            }
        }
        #expect(verdicts.filter { $0 == Harness.passed }.count == 2)
        #expect(verdicts.filter { $0 == Harness.dropped }.count == 2)
        #expect(try harness.count(.toWireGuard, .dropMasqueradeExhausted) == 2)
        #expect(try harness.maps.masquerade.entries().count == 4, "no half is left of those that failed")
    }

    @Test("without an address there is a drop with its reason", arguments: Addresses.both)
    func drops(_ a: Addresses) throws {
        let harness = try Harness()
        try harness.configure(addresses: false)
        let packet = PacketBuilder(a.host, a.remotePod).udp(1, 2).layer3()
        #expect(try harness.run(.toWireGuard, packet, mark: Self.hostMark).verdict == Harness.dropped)
        #expect(try harness.count(.toWireGuard, .dropMasqueradeNoAddress) == 1)
    }

    @Test("a pod's packet keeps its source", arguments: Addresses.both)
    func podKeepsSource(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.pod, a.remotePod).udp(1, 2).layer3()
        #expect(try harness.run(.toWireGuard, packet, mark: PacketMark.counted).packet == packet.bytes)
        #expect(try harness.run(.toWireGuard, packet).packet == packet.bytes)
        #expect(try harness.maps.masquerade.entries().isEmpty)
    }

    @Test("a UDP checksum of zero stays zero")
    func zeroChecksum() throws {
        let harness = try Harness()
        var packet = PacketBuilder("10.0.0.1", "10.48.2.1").udp(40000, 53).layer3()
        packet.checksumOffset = nil
        var expected = PacketBuilder("10.48.1.3", "10.48.2.1").udp(40000, 53).layer3()
        expected.checksumOffset = nil
        #expect(try harness.run(.toWireGuard, packet, mark: Self.hostMark).packet == expected.bytes)
    }

    @Test("from_wireguard hands a pod's packet to its device with an Ethernet header", arguments: Addresses.both)
    func delivery(_ a: Addresses) throws {
        let harness = try Harness()
        let packet = PacketBuilder(a.remotePod, a.pod).udp(1, 2).layer3()
        let result = try harness.run(.fromWireGuard, packet)
        #expect(result.verdict == Harness.tunnelled)
        let type: [UInt8] = a.family == .ipv4 ? [8, 0] : [0x86, 0xdd]
        #expect(result.packet == [UInt8](repeating: 0, count: 12) + type + packet.hops(63).bytes)
        // On the stack path the kernel's forwarding delivers.
        try harness.configure(direct: false)
        let stack = try harness.run(.fromWireGuard, packet)
        #expect(stack.verdict == Harness.passed && stack.packet == packet.bytes)
        #expect(try harness.count(.fromWireGuard, .decrypted) == 2)
    }

    @Test("an ICMP error about no mapping goes out with the device's address", arguments: Addresses.both)
    func icmpError(_ a: Addresses) throws {
        let harness = try Harness()
        let type: UInt8 = a.family == .ipv4 ? 3 : 1
        let quoted = PacketBuilder(a.remotePod, a.host).udp(9, 10).layer3().bytes
        let packet = PacketBuilder(a.host, a.remotePod).icmp(type: type, code: 3, payload: quoted).layer3()
        let expected = PacketBuilder(a.tunnel, a.remotePod).icmp(type: type, code: 3, payload: quoted).layer3()
        #expect(try harness.run(.toWireGuard, packet, mark: Self.hostMark).packet == expected.bytes)
    }

    /// Sends from the host and from the device's own address, so that the host's port is another
    /// one on the far side; returns that.
    private func exchangedPort(_ harness: Harness, _ a: Addresses, _ make: (PacketBuilder) -> PacketBuilder) throws
        -> UInt16
    {
        _ = try harness.run(.toWireGuard, make(PacketBuilder(a.tunnel, a.remotePod)).layer3(), mark: Self.hostMark)
        let packet = make(PacketBuilder(a.host, a.remotePod)).layer3()
        _ = try harness.run(.toWireGuard, packet, mark: Self.hostMark)
        let host = try #require(IPAddress(a.host))
        let entry = try harness.maps.masquerade.entries().first { $0.key.isOutgoing && $0.key.source == host }
        let port = try #require(entry).value.port
        #expect(![40000, 77].contains(port))
        return port
    }

    @Test("errors about masqueraded packets are translated both ways, what they quote too", arguments: Addresses.both)
    func quotedErrors(_ a: Addresses) throws {
        let type: UInt8 = a.family == .ipv4 ? 3 : 1
        let makers: [(PacketBuilder, UInt16, Bool) -> PacketBuilder] = [
            { builder, port, back in back ? builder.udp(53, port) : builder.udp(port, 53) },
            { builder, port, back in back ? builder.tcp(53, port) : builder.tcp(port, 53) },
            { builder, port, back in builder.echo(port, reply: back) },
        ]
        for (index, make) in makers.enumerated() {
            for length in [28, 200] where !(length == 28 && a.family == .ipv6) {
                let harness = try Harness()
                let own: UInt16 = index == 2 ? 77 : 40000
                let port = try exchangedPort(harness, a) { make($0, own, false) }
                func quote(_ packet: PacketBuilder) -> [UInt8] { Array(packet.layer3().bytes.prefix(length)) }
                // A router, or the pod itself, complains of what the host has sent.
                let seen = quote(make(PacketBuilder(a.tunnel, a.remotePod), port, false))
                let sent = quote(make(PacketBuilder(a.host, a.remotePod), own, false))
                let error = PacketBuilder(a.remotePod, a.tunnel).icmp(type: type, code: 3, payload: seen).layer3()
                let told = PacketBuilder(a.remotePod, a.host).icmp(type: type, code: 3, payload: sent).layer3()
                #expect(try harness.run(.fromWireGuard, error).packet == told.bytes, "maker \(index), \(length) bytes")
                // The host complains of the answer.
                let restored = quote(make(PacketBuilder(a.remotePod, a.host), own, true))
                let answered = quote(make(PacketBuilder(a.remotePod, a.tunnel), port, true))
                let complaint = PacketBuilder(a.host, a.remotePod).icmp(type: type, code: 3, payload: restored).layer3()
                let out = PacketBuilder(a.tunnel, a.remotePod).icmp(type: type, code: 3, payload: answered).layer3()
                #expect(
                    try harness.run(.toWireGuard, complaint, mark: Self.hostMark).packet == out.bytes,
                    "maker \(index), \(length) bytes")
            }
        }
    }

    /// The two fragments of a datagram, the second 24 bytes on.
    private func fragments(_ a: Addresses, _ source: String, _ destination: String) -> [PacketBuilder] {
        var first = PacketBuilder(source, destination).udp(53, 40000, payload: [UInt8](repeating: 1, count: 16))
            .layer3()
        var later = PacketBuilder(source, destination).layer3()
        later.segment = [UInt8](repeating: 2, count: 16)
        if a.family == .ipv4 {
            (first.fragment, later.fragment) = (0x2000, 3)
        } else {
            first.extensions = [(44, [0, 0, 1, 0, 0, 0, 9])]
            later.extensions = [(44, [0, 0, 24, 0, 0, 0, 9])]
        }
        return [first, later]
    }

    @Test("fragments follow their first one; one that comes before it is dropped", arguments: Addresses.both)
    func fragments(_ a: Addresses) throws {
        let harness = try Harness()
        let question = PacketBuilder(a.host, a.remotePod).udp(40000, 53).layer3()
        _ = try harness.run(.toWireGuard, question, mark: Self.hostMark)
        let arriving = fragments(a, a.remotePod, a.tunnel)
        let restored = fragments(a, a.remotePod, a.host)
        #expect(try harness.run(.fromWireGuard, arriving[1]).verdict == Harness.dropped)
        #expect(try harness.count(.fromWireGuard, .dropFragmentEarly) == 1)
        for index in 0..<2 {
            let result = try harness.run(.fromWireGuard, arriving[index])
            #expect(result.verdict == Harness.passed && result.packet == restored[index].bytes, "fragment \(index)")
        }
        // And on the way out: ports in the first, the address in all.
        let out = [fragments(a, a.host, a.remotePod), fragments(a, a.tunnel, a.remotePod)]
        for index in 0..<2 {
            #expect(
                try harness.run(.toWireGuard, out[0][index], mark: Self.hostMark).packet == out[1][index].bytes,
                "fragment \(index)")
        }
    }

    @Test("a known flow brings its port along: one lookup", arguments: Addresses.both)
    func portInMark(_ a: Addresses) throws {
        let harness = try Harness()
        func packet(_ flags: UInt8) -> PacketBuilder {
            PacketBuilder(a.host, a.remotePod).tcp(40001, 80, flags: flags)
        }
        for (flags, isKnown) in [(UInt8(2), false), (16, true), (16, true), (17, false), (4, false)] {
            let steered = try harness.run(.toUplink, packet(flags))
            let port = UInt32(UInt16(40001).bigEndian) << 16
            #expect(steered.mark == Self.hostMark | (isKnown ? port : 0), "flags \(flags)")
            let out = try harness.run(.toWireGuard, packet(flags).layer3(), mark: steered.mark)
            let expected = PacketBuilder(a.tunnel, a.remotePod).tcp(40001, 80, flags: flags).layer3()
            #expect(out.packet == expected.bytes && out.mark == 0, "flags \(flags)")
        }
        // Another address of the device: the flow asks again.
        try harness.configure()
        #expect(try harness.run(.toUplink, packet(16)).mark == Self.hostMark)
    }

    @Test("other transports are told apart by addresses alone", arguments: Addresses.both)
    func otherTransports(_ a: Addresses) throws {
        let harness = try Harness()
        func sctp(_ source: String, _ destination: String) -> PacketBuilder {
            var packet = PacketBuilder(source, destination).udp(7, 8).layer3()
            packet.transport = 132
            packet.checksumOffset = nil
            return packet
        }
        let out = try harness.run(.toWireGuard, sctp(a.host, a.remotePod), mark: Self.hostMark)
        #expect(out.packet == sctp(a.tunnel, a.remotePod).bytes)
        #expect(
            try harness.run(.fromWireGuard, sctp(a.remotePod, a.tunnel)).packet == sctp(a.remotePod, a.host).bytes)
    }
}
