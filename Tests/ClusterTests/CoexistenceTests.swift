// SPDX-License-Identifier: Apache-2.0

import Agent
import BPF
import DataplaneMaps
import Foundation
import Lab
import Model
import Netlink
import OrderedCollections
import SystemDescriptors
import Testing

/// Other people's programs, devices of all kinds, and devices that come and go.
@Suite("Cluster: coexistence", .serialized)
struct CoexistenceTests {
    private func run(_ lab: Lab, _ place: String, _ line: String) async throws {
        let result = try await Cluster.execute(lab, place, line.split(separator: " ").map(String.init))
        try #require(result.status == 0, "\(place): \(line): \(result.output)")
    }

    private func reaches(_ lab: Lab, _ source: String, _ address: IPAddress) async throws -> Bool {
        let prober = Prober(try lab.place(source))
        return try await Task.detachedThread {
            (0..<3).contains { _ in prober.ask(.icmp, address.bytes, identifier: 4, timeoutMilliseconds: 300) }
        }
    }

    private func encrypts(_ lab: Lab) async throws {
        let result = try await LabCheck(lab).run()
        #expect(result.pairs.filter { !$0.reachable } == [])
        #expect(result.underlay.clearPackets == 0, "\(result.underlay.examples)")
        #expect(result.underlay.wireguardPackets > 0)
    }

