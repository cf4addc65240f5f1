// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Foundation
import Lab
import Model
import Netlink
import OrderedCollections
import SystemDescriptors
import Testing

/// Netfilter keeps its flows: services as kube-proxy makes them, and policies.
@Suite("Cluster: netfilter", .serialized)
struct NetfilterTests {
    /// What kube-proxy writes for a service's cluster address and a node port, by hand.
    private func serve(_ lab: Lab, node: String, backend: LabPod, nodePort: UInt16) async throws {
        for address in backend.addresses {
            let family = address.family == .ipv4 ? "ip" : "ip6"
            let cluster = address.family == .ipv4 ? "10.96.0.10" : "fd96::10"
            let target = address.family == .ipv4 ? "\(address):7007" : "[\(address)]:7007"
            let name = "services\(address.family == .ipv4 ? 4 : 6)"
            var rules = ["add table \(family) \(name)"]
            for (chain, hook, priority) in [
                ("pre", "prerouting", -100), ("out", "output", -100), ("post", "postrouting", 100),
            ] {
                rules.append(
                    "add chain \(family) \(name) \(chain) { type nat hook \(hook) priority \(priority) ; }")
            }
            for chain in ["pre", "out"] {
                for transport in ["tcp", "udp"] {
                    rules.append(
                        "add rule \(family) \(name) \(chain) \(family) daddr \(cluster) \(transport) dport 80 dnat to \(target)"
                    )
                    rules.append(
                        "add rule \(family) \(name) \(chain) fib daddr type local \(transport) dport \(nodePort) meta mark set 0x4000 dnat to \(target)"
                    )
                }
            }
            rules.append("add rule \(family) \(name) post meta mark & 0x4000 != 0 masquerade")
            for rule in rules {
                let result = try await Cluster.execute(lab, node, ["nft"] + rule.split(separator: " ").map(String.init))
                try #require(result.status == 0, "\(rule): \(result.output)")
            }
        }
    }

    private func asks(
        _ lab: Lab, _ source: String, _ transport: ProbeProtocol, _ address: String, port: UInt16
    ) async throws -> Bool {
        let place = try lab.place(source)
        let target = try #require(IPAddress(address))
        return try await Task.detachedThread {
            for attempt in 0..<3 {
                let socket = try place.run {
                    try InternetSocket(
                        transport == .tcp ? .tcp : .udp, isIPv6: target.family == .ipv6, timeoutMilliseconds: 1000)
                }
                do {
                    try socket.connect(SocketAddress(target.bytes, port: port))
                    for word in 0..<3 {
                        try socket.send([1, UInt8(attempt), UInt8(word)])
                        guard try socket.receive().bytes == [1, UInt8(attempt), UInt8(word)] else { return false }
                    }
                    return true
                } catch {}
            }
            return false
        }
    }

    @Test("services work from pods, hosts and outside, both ways", arguments: [SteeringPathChoice.auto, .stack])
    func services(path: SteeringPathChoice) async throws {
        try await Cluster.run(nodes: 2, pods: 2) { lab in
            try await Cluster.configure(lab, ["wireguardSteeringPath": .string(path.rawValue)])
            let remote = try await Cluster.pod(lab, "node2-pod1")
            let local = try await Cluster.pod(lab, "node1-pod2")
            try await serve(lab, node: "node1", backend: remote, nodePort: 30007)
            try await serve(lab, node: "node2", backend: remote, nodePort: 30008)
            _ = local
            // Routes that lead a cluster address into the stack, as a default route does.
            let direct = path == .auto
            try await lab.wait("the path is chosen") {
                lab.status("node1")?.steeringPath == (direct ? "Direct" : "Stack")
                    && lab.status("node2")?.steeringPath == (direct ? "Direct" : "Stack")
            }
            let server = try EchoServer(in: lab.place("node2-pod1"), port: 7007, isIPv6: [false, true])
            defer { server.stop() }
            for transport in [ProbeProtocol.tcp, .udp] {
                for (source, address, port) in [
                    ("node1-pod1", "10.96.0.10", UInt16(80)), ("node1-pod1", "fd96::10", 80),
                    ("node1", "10.96.0.10", 80), ("node1", "fd96::10", 80),
                    // A node port of another node, from a pod and from outside, to a pod elsewhere.
                    ("underlay", "10.0.0.1", 30007), ("underlay", "fd00::1", 30007),
                    ("node1-pod1", "10.0.0.1", 30007), ("node1-pod1", "fd00::1", 30007),
                    // From a pod to another node's port, which leads to a pod there.
                    ("node1-pod1", "10.0.0.2", 30008), ("node1-pod1", "fd00::2", 30008),
                    ("underlay", "10.0.0.2", 30008), ("underlay", "fd00::2", 30008),
                ] {
                    let answered = try await asks(lab, source, transport, address, port: port)
                    #expect(answered, "\(transport) from \(source) to \(address) port \(port), path \(path)")
                    if !answered { await Cluster.describe(lab) }
                }
            }
            // What goes to the pod itself is led around netfilter as before.
            #expect(try await asks(lab, "node1-pod2", .udp, remote.addresses[0].description, port: 7007))
            #expect(try lab.maps("node1").counters.total(.clear).packets == 0)
        }
    }

