// SPDX-License-Identifier: Apache-2.0

import Agent
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing

/// What tells where packets stop: `doctor --peer`, `capture`, `explain --trace`.
@Suite("Cluster: troubleshooting", .serialized)
struct TroubleshootingTests {
    private struct Step: Decodable {
        var step: String
        var family: String
        var verdict: String
        var remedy: String
    }

    /// The steps, and the exit status.
    private func doctor(_ lab: Lab) async throws -> (steps: [Step], status: Int32) {
        let answer = try await Cluster.wgplane(lab, "node1", "doctor", "--peer", "node2", "-o", "json")
        return (try JSONDecoder().decode([Step].self, from: Data(answer.output.utf8)), answer.status)
    }

    /// Where it stops, of one family; empty: it does not.
    private func stop(_ lab: Lab, _ family: String = "IPv6") async throws -> String {
        let (steps, status) = try await doctor(lab)
        let failed = steps.filter { $0.verdict == "failed" }
        #expect((status == 1) == !failed.isEmpty && failed.allSatisfy { !$0.remedy.isEmpty })
        return failed.first { $0.family == family || $0.family.isEmpty }?.step ?? ""
    }

    private func nft(_ lab: Lab, _ node: String, _ rules: String) async throws {
        let place = try lab.place(node)
        let status = try await Task.detachedThread {
            try place.run {
                var launch = ProgramLaunch(["nft", "-f", "-"], environment: currentEnvironment(), ownSession: false)
                launch.input = rules
                return try launch.run()
            }
        }
        #expect(status == 0)
    }