    /// Somebody else's program, compiled here: drops what is longer than so many bytes.
    private func foreignProgram(longerThan bytes: Int) async throws -> String {
        let folder = "/tmp/wgplane-foreign-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let source = """
            struct __sk_buff { unsigned len; };
            __attribute__((section("classifier"), used)) int foreign(struct __sk_buff *skb)
            { return skb->len > \(bytes) ? 2 : -1; }
            char terms[] __attribute__((section("license"), used)) = "Dual BSD/GPL";
            """
        try source.write(toFile: "\(folder)/f.c", atomically: true, encoding: .utf8)
        let script =
            "c=${WGPLANE_CLANG:-clang}; command -v $c >/dev/null || c=$(dirname $(readlink -f $(command -v swift)))/clang; "
        let compile = script + "$c -target bpf -O2 -g -c \(folder)/f.c -o \(folder)/f.o"
        let status = try await Task.detachedThread {
            try ProgramLaunch(["/bin/sh", "-c", compile], environment: currentEnvironment()).run()
        }
        try #require(status == 0, "clang has the BPF target")
        return folder
    }

    @Test("other programs at the same devices see their packets, and stay", arguments: Cluster.attachments)
    func otherPrograms(attachment: AttachmentChoice) async throws {
        let folder = try await foreignProgram(longerThan: 1000)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let filter = "prio 40000 bpf da obj \(folder)/f.o sec classifier"
        try await Cluster.run(families: [.ipv4], attachment: attachment) { lab in
            let target = try await Cluster.pod(lab, "node2-pod1").addresses[0]
            func pings(_ bytes: Int) async throws -> Bool {
                try await Cluster.execute(
                    lab, "node1-pod1", ["ping", "-c", "2", "-W", "1", "-i", "0.2", "-s", "\(bytes)", "\(target)"]
                ).status == 0
            }
            if attachment == .tcx { try await run(lab, "node1", "tc qdisc add dev eth0 clsact") }
            for direction in ["ingress", "egress"] {
                try await run(lab, "node1", "tc filter add dev eth0 \(direction) \(filter)")
                #expect(try await pings(100), "\(direction): it lets short packets be")
                #expect(try await !pings(1200), "\(direction): and sees the long ones")
                try await run(lab, "node1", "tc filter del dev eth0 \(direction) prio 40000")
                #expect(try await pings(1200))
            }
            try await run(lab, "node1", "tc filter add dev eth0 egress \(filter)")
            // A policy program at a pod's device, as the AWS agent's: nothing is led around it.
            if attachment == .tcx { try await run(lab, "node1", "tc qdisc add dev cali1p1 clsact") }
            try await run(lab, "node1", "tc filter add dev cali1p1 ingress \(filter)")
            try await lab.wait("the path is the stack", within: .seconds(3)) {
                lab.status("node1")?.steeringPath == "Stack"
            }
            #expect(lab.status("node1")?.steeringPathReason.contains("cali1p1") == true)
            #expect(try await pings(100))
            #expect(try await !pings(1200))
            try await run(lab, "node1", "tc filter del dev cali1p1 ingress prio 40000")
            try await lab.wait("the path is direct", within: .seconds(3)) {
                lab.status("node1")?.steeringPath == "Direct"
            }
            // In strict mode one that comes before the second lock is told; filters come after tcx's programs.
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled"])
            try await run(lab, "node1", "tc filter add dev eth0 egress prio 1 bpf da obj \(folder)/f.o sec classifier")
            if attachment == .tc {
                try await lab.wait("it is told", within: .seconds(3)) {
                    lab.status("node1")?.problems.contains { $0.resource == "Device/eth0" && $0.field == "filters" }
                        == true
                }
            }
            // Switched off, ours go and theirs stay.
            try await Cluster.switchWireGuard(lab, on: false)
            try await lab.waitUntilSettled(enabled: false)
            let left = try await Cluster.execute(lab, "node1", ["tc", "filter", "show", "dev", "eth0", "egress"])
            #expect(left.output.contains("foreign") || left.output.contains("classifier"), "\(left.output)")
            #expect(!left.output.contains("to_uplink"))
        }
    }

    /// Kinds of uplinks that this kernel can make, by trying, which loads their modules.
    static let uplinkKinds: [String] = ["vlan", "bond", "bridge"].filter { kind in
        let error = try? KernelInterfaceTests.inNamespace { () -> Int32? in
            do {
                try RouteSession().createLink(named: "probe", kind: kind)
                return nil
            } catch { return (error as? NetlinkError)?.errno }
        }
        // A VLAN without a device below is refused in another way than a kind that is not known.
        return error != EOPNOTSUPP
    }

    @Test("uplinks that are VLANs, bonds and bridges", arguments: Self.uplinkKinds)
    func uplinks(kind: String) async throws {
        try await Cluster.run(enabled: false) { lab in
            for number in 1...2 {
                let node = "node\(number)"
                switch kind {
                case "vlan": try await run(lab, node, "ip link add link eth0 name eth0.100 type vlan id 100")
                case "bond":
                    try await run(lab, node, "ip link set eth0 down")
                    try await run(lab, node, "ip link add bond0 type bond mode active-backup")
                    try await run(lab, node, "ip link set eth0 master bond0")
                    try await run(lab, node, "ip link set eth0 up")
                default:
                    try await run(lab, node, "ip link add br0 type bridge")
                    try await run(lab, node, "ip link set eth0 master br0")
                }
                let uplink = kind == "vlan" ? "eth0.100" : kind == "bond" ? "bond0" : "br0"
                try await run(lab, node, "ip addr flush dev eth0")
                try await run(lab, node, "ip link set \(uplink) up")
                let other = 3 - number
                for (address, route, via) in [
                    ("10.0.0.\(number)/24", "10.48.\(other).0/26", "10.0.0.\(other)"),
                    ("fd00::\(number)/64", "fd48:0:0:\(other)::/122", "fd00::\(other)"),
                ] {
                    try await run(lab, node, "ip addr add \(address) dev \(uplink) nodad")
                    try await run(lab, node, "ip route replace \(route) via \(via) dev \(uplink)")
                    // Proxy ARP wants a route to what pods ask for.
                    let all = via.contains(":") ? "::/0" : "0.0.0.0/0"
                    try await run(lab, node, "ip route replace \(all) via \(via) dev \(uplink)")
                }
            }
            if kind == "bridge" {
                try await Cluster.patch(
                    lab, .felixConfiguration, "default",
                    .object(["spec": .object(["bpfDataIfacePattern": "^br0$"])]))
            }
            try await Cluster.switchWireGuard(lab, on: true)
            try await lab.waitUntilSettled(enabled: true)
            let attached = Cluster.uplinks(lab, "node1")
            #expect(attached == [kind == "vlan" ? "eth0.100" : kind == "bond" ? "bond0" : "br0"])
            try await encrypts(lab)
        }
    }

    @Test("an uplink that appears, is renamed and goes away")
    func uplinkComesAndGoes() async throws {
        try await Cluster.run(nodes: 1, families: [.ipv4]) { lab in
            func uplinks() -> Set<String> {
                Cluster.uplinks(lab, "node1")
            }
            #expect(uplinks() == ["eth0"])
            try await run(lab, "node1", "ip link add eth7 type veth peer name other7")
            try await run(lab, "node1", "ip link set other7 up")
            try await run(lab, "node1", "ip link set eth7 up")
            try await lab.wait("it has programs", within: .seconds(2)) { uplinks() == ["eth0", "eth7"] }
            try await run(lab, "node1", "ip link set eth7 down")
            try await run(lab, "node1", "ip link set eth7 name eth8")
            try await run(lab, "node1", "ip link set eth8 up")
            try await lab.wait("it is known by its new name", within: .seconds(2)) { uplinks() == ["eth0", "eth8"] }
            try await run(lab, "node1", "ip link del eth8")
            try await lab.wait("nothing of it is left", within: .seconds(2)) {
                uplinks() == ["eth0"]
                    && PinLayout(root: lab.paths.pins("node1")).pinnedLinks().filter { $0.hook == .toUplink }.count == 1
            }
        }
    }

    @Test(
        "what a CNI leads into an overlay is encrypted before it is wrapped",
        arguments: [SteeringPathChoice.auto, .stack])
    func overlay(path: SteeringPathChoice) async throws {
        try await Cluster.run(families: [.ipv4], enabled: false) { lab in
            for number in 1...2 {
                let node = "node\(number)"
                let other = 3 - number
                try await run(
                    lab, node,
                    "ip link add vxlan.calico type vxlan id 4096 dstport 4789 local 10.0.0.\(number) nolearning")
                try await run(lab, node, "ip link set vxlan.calico address 66:00:00:00:00:0\(number) mtu 1450 up")
                try await run(lab, node, "ip addr add 10.48.\(number).60/32 dev vxlan.calico")
                try await run(
                    lab, node, "ip route replace 10.48.\(other).0/26 via 10.48.\(other).60 dev vxlan.calico onlink")
                try await run(
                    lab, node, "ip neigh replace 10.48.\(other).60 lladdr 66:00:00:00:00:0\(other) dev vxlan.calico")
                try await run(
                    lab, node, "bridge fdb append 66:00:00:00:00:0\(other) dev vxlan.calico dst 10.0.0.\(other)")
            }
            try await Cluster.configure(lab, ["wireguardSteeringPath": .string(path.rawValue)])
            let target = try await Cluster.pod(lab, "node2-pod1").addresses[0]
            #expect(try await reaches(lab, "node1-pod1", target), "the overlay works by itself")
            try await Cluster.switchWireGuard(lab, on: true)
            try await lab.waitUntilSettled(enabled: true)
            try await encrypts(lab)
            for node in ["node1", "node2"] {
                let counters = try lab.maps(node).counters
                #expect(try counters.total(.clearEncapsulated).packets == 0 && counters.total(.clear).packets == 0)
            }
            // With a peer that is not ready, strict mode lets nothing through inside the overlay.
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled"])
            try await lab.wait("strict mode is in force") {
                lab.nodeNames().allSatisfy { lab.status($0)?.strictMode == true }
            }
            #expect(try await reaches(lab, "node1-pod1", target))
        }
    }
}
