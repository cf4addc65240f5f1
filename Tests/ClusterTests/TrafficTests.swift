// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Datastore
import Foundation
import Glibc
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import SystemPackage
import Testing

/// What a redirect skips, the programs do: sizes, hops, errors, many connections at once.
@Suite("Cluster: traffic", .serialized)
struct TrafficTests {
    /// A datagram there and back, of any size.
    private func echoes(_ lab: Lab, _ source: String, _ address: IPAddress, bytes: Int) async throws -> Bool {
        let place = try lab.place(source)
        return try await Task.detachedThread {
            let socket = try place.run {
                try InternetSocket(.udp, isIPv6: address.family == .ipv6, timeoutMilliseconds: 2000)
            }
            try socket.setReceiveBuffer(8 << 20)
            try socket.connect(SocketAddress(address.bytes, port: Prober.port))
            let sent = (0..<bytes).map { UInt8(truncatingIfNeeded: $0 &* 31) }
            for _ in 0..<3 {
                try socket.send(sent)
                if (try? socket.receive().bytes) == sent { return true }
            }
            return false
        }
    }

    private func withServer(_ lab: Lab, _ place: String, _ body: () async throws -> Void) async throws {
        let server = try EchoServer(
            in: lab.place(place), port: Prober.port, isIPv6: lab.spec.families.map { $0 == .ipv6 })
        do { try await body() } catch {
            server.stop()
            throw error
        }
        server.stop()
    }

    @Test("datagrams of 64 KiB go both ways in fragments, from pods and from hosts")
    func fragments() async throws {
        try await Cluster.run { lab in
            try await withServer(lab, "node2-pod1") {
                let target = try await Cluster.pod(lab, "node2-pod1")
                for source in ["node1-pod1", "node1"] {
                    for address in target.addresses {
                        for bytes in [1400, 3000, 65000] {
                            let answered = try await echoes(lab, source, address, bytes: bytes)
                            #expect(answered, "\(source) to \(address), \(bytes) bytes")
                        }
                    }
                }
            }
            let clear = try lab.maps("node1").counters.total(.clear)
            #expect(clear.packets == 0)
        }
    }

    @Test("the path's MTU is found, whatever the pod's own is", arguments: [UInt32(1500), 9000])
    func pathMTU(podMTU: UInt32) async throws {
        try await Cluster.run(podMTU: podMTU) { lab in
            try await withServer(lab, "node2-pod1") {
                let target = try await Cluster.pod(lab, "node2-pod1")
                for (source, own) in [("node1-pod1", Int(podMTU)), ("node1", 1500)] {
                    for address in target.addresses {
                        let expected = address.family == .ipv4 ? 1440 : 1420
                        let place = try lab.place(source)
                        let found = try await Task.detachedThread {
                            let socket = try place.run {
                                try InternetSocket(.udp, isIPv6: address.family == .ipv6, timeoutMilliseconds: 500)
                            }
                            try socket.forbidFragments()
                            try socket.connect(SocketAddress(address.bytes, port: Prober.port))
                            let headers = address.family == .ipv4 ? 28 : 48
                            // As large as the own device takes; the answer tells the size that fits.
                            for _ in 0..<20 {
                                _ = try? socket.send([UInt8](repeating: 1, count: own - headers))
                                usleep(20_000)
                                if try socket.pathMTU() < own { break }
                            }
                            let mtu = try socket.pathMTU()
                            // What the answer was about is told to the next call.
                            _ = try? socket.receive()
                            for _ in 0..<2 { _ = try? socket.send([UInt8](repeating: 2, count: mtu - headers)) }
                            var answer: [UInt8] = []
                            while let bytes = try? socket.receive().bytes, answer.first != 2 { answer = bytes }
                            return (mtu, answer.count + headers)
                        }
                        #expect(found == (expected, expected), "\(source) to \(address), device of \(own)")
                    }
                }
                // TCP of every size, its segments unclamped.
                try await Cluster.configure(lab, ["wireguardMSSClamp": "Disabled"])
                try await lab.wait("the clamp is off") {
                    try lab.maps("node1").config.read().0.ipv4?.maximumSegment == 0
                        && lab.maps("node2").config.read().0.ipv4?.maximumSegment == 0
                }
                for source in ["node1-pod1", "node1"] {
                    for address in target.addresses {
                        let whole = try await stream(lab, source, address, bytes: 400_000)
                        #expect(whole, "\(source) to \(address)")
                    }
                }
            }
            let counters = try lab.maps("node1").counters
            #expect(try counters.read(.fromPod, .dropTooBig).packets > 0)
            #expect(try counters.read(.toUplink, .dropTooBig).packets > 0)
        }
    }