    @Test("doctor --peer goes through every step, and names the one at which packets stop")
    func peer() async throws {
        try await Cluster.run { lab in
            let (steps, status) = try await doctor(lab)
            #expect(status == 0 && steps.allSatisfy { $0.verdict == "ok" }, "\(steps)")
            for family in ["IPv4", "IPv6"] {
                let names = steps.filter { $0.family == family }.map(\.step)
                #expect(
                    names == [
                        "own key published", "peer's key published", "device", "peer programmed", "allowed IPs",
                        "handshake", "programs attached", "steering", "steered into the tunnel",
                        "into the WireGuard device", "encrypted and sent", "answer received", "decrypted", "answered",
                    ])
            }
        }
        try await Cluster.run(families: [.ipv6]) { lab in
            // Nothing of the peer's WireGuard comes out.
            try await nft(
                lab, "node2",
                "table inet deaf {\n chain out {\n type filter hook output priority 0\n udp sport { 51820, 51821 } drop\n }\n}\n"
            )
            #expect(try await stop(lab) == "answer received")
            try await nft(lab, "node2", "delete table inet deaf\n")
            // Nothing of ours gets out.
            try await nft(
                lab, "node1",
                "table inet mute {\n chain out {\n type filter hook output priority 0\n udp dport { 51820, 51821 } drop\n }\n}\n"
            )
            let muted = try await stop(lab)
            #expect(muted == "encrypted and sent" || muted == "answer received", "\(muted)")
            try await nft(lab, "node1", "delete table inet mute\n")
            // The peer's stack does not answer.
            try await nft(
                lab, "node2",
                "table inet shy {\n chain in {\n type filter hook input priority 0\n icmp type echo-request drop\n icmpv6 type echo-request drop\n }\n}\n"
            )
            #expect(try await stop(lab) == "answered")
            try await nft(lab, "node2", "delete table inet shy\n")
            #expect(try await stop(lab) == "")
            // The peer has left.
            try await lab.stopAgent("node2", signal: 15)
            try await Cluster.patch(
                lab, .node, "node2",
                .object([
                    "metadata": .object([
                        "annotations": .object(["projectcalico.org/WireguardPublicKeyV6": .null])
                    ])
                ]))
            #expect(try await stop(lab) == "peer's key published")
            for (arguments, word) in [(["node9"], "no node"), (["node1"], "this node")] {
                let answer = try await Cluster.execute(
                    lab, "node1", [Cluster.binary, "doctor", "--peer"] + arguments)
                #expect(answer.status == 1 && answer.output.contains(word))
            }
        }
    }

    @Test("capture: a flow at every hook with its verdict, both families; a file that Wireshark reads")
    func capture() async throws {
        try await Cluster.run { lab in
            for (family, transport) in [(AddressFamily.ipv4, "icmp"), (.ipv6, "icmpv6")] {
                let file = "/tmp/wgplane-capture-\(UUID().uuidString).pcapng"
                defer { try? FileManager.default.removeItem(atPath: file) }
                async let captured = Cluster.wgplane(
                    lab, "node1", "capture", "node1-pod1", "node2-pod1", "--proto", transport, "--count", "9",
                    "--seconds", "10", "--write", file, "-o", "json")
                try await lab.wait("somebody looks") {
                    let control = try await Cluster.wgplane(lab, "node1", "maps", "dump", "event_control", "-o", "json")
                    let value = try JSONDecoder().decode(ManifestValue.self, from: Data(control.output.utf8))
                    guard case .array(let rows) = value else { return false }
                    return rows.contains { $0["event"]?.text == "trace" && $0["until"]?.text != "0" }
                }
                // Others' packets are none of it.
                _ = try await Cluster.execute(
                    lab, "node1", ["ping", "-c", "1", "\(LabAddresses.pod(2, 1, family))"])
                let echo = ["ping", "-c", "3", "-i", "0.05", "\(LabAddresses.pod(2, 1, family))"]
                #expect(try await Cluster.execute(lab, "node1-pod1", echo).status == 0)
                let answer = try await captured
                #expect(answer.status == 0, "\(answer.output)")
                let rows = try answer.output.split(separator: "\n").filter { $0.hasPrefix("{") }.map {
                    try JSONDecoder().decode(ManifestValue.self, from: Data($0.utf8))
                }
                let ways = rows.map {
                    "\($0["hook"]?.text ?? "") \($0["verdict"]?.text ?? "") \($0["reason"]?.text ?? "-")"
                }
                let round = ["from_pod redirect tunnelled", "to_wireguard pass -", "from_wireguard redirect decrypted"]
                #expect(ways == round + round + round, "\(ways)")
                #expect(rows.allSatisfy { $0["bytes"]?.text == (family == .ipv4 ? "84" : "104") })
                let read = try await Collectors.run([
                    "tshark", "-r", file, "-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment", "-e",
                    transport == "icmp" ? "icmp.type" : "icmpv6.type",
                ]).split(separator: "\n").filter { $0.contains("@") }
                #expect(read.count == 9)
                #expect(read.first?.hasPrefix("from_pod@cali1p1\tredirected to node2, tunnelled") == true)
            }
            // Nobody looks any more, and nothing is made.
            let control = try await Cluster.wgplane(lab, "node1", "maps", "dump", "event_control", "-o", "json")
            #expect(!control.output.contains("\"until\" : 1"))
        }
    }

    @Test("capture names a drop's reason; explain --trace shows real packets after the explanation")
    func drop() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled"])
            try await lab.wait("strict mode is on") { lab.status("node1")?.strictMode == true }
            let target = "\(LabAddresses.pod(2, 1, .ipv4))"
            async let explained = Cluster.wgplane(
                lab, "node1", "explain", "node1-pod1", "node2-pod1", "--proto", "udp", "--dport", "7007", "--trace",
                "--seconds", "4")
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false])
            defer { server.stop() }
            let place = try lab.place("node1-pod1")
            let destination = LabAddresses.pod(2, 1, .ipv4).bytes
            for _ in 0..<20 {
                _ = try await Task.detachedThread { Prober(place).ask(.udp, destination, identifier: 7) }
                try await Task.sleep(for: .milliseconds(100))
            }
            let trace = try await explained
            #expect(trace.status == 0 && trace.output.contains("watching"), "\(trace.output)")
            #expect(trace.output.contains("from_pod@cali1p1: udp node1-pod1:") && trace.output.contains("tunnelled"))
            // A source that is not the pod's; until the one who looks has seen it.
            let spoofer = try Collectors.start(
                lab, "node1-pod1",
                ["sh", "-c", "ip addr add 10.48.1.77/32 dev eth0; exec ping -q -i 0.1 -I 10.48.1.77 \(target)"],
                log: "/dev/null")
            let dropped = try await Cluster.wgplane(
                lab, "node1", "capture", "10.48.1.77", "--seconds", "10", "--count", "1")
            try await Collectors.end(lab, spoofer)
            #expect(dropped.output.contains("dropped, drop_spoofed"), "\(dropped.output)")
        }
    }
}
