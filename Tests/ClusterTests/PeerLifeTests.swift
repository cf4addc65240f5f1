// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing
import WireGuard

/// Peers come, go, move and hide.
@Suite("Cluster: peers' lives", .serialized)
struct PeerLifeTests {
    private func annotate(_ lab: Lab, _ node: String, _ annotations: OrderedDictionary<String, ManifestValue>)
        async throws
    {
        try await Cluster.patch(
            lab, .node, node, .object(["metadata": .object(["annotations": .object(annotations)])]))
    }

    private func shell(_ lab: Lab, _ node: String, _ line: String) async throws -> String {
        try await Cluster.execute(lab, node, ["bash", "-c", line]).output
    }

    private func reaches(_ lab: Lab, _ source: String, _ target: String) async throws -> Bool {
        let pod = try await Cluster.pod(lab, target)
        let server = try EchoServer(
            in: lab.place(target), port: Prober.port, isIPv6: lab.spec.families.map { $0 == .ipv6 })
        defer { server.stop() }
        let prober = Prober(try lab.place(source))
        return try await Task.detachedThread {
            pod.addresses.allSatisfy {
                prober.ask(.tcp, $0.bytes, identifier: 1) && prober.ask(.udp, $0.bytes, identifier: 2)
            }
        }
    }

    @Test("a node behind NAT is learned, kept, and not stamped over", arguments: [ModeChoice.ebpf, .route])
    func behindNAT(_ mode: ModeChoice) async throws {
        try await Cluster.run(families: [.ipv4], enabled: false, mode: mode) { lab in
            // What leaves node2 for WireGuard's port has another address and port, as behind a NAT.
            _ = try await shell(
                lab, "node2",
                """
                ip address add 10.0.0.77/24 dev eth0
                nft add table ip nat; nft 'add chain ip nat post { type nat hook postrouting priority 100; }'
                nft add rule ip nat post oifname eth0 udp sport 51820 snat to 10.0.0.77:40123
                """)
            try await annotate(
                lab, "node2",
                [NodeAnnotation.endpoint(.ipv4): "none", NodeAnnotation.keepAlive: "1s"])
            try await Cluster.switchWireGuard(lab, on: true)
            try await lab.waitUntilSettled(enabled: true)
            func endpoint() async throws -> String {
                try await shell(lab, "node1", "wg show wireguard.cali endpoints")
            }
            #expect(try await endpoint().contains("10.0.0.77:40123"))
            let keepAlive = try await shell(lab, "node2", "wg show wireguard.cali persistent-keepalive")
            #expect(keepAlive.contains("\t1"), "\(keepAlive)")
            #expect(try await reaches(lab, "node1-pod1", "node2-pod1"))
            #expect(try await reaches(lab, "node2-pod1", "node1-pod1"))
            // A new agent leaves it as it is.
            try await lab.stopAgent("node1", signal: 9)
            _ = try await lab.startAgent("node1")
            try await lab.waitUntilSettled(enabled: true)
            try await Task.sleep(for: .milliseconds(300))
            #expect(try await endpoint().contains("10.0.0.77:40123"))
            #expect(try await reaches(lab, "node1-pod1", "node2-pod1"))
            // The mapping changes: learned with the next packet.
            _ = try await shell(
                lab, "node2",
                """
                nft flush chain ip nat post
                nft add rule ip nat post oifname eth0 udp sport 51820 snat to 10.0.0.77:40124
                conntrack -D -p udp --dport 51820 2>/dev/null || true
                wg set wireguard.cali listen-port 51819; wg set wireguard.cali listen-port 51820
                """)
            try await lab.wait("the new mapping is learned, or the old one holds") {
                try await reaches(lab, "node1-pod1", "node2-pod1")
            }
            // An endpoint that the operator names is set.
            try await annotate(lab, "node2", [NodeAnnotation.endpoint(.ipv4): "10.0.0.2:51820"])
            _ = try await shell(lab, "node2", "nft delete table ip nat")
            try await lab.wait("it is set, and used") {
                let shown = try await endpoint()
                let answered = try await reaches(lab, "node1-pod1", "node2-pod1")
                return shown.contains("10.0.0.2:51820") && answered
            }
            // What is no endpoint is named, and changes nothing.
            try await annotate(lab, "node2", [NodeAnnotation.endpoint(.ipv4): "somewhere"])
            try await lab.wait("it is named") {
                lab.status("node1")?.problems.contains {
                    $0.resource == "Node/node2" && $0.field.contains("wireguard-endpoint") && $0.value == "somewhere"
                } == true
            }
            #expect(try await reaches(lab, "node1-pod1", "node2-pod1"))
        }
    }