    /// Sends many bytes over TCP to the echo server and reads them back.
    private func stream(_ lab: Lab, _ source: String, _ address: IPAddress, bytes: Int) async throws -> Bool {
        let place = try lab.place(source)
        return try await Task.detachedThread {
            let socket = try place.run {
                try InternetSocket(.tcp, isIPv6: address.family == .ipv6, timeoutMilliseconds: 5000)
            }
            try socket.connect(SocketAddress(address.bytes, port: Prober.port))
            let chunk = [UInt8](repeating: 7, count: 20000)
            for _ in 0..<bytes / chunk.count {
                var offset = 0
                while offset < chunk.count { offset += try socket.send(Array(chunk[offset...])) }
                var received = 0
                while received < chunk.count {
                    let (part, _) = try socket.receive()
                    if part.isEmpty { return false }
                    received += part.count
                }
            }
            return true
        }
    }

    @Test("the underlay's MTU becomes smaller and larger under streams of full segments: they go on")
    func changingMTU() async throws {
        try await Cluster.run(podMTU: 9000) { lab in
            try await withServer(lab, "node2-pod1") {
                let target = try await Cluster.pod(lab, "node2-pod1")
                let source = try lab.place("node1-pod1")
                var streams: [StreamProbe] = []
                for mtu in [1500, 1400, 9000, 1500] {
                    // Who sends learns of a smaller one first, so that nobody sends what the other takes no more.
                    let nodes = lab.nodeNames().map { ($0, "eth0") }
                    let ports = lab.nodeNames().map { ("underlay", $0) }
                    for (place, device) in mtu == 9000 ? ports + nodes : nodes + ports {
                        let set = try await Cluster.execute(
                            lab, place, ["ip", "link", "set", "dev", device, "mtu", "\(mtu)"])
                        try #require(set.status == 0, "\(set.output)")
                    }
                    try await lab.wait("the devices fit \(mtu)", within: .seconds(5)) {
                        lab.nodeNames().allSatisfy { node in
                            lab.status(node)?[.ipv4]?.mtu == UInt32(mtu - 60)
                                && lab.status(node)?[.ipv6]?.mtu == UInt32(mtu - 80)
                        }
                    }
                    // As the kernel has them.
                    for (device, fitting) in [("wireguard.cali", mtu - 60), ("wg-v6.cali", mtu - 80)] {
                        let shown = try await Cluster.execute(lab, "node1", ["ip", "-o", "link", "show", device])
                        #expect(shown.output.contains(" mtu \(fitting) "), "\(shown.output)")
                    }
                    // Those from before, and new ones, which know of no other MTU.
                    streams += try await Task.detachedThread {
                        try target.addresses.map {
                            try StreamProbe(in: source, to: $0.bytes, interval: 20_000, size: 16 << 10)
                        }
                    }
                    let before = streams.map(\.report.returned)
                    try await lab.wait("streams go on at \(mtu)", within: .seconds(6)) {
                        zip(streams, before).allSatisfy { $0.report.returned > $1 + (128 << 10) }
                    }
                }
                let all = streams
                let reports = try await Task.detachedThread { all.map { $0.stop() } }
                for report in reports {
                    #expect(report.failure.isEmpty && report.wrongAt == nil && report.lost == 0, "\(report)")
                }
            }
            for node in lab.nodeNames() {
                let clear = try lab.maps(node).counters.total(.clear)
                #expect(clear.packets == 0, "\(node)")
            }
        }
    }

