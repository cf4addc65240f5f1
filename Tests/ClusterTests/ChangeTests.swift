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

/// Changes take effect within a second, cost other pairs no packet, and leave nothing stale.
@Suite("Cluster: changes", .serialized)
struct ChangeTests {
    static let second = Duration.seconds(1)

    /// A probe between pods of node1 and node2, during which something else changes.
    private func undisturbed(_ lab: Lab, _ body: () async throws -> Void) async throws {
        let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false, true])
        defer { server.stop() }
        let target = try await Cluster.pod(lab, "node2-pod1")
        let probes = try target.addresses.map { try LossProbe(in: lab.place("node1-pod1"), to: $0.bytes) }
        func stop() async throws -> [LossReport] {
            try await Task.detachedThread { probes.map { $0.stop() } }
        }
        do {
            try await lab.wait("the probes run") { probes.allSatisfy { $0.sent > 20 } }
            try await body()
            // What comes after the change counts too.
            let sent = probes.map(\.sent)
            try await lab.wait("the probes go on") { zip(probes, sent).allSatisfy { $0.sent > $1 + 100 } }
        } catch {
            _ = try await stop()
            throw error
        }
        for report in try await stop() {
            #expect(report.lost == 0, "\(report)")
            if report.lost > 0 { await Cluster.describe(lab) }
            #expect(report.sent > 100)
        }
    }

    private func reaches(
        _ lab: Lab, _ source: String, _ address: IPAddress, _ transport: ProbeProtocol = .udp, within: Int = 300
    ) async throws -> Bool {
        let prober = Prober(try lab.place(source))
        return try await Task.detachedThread {
            prober.ask(transport, address.bytes, identifier: UInt16.random(in: 1...60000), timeoutMilliseconds: within)
        }
    }

    private func peers(_ lab: Lab, _ node: String, _ device: String = "wireguard.cali") async throws -> [PublicKey:
        PeerState]
    {
        try await Cluster.onNode(lab, node) { try BackendSelection.state(device: device)?.1.peers ?? [:] }
    }

    @Test("a pod added, and removed")
    func pods() async throws {
        try await Cluster.run { lab in
            try await undisturbed(lab) {
                let addresses = lab.spec.families.map { LabAddresses.pod(1, 20, $0) }
                let pod = try await lab.addPod("extra", node: 1, addresses: addresses, device: "caliextra")
                try await lab.wait("its program is attached, its address known", within: Self.second) {
                    let locals = try lab.maps("node1").locals.entries()
                    return lab.status("node1")?.attachments.contains { $0.device == pod.device } == true
                        && addresses.allSatisfy { locals[$0]?.interface != 0 && locals[$0]?.kind == .pod }
                }
                let target = try await Cluster.pod(lab, "node2-pod1")
                for address in target.addresses { #expect(try await reaches(lab, "extra", address)) }
                try await lab.removePod("extra")
                try await lab.wait("nothing of it is left", within: Self.second) {
                    let locals = try lab.maps("node1").locals.entries()
                    return !addresses.contains { locals[$0] != nil }
                        && lab.status("node1")?.attachments.contains { $0.device == pod.device } == false
                }
                let layout = PinLayout(root: lab.paths.pins("node1"))
                #expect(layout.pinnedLinks().filter { $0.hook == .fromPod }.count == 1)
            }
        }
    }

    @Test("a pod that takes its address to another node (a borrowed address)")
    func podMoves() async throws {
        try await Cluster.run(nodes: 3, families: [.ipv4]) { lab in
            try await undisturbed(lab) {
                let block = LabAddresses.block(3, .ipv4)
                let address = LabAddresses.pod(3, 1, .ipv4)
                try await lab.removePod("node3-pod1")
                // What Calico writes: the allocation's node is not the block's.
                let key = try #require(
                    try await lab.datastore.read().manifests(of: .ipamBlock).first {
                        $0.content[["spec", "cidr"]]?.text == block.description
                    }?.key)
                try await lab.datastore.update(key) { current in
                    guard var block = current, case .array(var attributes) = block[["spec", "attributes"]] else {
                        return current
                    }
                    for index in attributes.indices where attributes[index][["secondary", "pod"]]?.text == "node3-pod1"
                    {
                        attributes[index][["secondary", "node"]] = "node1"
                    }
                    block[["spec", "attributes"]] = .array(attributes)
                    return block
                }
                _ = try await lab.addPod("node3-pod1", node: 1, addresses: [address], device: "calimoved")
                try await lab.routePrefix(CIDR(host: address), toNode: 1)
                try await lab.wait("every node knows where it is", within: Self.second) {
                    let destinations = try lab.maps("node2").destinations.slotOwners()
                    let slot = try lab.maps("node2").routes.slot(of: address)
                    return destinations[slot]?.node == "node1"
                }
                #expect(try await reaches(lab, "node3-pod1", LabAddresses.pod(2, 1, .ipv4)))
                let allowed = try await peers(lab, "node2")
                #expect(allowed.values.filter { $0.allowedIPs.contains(CIDR(host: address)) }.count == 1)
            }
        }
    }

    @Test("a block given to another node")
    func blockMoves() async throws {
        try await Cluster.run(nodes: 3, families: [.ipv4]) { lab in
            try await undisturbed(lab) {
                let block = LabAddresses.block(3, .ipv4)
                let snapshot = try await lab.datastore.read()
                for key in snapshot.manifests.values.filter({ $0.content[["spec", "cidr"]]?.text == block.description })
                    .map(\.key)
                {
                    try await lab.datastore.update(key) { Self.give($0, to: "node1") }
                }
                let address = LabAddresses.pod(3, 30, .ipv4)
                try await lab.wait("node2 sends it to node1, and takes it from there", within: Self.second) {
                    let holders = try await peers(lab, "node2")
                    return try belongs(address, block, to: "node1", on: "node2", lab, holders)
                }
            }
        }
    }

    /// A block, or its affinity, for another node.
    @Sendable private static func give(_ content: ManifestValue?, to node: String) -> ManifestValue? {
        guard var content else { return nil }
        if content[["spec", "affinity"]] != nil { content[["spec", "affinity"]] = .string("host:\(node)") }
        if content[["spec", "node"]] != nil { content[["spec", "node"]] = .string(node) }
        return content
    }

    /// Whether a node sends an address to another, and accepts its block from that one alone.
    private func belongs(
        _ address: IPAddress, _ block: CIDR, to owner: String, on node: String, _ lab: Lab,
        _ peers: [PublicKey: PeerState]
    ) throws -> Bool {
        let maps = try lab.maps(node)
        let slot = try maps.routes.slot(of: address)
        let key = lab.status(node)?.ipv4?.peers.first { $0.node == owner }?.publicKey
        let holders = peers.filter { $0.value.allowedIPs.contains(block) }
        return try maps.destinations.slotOwners()[slot]?.node == owner && holders.count == 1
            && holders.first?.key == key
    }

    @Test("a Node deleted: no peer, route or slot of it is left")
    func nodeDeleted() async throws {
        try await Cluster.run(nodes: 3) { lab in
            try await lab.stopAgent("node3", signal: 9)
            try await undisturbed(lab) {
                let manifests = try await lab.datastore.read().manifests
                for manifest in manifests.values
                where manifest.key.name == "node3" || manifest.content[["spec", "affinity"]]?.text == "host:node3"
                    || manifest.content[["spec", "node"]]?.text == "node3"
                    || manifest.content[["spec", "nodeName"]]?.text == "node3"
                {
                    try await lab.datastore.update(manifest.key) { _ in nil }
                }
                for node in ["node1", "node2"] {
                    try await lab.wait("\(node) has forgotten it", within: Self.second) {
                        let maps = try lab.maps(node)
                        for device in ["wireguard.cali", "wg-v6.cali"] {
                            guard try await peers(lab, node, device).count == 1 else { return false }
                        }
                        guard try maps.destinations.slotOwners().values.allSatisfy({ $0.node != "node3" }) else {
                            return false
                        }
                        for family in lab.spec.families {
                            let slot = try maps.routes.slot(of: LabAddresses.pod(3, 1, family))
                            guard slot == DestinationSlot.pool else { return false }
                            guard try maps.endpoints.entries()[LabAddresses.node(3, family)] == nil else {
                                return false
                            }
                        }
                        return true
                    }
                }
            }
        }
    }

    @Test("a key replaced by hand heals, and takes nothing away meanwhile")
    func forgedKey() async throws {
        try await Cluster.run(nodes: 2) { lab in
            let before = try #require(lab.status("node2")?.ipv4?.publicKey)
            let forged = try #require(PrivateKey.generate().publicKey)
            try await undisturbed(lab) {
                try await Cluster.patch(
                    lab, .node, "node2",
                    .object([
                        "metadata": .object([
                            "annotations": .object([
                                NodeAnnotation.publicKey(.ipv4): .string(forged.description),
                                NodeAnnotation.interfaceAddress(.ipv6): .string("fd48:0:0:2::33"),
                            ])
                        ])
                    ]))
                try await lab.wait("node2's agent has healed its Node", within: Self.second) {
                    let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node2")]
                    return node?.annotations[NodeAnnotation.publicKey(.ipv4)] == before.description
                        && node?.annotations[NodeAnnotation.interfaceAddress(.ipv6)]
                            == lab.status("node2")?.ipv6?.address?.description
                }
                try await lab.wait("node1 has the real peer alone", within: Self.second) {
                    let present = try await peers(lab, "node1")
                    return present.count == 1 && present[before] != nil
                }
            }
        }
    }

    @Test("strict mode on and off, ten times: no packet is lost")
    func strictness() async throws {
        try await Cluster.run { lab in
            try await undisturbed(lab) {
                for number in 1...10 {
                    let isStrict = number % 2 == 1
                    try await Cluster.configure(lab, ["wireguardStrictMode": isStrict ? "Enabled" : "Disabled"])
                    try await lab.wait("strict mode is \(isStrict ? "on" : "off")", within: .seconds(3)) {
                        lab.nodeNames().allSatisfy { lab.status($0)?.strictMode == isStrict }
                    }
                }
            }
        }
    }

    @Test("a real change of key: traffic goes on with the new one")
    func newKey() async throws {
        try await Cluster.run(nodes: 2, families: [.ipv4]) { lab in
            let before = try #require(lab.status("node2")?.ipv4?.publicKey)
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false])
            defer { server.stop() }
            // The device goes under the agent's feet: the next one has another key.
            _ = try await Cluster.execute(lab, "node2", ["ip", "link", "delete", "wireguard.cali"])
            try await lab.wait("node1 has node2's new peer in the tunnel", within: .seconds(8)) {
                let peer = lab.status("node1")?.ipv4?.peers.first
                return peer?.publicKey != before && peer?.state == "ready" && peer?.action == "tunnel"
            }
            try await lab.wait("the old peer is gone", within: Self.second) { try await peers(lab, "node1").count == 1 }
            #expect(try await reaches(lab, "node1-pod1", LabAddresses.pod(2, 1, .ipv4), within: 2000))
        }
    }

    @Test("WireGuard off and on: no packet is lost, nothing is left behind while it is off")
    func offAndOn() async throws {
        try await Cluster.run { lab in
            try await undisturbed(lab) {
                try await Cluster.switchWireGuard(lab, on: false)
                try await lab.waitUntilSettled(enabled: false, within: .seconds(3))
                for node in lab.nodeNames() {
                    let root = lab.paths.pins(node)
                    #expect(!FileManager.default.fileExists(atPath: root), "pins")
                    let devices = try await Cluster.execute(lab, node, ["ip", "-br", "link"])
                    #expect(!devices.output.contains("wireguard.cali") && !devices.output.contains("wg-v6.cali"))
                    try await lab.wait("the annotations are withdrawn", within: Self.second) {
                        let manifest = try await lab.datastore.read().manifests[ResourceKey(.node, node)]
                        return manifest?.annotations.isEmpty == true
                    }
                }
                let blocks = try await lab.datastore.read().manifests(of: .ipamBlock)
                #expect(
                    !blocks.contains { "\($0.content)".contains("wireguard") }, "the device's address is given back")
                try await Cluster.switchWireGuard(lab, on: true)
                try await lab.waitUntilSettled(enabled: true)
            }
        }
    }
}
