// SPDX-License-Identifier: Apache-2.0

import Agent
import BPF
import DataplaneMaps
import Foundation
import Lab
import Model
import Netlink
import SystemDescriptors
import Testing
import WireGuard

@Suite("Cluster: encryption", .serialized)
struct EncryptionTests {
    @Test("with WireGuard off the capture sees pods' packets; with it on, none")
    func offAndOn() async throws {
        try await Cluster.run(nodes: 3, pods: 2, enabled: false) { lab in
            let before = try await LabCheck(lab).run()
            #expect(before.pairs.filter { !$0.reachable } == [])
            #expect(before.underlay.clearPackets > 0, "the negative control: this capture would see a leak")
            #expect(before.underlay.wireguardPackets == 0)
            try await Cluster.switchWireGuard(lab, on: true)
            try await lab.waitUntilSettled(enabled: true)
            let after = try await LabCheck(lab).run()
            #expect(after.pairs.count == 252)
            #expect(after.pairs.filter { !$0.reachable } == [])
            if after.pairs.contains(where: { !$0.reachable }) { await Cluster.describe(lab) }
            #expect(after.pairs.filter { $0.way != "tunnel" && $0.way != "local" } == [])
            #expect(after.underlay.clearPackets == 0, "\(after.underlay.examples)")
            #expect(after.underlay.wireguardPackets > 0 && after.underlay.lost == 0)
        }
    }

    @Test("programs attached by clsact do the same, and leave nothing behind when switched off")
    func clsact() async throws {
        try await Cluster.run(nodes: 2, pods: 2, attachment: .tc) { lab in
            let result = try await LabCheck(lab).run()
            #expect(result.pairs.filter { !$0.reachable || ($0.way != "tunnel" && $0.way != "local") } == [])
            #expect(result.underlay.clearPackets == 0)
            #expect(lab.status("node1")?.attachment == "clsact")
            let shown = try await Cluster.execute(lab, "node1", ["tc", "filter", "show", "dev", "eth0", "egress"])
            #expect(shown.output.contains("bpf"))
            try await Cluster.switchWireGuard(lab, on: false)
            try await lab.waitUntilSettled(enabled: false)
            let left = try await Cluster.execute(lab, "node1", ["tc", "qdisc", "show"])
            #expect(!left.output.contains("clsact"), "\(left.output)")
        }
    }