    @Test("each hop of the way answers for itself: traceroute")
    func traceroute() async throws {
        try await Cluster.run { lab in
            let target = try await Cluster.pod(lab, "node2-pod1")
            for address in target.addresses {
                let family = address.family
                let tunnel = try #require(lab.status("node2")?[family]?.address)
                let own = try #require(lab.status("node1")?[family]?.address)
                let first: Set<IPAddress> = [LabAddresses.node(1, family), own]
                for (source, hops) in [
                    ("node1-pod1", [first, [tunnel], [address]]), ("node1", [[tunnel], [address]]),
                ] {
                    for (index, expected) in hops.enumerated() {
                        let place = try lab.place(source)
                        let answered = try await Task.detachedThread {
                            try Self.whoAnswers(place, address, hops: Int32(index + 1), identifier: UInt16(index + 77))
                        }
                        #expect(
                            answered.map(expected.contains) == true,
                            "\(source) to \(address), hop \(index + 1): \(answered?.description ?? "nobody")")
                    }
                }
            }
        }
    }

    /// The address that answers an echo request with so many hops to live.
    private static func whoAnswers(
        _ place: NamespaceFiles, _ address: IPAddress, hops: Int32, identifier: UInt16
    ) throws -> IPAddress? {
        let isIPv6 = address.family == .ipv6
        let socket = try place.run { try InternetSocket(.icmp, isIPv6: isIPv6, timeoutMilliseconds: 500) }
        try socket.setHopLimit(hops)
        for attempt in 0..<4 {
            var request: [UInt8] = [
                isIPv6 ? 128 : 8, 0, 0, 0, UInt8(identifier >> 8), UInt8(identifier & 255), 0, UInt8(attempt),
            ]
            if !isIPv6 {
                let sum = internetChecksum(request)
                request.replaceSubrange(2..<4, with: [UInt8(sum >> 8), UInt8(sum & 255)])
            }
            try socket.send(request, to: SocketAddress(address.bytes))
            while let (bytes, from) = try? socket.receive() {
                let start = isIPv6 ? 0 : Int(bytes[0] & 15) * 4
                let answers: [UInt8] = isIPv6 ? [129, 3] : [0, 11]
                if bytes.count > start, answers.contains(bytes[start]) {
                    return from.flatMap { IPAddress(bytes: $0.address) }
                }
            }
        }
        return nil
    }

    @Test("a port that nobody listens on is told to the socket that asked, through the masquerade too")
    func portUnreachable() async throws {
        try await Cluster.run { lab in
            let target = try await Cluster.pod(lab, "node2-pod1")
            for source in ["node1-pod1", "node1"] {
                for address in target.addresses {
                    let place = try lab.place(source)
                    let refused = try await Task.detachedThread {
                        let socket = try place.run {
                            try InternetSocket(.udp, isIPv6: address.family == .ipv6, timeoutMilliseconds: 1000)
                        }
                        try socket.connect(SocketAddress(address.bytes, port: 9))
                        for _ in 0..<4 {
                            do {
                                try socket.send([1, 2, 3])
                                _ = try socket.receive()
                            } catch let error as Errno {
                                if error == .connectionRefused { return true }
                            }
                        }
                        return false
                    }
                    #expect(refused, "\(source) to \(address)")
                }
            }
        }
    }

    @Test("1,000 connections at once from two addresses of a host and the same ports to one port of a pod")
    func manyConnections() async throws {
        try await Cluster.run { lab in
            // A second address of the node in each family, whose ports are the first one's.
            for (address, length) in [("10.0.0.101", 24), ("fd00::101", 64)] {
                _ = try await Cluster.execute(
                    lab, "node1", ["ip", "addr", "add", "\(address)/\(length)", "dev", "eth0", "nodad"])
            }
            let others = try ["10.0.0.101", "fd00::101"].map { try #require(IPAddress($0)) }
            try await lab.wait("both are known") {
                let locals = try lab.maps("node1").locals.entries()
                return others.allSatisfy { locals[$0]?.kind == .host }
            }
            let target = try await Cluster.pod(lab, "node2-pod1")
            for (index, address) in target.addresses.enumerated() {
                let server = try lab.place("node2-pod1")
                let host = try lab.place("node1")
                let sources = [LabAddresses.node(1, address.family), others[index]]
                let ports = try await Task.detachedThread {
                    try Self.connectAll(server: server, host: host, sources: sources, to: address, each: 500)
                }
                #expect(ports.count == 1000, "all complete")
                #expect(Set(ports).count == 1000, "all source ports are distinct")
            }
            let counters = try lab.maps("node1").counters
            #expect(try counters.total(.dropMasqueradeExhausted).packets == 0)
        }
    }

    /// Connects from every source with the same ports, all open at once; the ports that the server sees.
    private static func connectAll(
        server: NamespaceFiles, host: NamespaceFiles, sources: [IPAddress], to address: IPAddress, each: Int
    ) throws -> [UInt16] {
        let isIPv6 = address.family == .ipv6
        let listener = try server.run {
            let socket = try InternetSocket(.tcp, isIPv6: isIPv6, timeoutMilliseconds: 3000)
            try socket.bind(SocketAddress([UInt8](repeating: 0, count: isIPv6 ? 16 : 4), port: 7070))
            try socket.listen()
            return socket
        }
        var accepted: [InternetSocket] = []
        var connected: [InternetSocket] = []
        var ports: [UInt16] = []
        for port in 0..<each {
            for source in sources {
                let socket = try host.run { try InternetSocket(.tcp, isIPv6: isIPv6, timeoutMilliseconds: 3000) }
                try socket.bind(SocketAddress(source.bytes, port: UInt16(20000 + port)))
                try socket.connect(SocketAddress(address.bytes, port: 7070))
                connected.append(socket)
                let other = try listener.accept()
                if let peer = try other.peer() { ports.append(peer.port) }
                accepted.append(other)
            }
        }
        // All are open: each carries a word there and back.
        for index in connected.indices {
            try connected[index].send([UInt8(index & 255)])
            let word = try accepted[index].receive().bytes
            try accepted[index].send(word)
            guard try connected[index].receive().bytes == [UInt8(index & 255)] else { return [] }
        }
        return ports
    }

    @Test("a pod sends from its own addresses only, unless its annotation permits more")
    func sources() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            let target = try await Cluster.pod(lab, "node2-pod1").addresses[0]
            _ = try await Cluster.execute(lab, "node1-pod1", ["ip", "addr", "add", "192.0.2.7/32", "dev", "eth0"])
            let place = try lab.place("node1-pod1")
            func send(from source: String) async throws {
                let address = try #require(IPAddress(source))
                try await Task.detachedThread {
                    let socket = try place.run { try InternetSocket(.udp, isIPv6: false) }
                    try socket.bind(SocketAddress(address.bytes))
                    try socket.send([1], to: SocketAddress(target.bytes, port: 9))
                }
            }
            func spoofed() throws -> UInt64 { try lab.maps("node1").counters.read(.fromPod, .dropSpoofed).packets }
            // Its own address first, or nobody answers its ARP.
            try await send(from: "10.48.1.1")
            try await lab.wait("the gateway is known") { try !lab.maps("node1").flows.entries().isEmpty }
            try await send(from: "192.0.2.7")
            try await lab.wait("it is dropped") { try spoofed() == 1 }
            let drops = try await Cluster.wgplane(lab, "node1", "drops")
            #expect(drops.output.contains("drop_spoofed"))
            try await Cluster.patch(
                lab, .felixConfiguration, "default", .object(["spec": .object(["workloadSourceSpoofing": "Any"])]))
            let key = ResourceKey(.pod, "node1-pod1", namespace: "default")
            try await lab.datastore.update(key) { current in
                current?.merging(
                    .object([
                        "metadata": .object([
                            "annotations": .object(["cni.projectcalico.org/allowedSourcePrefixes": #"["192.0.2.0/28"]"#]
                            )
                        ])
                    ]))
            }
            try await lab.wait("it is permitted") { try lab.maps("node1").allowedSources.entries().count == 1 }
            try await send(from: "192.0.2.7")
            try await Task.sleep(for: .milliseconds(50))
            #expect(try spoofed() == 1)
        }
    }

    @Test("drops and new flows are told as they happen")
    func following() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            let target = try await Cluster.pod(lab, "node2-pod1").addresses[0]
            async let flows = Cluster.wgplane(lab, "node1", "flows", "--follow", "--seconds", "2", "-o", "json")
            try await lab.wait("somebody listens") {
                try lab.maps("node1").events.listening(to: .flow) > monotonicNanoseconds()
            }
            let prober = Prober(try lab.place("node1-pod1"))
            _ = try await Task.detachedThread { prober.ask(.udp, target.bytes, identifier: 7, timeoutMilliseconds: 50) }
            let told = try await flows
            #expect(told.status == 0)
            let line = try #require(told.output.split(separator: "\n").first { $0.contains("10.48.2.1") })
            let event = try JSONDecoder().decode(ManifestValue.self, from: Data(line.utf8))
            #expect(event["event"] == "flow" && event["sourceName"] == "node1-pod1" && event["transport"] == "udp")
            #expect(try lab.maps("node1").events.listening(to: .flow) == 0, "nothing is left on")
        }
    }
}