    @Test("what filters is told from what does not")
    func inspection() async throws {
        try await Cluster.run(nodes: 1, families: [.ipv4]) { lab in
            func run(_ line: String) async throws {
                let result = try await Cluster.execute(lab, "node1", line.split(separator: " ").map(String.init))
                try #require(result.status == 0, "\(line): \(result.output)")
            }
            let forward = "nft add chain inet t f { type filter hook forward priority 0 ; }"
            let cases: [(lines: [String], path: String)] = [
                ([forward], "Direct"),
                ([forward, "nft add rule inet t f counter accept"], "Direct"),
                ([forward, "nft add rule inet t f ct state invalid drop"], "Direct"),
                ([forward, "nft add rule inet t f ct state invalid meta mark 7 drop"], "Direct"),
                ([forward, "nft add rule inet t f ct state new meta mark and 1 == 1 drop"], "Stack"),
                ([forward, "nft add rule inet t f ip saddr vmap { 10.48.1.1 : drop }"], "Stack"),
                ([forward, "nft add rule inet t f iifname docker0 drop"], "Direct"),
                ([forward, "nft add rule inet t f iifname eth0 drop"], "Stack"),
                ([forward, "nft add rule inet t f iifname cali* drop"], "Stack"),
                ([forward, "nft add rule inet t f iifname != docker0 drop"], "Stack"),
                (
                    [forward, "nft add chain inet t g", "nft add rule inet t g drop", "nft add rule inet t f jump g"],
                    "Stack"
                ),
                ([forward, "nft add chain inet t g", "nft add rule inet t g drop"], "Direct"),
                (["nft add chain inet t f { type filter hook forward priority 0 ; policy drop ; }"], "Stack"),
                (["nft add chain inet t f { type filter hook input priority 0 ; policy drop ; }"], "Direct"),
                (
                    [
                        "nft add table netdev n",
                        "nft add chain netdev n i { type filter hook ingress device eth0 priority 0 ; }",
                        "nft add rule netdev n i ip saddr 10.48.1.1 drop",
                    ], "Stack"
                ),
                (["iptables-nft -A FORWARD -m conntrack --ctstate INVALID -j DROP"], "Direct"),
                (["iptables-nft -A FORWARD -i docker0 -j DROP"], "Direct"),
                (["iptables-nft -A FORWARD -s 10.48.1.1 -j DROP"], "Stack"),
                (["iptables-nft -A FORWARD -m conntrack --ctstate NEW -j DROP"], "Stack"),
                (["iptables-nft -P FORWARD DROP"], "Stack"),
            ]
            for (lines, path) in cases {
                try await run("nft add table inet t")
                for line in lines { try await run(line) }
                let devices = Set(lab.status("node1")?.attachments.map(\.device) ?? [])
                let found = try await Cluster.onNode(lab, "node1") { try FirewallInspection.inspect(devices: devices) }
                #expect((found.filters.isEmpty ? "Direct" : "Stack") == path, "\(lines): \(found.filters)")
                try await run("nft flush ruleset")
            }
        }
    }

    @Test("a policy that appears under traffic holds from then on, in both directions")
    func policy() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            let target = try await Cluster.pod(lab, "node2-pod1")
            #expect(lab.status("node1")?.steeringPath == "Direct")
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false])
            defer { server.stop() }
            let prober = Prober(try lab.place("node1-pod1"))
            func reaches() async throws -> Bool {
                try await Task.detachedThread {
                    prober.ask(.udp, target.addresses[0].bytes, identifier: 1, timeoutMilliseconds: 200)
                }
            }
            #expect(try await reaches())
            func nft(_ words: String) async throws {
                let result = try await Cluster.execute(
                    lab, "node1", ["nft"] + words.split(separator: " ").map(String.init))
                try #require(result.status == 0, "\(words): \(result.output)")
            }
            try await nft("add table inet rules")
            try await nft("add chain inet rules forward { type filter hook forward priority 0 ; }")
            // What is only counted, accepted, or said of other devices is no policy for pods.
            try await nft("add rule inet rules forward ct state established accept")
            try await nft("add rule inet rules forward iifname docker0 drop")
            try await nft("add rule inet rules forward ct state invalid drop")
            try await Task.sleep(for: .milliseconds(300))
            #expect(lab.status("node1")?.steeringPath == "Direct", "\(lab.status("node1")?.steeringPathReason ?? "")")
            for (rule, what) in [
                ("udp dport 7007 drop", "requests"), ("udp sport 7007 drop", "answers"),
            ] {
                try await nft("flush chain inet rules forward")
                try await nft("add rule inet rules forward \(rule)")
                try await lab.wait("the path is the stack", within: .seconds(2)) {
                    lab.status("node1")?.steeringPath == "Stack"
                }
                let reason = lab.status("node1")?.steeringPathReason ?? ""
                #expect(reason.contains("inet rules forward"), "\(reason)")
                #expect(try await !reaches(), "\(what) are dropped")
                try await nft("flush chain inet rules forward")
                try await lab.wait("the path is direct again", within: .seconds(2)) {
                    lab.status("node1")?.steeringPath == "Direct"
                }
                #expect(try await reaches())
            }
            try await nft("delete table inet rules")
        }
    }
}