    @Test("the eBPF programs alone steer: no rule, route or table of netfilter; detached, nothing is tunnelled")
    func programsAlone() async throws {
        try await Cluster.run { lab in
            for node in lab.nodeNames() {
                let found = try await Cluster.onNode(lab, node) {
                    let session = try RouteSession()
                    var rules: [[UInt32]] = []
                    var routes: [Route] = []
                    for family in AddressFamily.allCases {
                        rules.append(try session.rules(family).map(\.priority))
                        routes += try session.routes(family)
                    }
                    let devices = try session.links().filter { $0.kind == "wireguard" || $0.kind == "tun" }
                    return (rules, routes, devices, try FirewallInspection.inspect(devices: []).filters)
                }
                #expect(found.0 == [[0, 32766, 32767], [0, 32766]])
                #expect(found.2.count == 2)
                for route in found.1 where found.2.contains(where: { $0.index == route.index }) {
                    // The kernel's own: the device's address, multicast.
                    #expect(route.table == 255 || route.destination.isHost || route.destination.address.isMulticast)
                    #expect(
                        !route.destination.contains(
                            LabAddresses.pod(node == "node1" ? 2 : 1, 1, route.destination.family)))
                }
                #expect(found.3.isEmpty)
            }
            // Without an agent, which would attach them again.
            try await lab.stopAgent("node1", signal: 15)
            let target = try await Cluster.pod(lab, "node2-pod1")
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false])
            defer { server.stop() }
            func sent() async throws -> UInt64 {
                try await Cluster.onNode(lab, "node1") {
                    try BackendSelection.state(device: "wireguard.cali")?.1.peers.values.first?.sentBytes ?? 0
                }
            }
            let place = try lab.place("node1-pod1")
            let address = target.addresses[0].bytes
            func send() async throws -> LossReport {
                try await Task.detachedThread {
                    let probe = try LossProbe(in: place, to: address)
                    while probe.sent < 100 { sleepMicroseconds(1000) }
                    return probe.stop()
                }
            }
            let first = try await sent()
            #expect(try await send().lost == 0)
            let second = try await sent()
            #expect(second - first >= 100 * 64)
            let layout = PinLayout(root: lab.paths.pins("node1"))
            for link in layout.pinnedLinks() { try Attachment.removePin(link.pin) }
            if lab.status("node1")?.attachment == "clsact" {
                for device in Set(lab.status("node1")?.attachments.map(\.device) ?? []) {
                    _ = try await Cluster.execute(lab, "node1", ["tc", "qdisc", "del", "dev", device, "clsact"])
                }
            }
            // The kernel detaches a link a moment after its last reference is gone.
            try await lab.wait("nothing goes into the tunnel but a keepalive") {
                let before = try await sent()
                _ = try await send()
                return try await sent() - before < 500
            }
        }
    }

    @Test(
        "packets are handed to a pod's end of its device, whose counters know them; what shapes a pod's traffic is not led around"
    )
    func farEnds() async throws {
        try await Cluster.run(families: [.ipv4], mode: .ebpf) { lab in
            let pod = try await Cluster.pod(lab, "node2-pod1")
            let maps = try lab.maps("node2")
            func farEnd() throws -> FrameAddresses? { try maps.locals.entries()[pod.addresses[0]]?.farEnd }
            guard DataplaneFeatures.countsAtFarEnds else {
                #expect(try farEnd() == nil)
                return
            }
            let inside = try await Cluster.execute(lab, "node2-pod1", ["ip", "-o", "link", "show", "eth0"])
            let found = try #require(try farEnd(), "\(inside.output)")
            #expect(inside.output.contains(found.destinationText), "\(found)")
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false])
            defer { server.stop() }
            let place = try lab.place("node1-pod1")
            /// A column of /proc/net/dev: 1 packets received, 9 sent.
            func count(_ place: String, _ device: String, _ column: Int) async throws -> Int {
                let lines = try await Cluster.execute(lab, place, ["cat", "/proc/net/dev"]).output.split(
                    separator: "\n")
                let line = try #require(lines.first { $0.contains("\(device):") })
                return Int(line.split(separator: ":")[1].split(separator: " ")[column]) ?? 0
            }
            func received() async throws -> Int { try await count("node2-pod1", "eth0", 1) }
            /// Packets that the host's end has sent to the pod.
            func sent() async throws -> Int { try await count("node2", pod.device, 9) }
            func probe() async throws -> LossReport {
                try await Task.detachedThread {
                    let probe = try LossProbe(in: place, to: pod.addresses[0].bytes)
                    while probe.sent < 100 { sleepMicroseconds(1000) }
                    return probe.stop()
                }
            }
            let before = try await (received(), sent())
            let report = try await probe()
            #expect(report.lost == 0)
            let after = try await (received(), sent())
            #expect(after.0 - before.0 >= report.sent)
            #expect(after.1 - before.1 < report.sent / 2, "the host's end sees the answers' ARP alone")
            // CNI's bandwidth plugin does this.
            let shaper = ["root", "handle", "1:", "tbf", "rate", "100mbit", "burst", "32kbit", "latency", "400ms"]
            _ = try await Cluster.execute(lab, "node2", ["tc", "qdisc", "add", "dev", pod.device] + shaper)
            try await lab.wait("packets take the device with the queue") { try farEnd() == nil }
            let shaped = try await sent()
            #expect(try await probe().lost == 0)
            #expect(try await sent() - shaped >= report.sent)
            _ = try await Cluster.execute(lab, "node2", ["tc", "qdisc", "del", "dev", pod.device, "root"])
            try await lab.wait("packets are handed over again") { try farEnd() != nil }
        }
    }

    @Test("wg shows what the seed's slide shows")
    func wgShow() async throws {
        try await Cluster.run(nodes: 3, families: [.ipv4]) { lab in
            let shown = try await Cluster.execute(lab, "node1", ["wg", "show", "wireguard.cali"])
            let status = try #require(lab.status("node1")?.ipv4)
            for line in ["listening port: 51820", "fwmark: 0x20000000", "private key: (hidden)"] {
                #expect(shown.output.contains(line), "\(shown.output)")
            }
            for number in 2...3 {
                let peer = try #require(status.peers.first { $0.node == "node\(number)" })
                let other = try #require(lab.status("node\(number)")?.ipv4?.address)
                #expect(shown.output.contains("peer: \(peer.publicKey)"))
                #expect(shown.output.contains("endpoint: 10.0.0.\(number):51820"))
                let allowed = shown.output.split(separator: "\n").filter { $0.contains("allowed ips") }
                #expect(allowed.contains { $0.contains("10.48.\(number).0/26") && $0.contains("\(other)/32") })
            }
            // `wgplane status` as readable, and the Node has what the seed greps for.
            let own = try await Cluster.wgplane(lab, "node1", "status")
            #expect(
                own.status == 0 && own.output.contains("private key: (hidden)") && own.output.contains("problems: none")
            )
            let node = try await Cluster.wgplane(lab, "node1", "get", "node", "node1", "-o", "yaml")
            #expect(node.output.contains("projectcalico.org/WireguardPublicKey"))
            #expect(node.output.contains("projectcalico.org/IPv4WireguardInterfaceAddr"))
        }
    }

    @Test("an open TCP connection goes on while encryption is switched on and off")
    func connectionSurvives() async throws {
        try await Cluster.run(enabled: false) { lab in
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false, true])
            defer { server.stop() }
            let target = try await Cluster.pod(lab, "node2-pod1")
            let place = try lab.place("node1-pod1")
            let connections = try target.addresses.map { address in
                try place.run {
                    let socket = try InternetSocket(.tcp, isIPv6: address.family == .ipv6, timeoutMilliseconds: 3000)
                    try socket.connect(SocketAddress(address.bytes, port: Prober.port))
                    return socket
                }
            }
            func talk(_ word: String) async throws {
                for connection in connections {
                    let heard = try await Task.detachedThread {
                        try connection.send(Array(word.utf8))
                        return try? connection.receive().bytes
                    }
                    #expect(heard == Array(word.utf8), "\(word)")
                }
            }
            try await talk("in clear")
            for round in 1...2 {
                try await Cluster.switchWireGuard(lab, on: true)
                try await lab.waitUntilSettled(enabled: true)
                try await talk("encrypted \(round)")
                try await Cluster.switchWireGuard(lab, on: false)
                try await lab.waitUntilSettled(enabled: false)
                try await talk("in clear again \(round)")
            }
        }
    }

    @Test("hosts reach remote pods through the masquerade, pods reach remote hosts")
    func hosts() async throws {
        try await Cluster.run { lab in
            let pods = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false, true])
            let hosts = try EchoServer(in: lab.place("node2"), port: Prober.port, isIPv6: [false, true])
            defer {
                pods.stop()
                hosts.stop()
            }
            let pod = try await Cluster.pod(lab, "node2-pod1")
            for (source, addresses) in [
                ("node1", pod.addresses), ("node1-pod1", lab.spec.families.map { LabAddresses.node(2, $0) }),
            ] {
                let prober = Prober(try lab.place(source))
                for address in addresses {
                    for transport in ProbeProtocol.allCases {
                        let reached = try await Task.detachedThread {
                            prober.ask(transport, address.bytes, identifier: 5)
                        }
                        #expect(reached, "\(source) to \(address) by \(transport)")
                    }
                }
            }
            let counters = try lab.maps("node1").counters
            #expect(try counters.read(.toWireGuard, .masqueraded).packets >= 6)
            #expect(try counters.read(.fromWireGuard, .unmasqueraded).packets >= 6)
        }
    }
}