    @Test(
        "a Node deleted and made again with its address; its agent started anew", arguments: [ModeChoice.ebpf, .route])
    func recreated(_ mode: ModeChoice) async throws {
        try await Cluster.run(nodes: 3, mode: mode) { lab in
            let snapshot = try await lab.datastore.read()
            let key = ResourceKey(.node, "node3")
            let node = try #require(snapshot.manifests[key]?.content)
            try await lab.stopAgent("node3", signal: 9)
            try await lab.datastore.update(key) { _ in nil }
            try await lab.wait("the others have forgotten it") {
                ["node1", "node2"].allSatisfy { name in
                    lab.spec.families.allSatisfy {
                        lab.status(name)?[$0]?.peers.contains { $0.node == "node3" } == false
                    }
                }
            }
            try await lab.datastore.update(key) { _ in
                var fresh = node
                fresh["metadata"] = .object(["name": "node3"])
                return fresh
            }
            _ = try await lab.startAgent("node3")
            try await lab.waitUntilSettled(enabled: true)
            #expect(try await reaches(lab, "node1-pod1", "node3-pod1"))
            #expect(try await reaches(lab, "node3-pod1", "node2-pod1"))
        }
    }

    // MARK: Many

    private static let count = 1000

    /// A Node with a key and a block, as others' agents and Calico would write them.
    private static func fixtures(_ number: Int, hasKey: Bool = true) -> [(ResourceKey, ManifestValue)] {
        let name = "many\(number)"
        let address = "10.2.\(number / 250).\(number % 250 + 1)"
        let block = "10.49.\(number / 4).\(number % 4 * 64)/26"
        var node = ManifestValue.object([
            "apiVersion": "v1", "kind": "Node",
            "metadata": .object(["name": .string(name), "annotations": .object([:])]),
            "status": .object([
                "addresses": .array([.object(["type": "InternalIP", "address": .string(address)])])
            ]),
        ])
        let key = PrivateKey.generate().publicKey?.description ?? ""
        if hasKey { node[["metadata", "annotations", NodeAnnotation.publicKey(.ipv4)]] = .string(key) }
        let blockName = block.replacing(".", with: "-").replacing("/", with: "-")
        let content = ManifestValue.object([
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock",
            "metadata": .object(["name": .string(blockName)]),
            "spec": .object([
                "cidr": .string(block), "affinity": .string("host:\(name)"), "allocations": .array([]),
                "attributes": .array([]), "unallocated": .array([]), "strictAffinity": false, "deleted": false,
            ]),
        ])
        return [(ResourceKey(.node, name), node), (ResourceKey(.ipamBlock, blockName), content)]
    }

    /// As a file, at once: many.
    private static func store(_ lab: Lab, _ key: ResourceKey, _ content: ManifestValue) throws {
        let folder = "\(lab.paths.datastore)/\(key.kind.plural)"
        try makeFolders(folder, mode: 0o700)
        try replaceFile("\(folder)/\(key.name).json", with: Array(try JSONEncoder().encode(content)), mode: 0o600)
    }

    @Test(
        "1,000 nodes: one node's change costs that node's work, and rest costs none",
        arguments: [ModeChoice.ebpf, .route])
    func thousand(_ mode: ModeChoice) async throws {
        try await Cluster.run(nodes: 1, families: [.ipv4], mode: mode, agents: false) { lab in
            try await lab.datastore.update(ResourceKey(.ipPool, "many")) { _ in
                .object([
                    "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": .object(["name": "many"]),
                    "spec": .object(["cidr": "10.49.0.0/16"]),
                ])
            }
            for number in 0..<Self.count - 1 {
                for (key, content) in Self.fixtures(number) { try Self.store(lab, key, content) }
            }
            let started = ContinuousClock.now
            _ = try await lab.startAgent("node1")
            func peers() async throws -> [PublicKey: PeerState] {
                try await Cluster.onNode(lab, "node1") {
                    try BackendSelection.state(device: "wireguard.cali")?.1.peers ?? [:]
                }
            }
            try await lab.wait("all is in place", within: .seconds(60)) {
                let present = try await peers()
                guard present.count == Self.count - 1, present.values.allSatisfy({ $0.allowedIPs.count == 1 }) else {
                    return false
                }
                guard mode == .route else {
                    return try lab.maps("node1").routes.entries().count >= Self.count
                }
                return try await shell(lab, "node1", "ip route show table 1 | wc -l").hasPrefix("\(Self.count)")
            }
            let converged = ContinuousClock.now - started
            try await lab.wait("it is told", within: .seconds(30)) {
                lab.status("node1")?.ipv4?.peers.count == Self.count - 1
            }
            var process = try #require(await lab.agent("node1"))
            let cost = try Self.processorTime(process.identifier)
            func quiet() async throws -> StatusReport.Work {
                var last = StatusReport.Work()
                var same = 0
                try await lab.wait("nothing changes any more", within: .seconds(30)) {
                    let work = try #require(lab.status("node1")?.work)
                    same = work == last ? same + 1 : 0
                    last = work
                    try await Task.sleep(for: .milliseconds(500))
                    // Longer than a handshake that fails is begun again.
                    return same > 6
                }
                return last
            }
            let before = try await quiet()
            #expect(
                before.netlinkChanges + before.mapWrites + before.peerChanges > 2 * Self.count,
                "the negative control: it is counted")
            // One node has another endpoint, one another block.
            try await Cluster.patch(
                lab, .node, "many7",
                .object([
                    "status": .object([
                        "addresses": .array([.object(["type": "InternalIP", "address": "10.2.100.7"])])
                    ])
                ]))
            try await lab.wait("the endpoint is set") {
                try await peers().values.contains { $0.endpoint?.address == IPAddress("10.2.100.7") }
            }
            let moved = try await quiet()
            let change = Self.difference(before, moved)
            #expect(change.netlinkChanges <= 2 && change.mapWrites <= 4 && change.peerChanges == 1, "\(change)")
            // A node stops having WireGuard.
            try await annotate(lab, "many8", [NodeAnnotation.publicKey(.ipv4): .null])
            try await lab.wait("its peer is gone") { try await peers().count == Self.count - 2 }
            let gone = try await quiet()
            let removal = Self.difference(moved, gone)
            #expect(removal.netlinkChanges <= 2 && removal.mapWrites <= 6 && removal.peerChanges <= 2, "\(removal)")
            // Rest: with peers that never answer, and without any that is waited for.
            func share() async throws -> Double {
                let (first, since) = (try Self.processorTime(process.identifier), ContinuousClock.now)
                try await Task.sleep(for: .seconds(10))
                return try (Self.processorTime(process.identifier) - first)
                    / ((ContinuousClock.now - since) / .seconds(1))
            }
            let waiting = try await share()
            #expect(lab.status("node1")?.work == gone)
            try await lab.stopAgent("node1", signal: 15)
            for number in 0..<Self.count - 1 where number != 8 {
                for (key, content) in Self.fixtures(number, hasKey: false) { try Self.store(lab, key, content) }
            }
            _ = try await lab.startAgent("node1")
            try await lab.wait("no peer is left", within: .seconds(30)) {
                let left = try await peers()
                return left.isEmpty && lab.status("node1")?.ipv4?.unencryptedNodes.count == Self.count - 1
            }
            process = try #require(await lab.agent("node1"))
            let resting = try await quiet()
            let rest = try await share()
            #expect(lab.status("node1")?.work == resting)
            print(
                "1,000 nodes, \(mode.rawValue): in place after \(converged), \(cost) s of a processor; one endpoint: \(Self.text(change)); one node gone: \(Self.text(removal)); waiting for 998 peers \(Self.percent(waiting)), at rest \(Self.percent(rest)) of a processor"
            )
            #expect(rest < 0.1, "even a debug build rests")
        }
    }

    private static func difference(_ a: StatusReport.Work, _ b: StatusReport.Work) -> StatusReport.Work {
        StatusReport.Work(
            netlinkChanges: b.netlinkChanges - a.netlinkChanges, mapWrites: b.mapWrites - a.mapWrites,
            peerChanges: b.peerChanges - a.peerChanges)
    }

    private static func text(_ work: StatusReport.Work) -> String {
        "\(work.netlinkChanges) by netlink, \(work.mapWrites) in maps, \(work.peerChanges) of peers"
    }

    private static func percent(_ share: Double) -> String { "\(Double(Int(share * 1000)) / 10) %" }

    /// Seconds of a processor that a process has had.
    private static func processorTime(_ process: Int32) throws -> Double {
        let text = try String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)
        let fields = text[(text.lastIndex(of: ")") ?? text.startIndex)...].split(separator: " ")
        return (Double(fields[12]) ?? 0) / 100 + (Double(fields[13]) ?? 0) / 100
    }
}
