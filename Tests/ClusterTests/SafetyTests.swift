// SPDX-License-Identifier: Apache-2.0

import Agent
import BPF
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing
import WireGuard

/// Encryption that is on goes off by a word only, never by something missing.
@Suite("Cluster: safety", .serialized)
struct SafetyTests {
    /// Replaces node1's agent while the datastore is in a state; then its status, once it has one.
    private func restart(_ lab: Lab) async throws -> StatusReport {
        try await lab.stopAgent("node1", signal: SIGKILL)
        try? FileManager.default.removeItem(atPath: StatusReport.path(runDirectory: lab.paths.runDirectory("node1")))
        _ = try await lab.startAgent("node1")
        try await lab.wait("the next agent has worked") {
            let status = lab.status("node1")
            return status?.datastoreState == "ready" && !(status?.problems.isEmpty ?? true)
                && status?.ipv4?.interface ?? 0 != 0
        }
        return try #require(lab.status("node1"))
    }

    @Test("a configuration that is broken, gone or misspelt does not switch encryption off, even for a new agent")
    func configuration() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            let file = "\(lab.paths.datastore)/felixconfigurations/default.yaml"
            let good = try String(contentsOfFile: file, encoding: .utf8)
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false])
            defer { server.stop() }
            let target = try await Cluster.pod(lab, "node2-pod1")
            let probe = try LossProbe(in: lab.place("node1-pod1"), to: target.addresses[0].bytes)
            let key = lab.status("node1")?.ipv4?.publicKey
            for bad in [
                "{", "kind: FelixConfiguration\nmetadata: {name: default}\nspec: {wireguardEnabled: 'true'}\n", nil,
            ] {
                if let bad {
                    try bad.write(toFile: file, atomically: true, encoding: .utf8)
                } else {
                    try FileManager.default.removeItem(atPath: file)
                }
                let status = try await restart(lab)
                #expect(status.mode == "ebpf" && status.ipv4?.publicKey == key)
                #expect(status.ipv4?.peers.map(\.action) == ["tunnel"])
                #expect(
                    status.problems.contains {
                        $0.resource.contains("elixConfiguration") || $0.resource.contains("felixconfigurations")
                    })
            }
            // A patch does not replace what it cannot read.
            try "{".write(toFile: file, atomically: true, encoding: .utf8)
            let patch = try await Cluster.wgplane(
                lab, "node2", "patch", "felixconfiguration", "default", "-p", "{spec: {wireguardMTU: 1400}}")
            #expect(patch.status == 1 && patch.output.contains("is not overwritten"), "\(patch)")
            #expect(try String(contentsOfFile: file, encoding: .utf8) == "{")
            let report = try await Task.detachedThread { probe.stop() }
            #expect(report.lost == 0, "\(report)")
            #expect(try lab.maps("node1").counters.total(.clear).packets == 0)
            // The word itself works.
            try good.write(toFile: file, atomically: true, encoding: .utf8)
            try await Cluster.switchWireGuard(lab, on: false)
            try await lab.waitUntilSettled(enabled: false)
        }
    }

    @Test("a Node that cannot be read loses a new agent no peer")
    func unreadableNode() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            for name in ["node2", "node1"] {
                let file = "\(lab.paths.datastore)/nodes/\(name).yaml"
                let good = try String(contentsOfFile: file, encoding: .utf8)
                try "kind: Node\nmetadata: [".write(toFile: file, atomically: true, encoding: .utf8)
                let status = try await restart(lab)
                #expect(status.problems.contains { $0.resource == "nodes/\(name).yaml" })
                let present = try await Cluster.onNode(lab, "node1") {
                    try BackendSelection.state(device: "wireguard.cali")?.1.peers.values.map(\.allowedIPs.count) ?? []
                }
                #expect(present == [2])
                let maps = try lab.maps("node1")
                let slot = try maps.routes.slot(of: LabAddresses.pod(2, 1, .ipv4))
                #expect(maps.destinations[slot].action == .tunnel)
                try good.write(toFile: file, atomically: true, encoding: .utf8)
                try await lab.waitUntilSettled(enabled: true)
            }
        }
    }

    @Test("a device that is somebody else's: what is in place stays, and the word to switch off still works")
    func foreignDevice() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            let key = try #require(lab.status("node1")?.ipv4?.publicKey)
            try await lab.stopAgent("node1", signal: SIGKILL)
            for arguments in [["delete", "wireguard.cali"], ["add", "wireguard.cali", "type", "bridge"]] {
                let result = try await Cluster.execute(lab, "node1", ["ip", "link"] + arguments)
                #expect(result.status == 0, "\(result)")
            }
            try? FileManager.default.removeItem(
                atPath: StatusReport.path(runDirectory: lab.paths.runDirectory("node1")))
            _ = try await lab.startAgent("node1")
            try await lab.wait("the next agent has named the device") {
                lab.status("node1")?.problems.contains { $0.resource == "Device/wireguard.cali" } == true
            }
            let maps = try lab.maps("node1")
            let slot = try maps.routes.slot(of: LabAddresses.pod(2, 1, .ipv4))
            #expect(maps.destinations[slot].action == .tunnel, "nothing goes in clear for it")
            #expect(PinLayout(root: lab.paths.pins("node1")).pinnedLinks().contains { $0.hook == .fromPod })
            let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
            #expect(node?.annotations[NodeAnnotation.publicKey(.ipv4)] == key.description)
            try await Cluster.switchWireGuard(lab, on: false)
            try await lab.waitUntilSettled(enabled: false, within: .seconds(3))
            try await lab.wait("the annotation is withdrawn", within: .seconds(2)) {
                let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
                return node?.annotations[NodeAnnotation.publicKey(.ipv4)] == nil
            }
            let shown = try await Cluster.execute(lab, "node1", ["ip", "-br", "link"])
            #expect(shown.output.contains("wireguard.cali"), "the other's device is left alone")
        }
    }

    @Test("one family off: the other goes on, and the address is given back")
    func oneFamily() async throws {
        try await Cluster.run { lab in
            try await Cluster.patch(
                lab, .felixConfiguration, "default", .object(["spec": .object(["wireguardEnabledV6": false])]))
            try await lab.wait("IPv6 is off, and nothing of it is left", within: .seconds(3)) {
                let blocks = try await lab.datastore.read().manifests(of: .ipamBlock)
                return lab.status("node1")?.ipv6 == nil
                    && !blocks.contains { "\($0.content)".contains("wireguard-v6-tunnel-addr-node1") }
            }
            #expect(lab.status("node1")?.ipv4?.peers.map(\.action) == ["tunnel"])
            let shown = try await Cluster.execute(lab, "node1", ["ip", "-br", "link"])
            #expect(shown.output.contains("wireguard.cali") && !shown.output.contains("wg-v6.cali"))
            let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
            #expect(node?.annotations[NodeAnnotation.publicKey(.ipv6)] == nil)
            #expect(node?.annotations[NodeAnnotation.publicKey(.ipv4)] != nil)
        }
    }

    @Test(
        "another mechanism, live and with a new agent, leaves none of the old one's programs",
        .enabled(if: Cluster.attachments.contains(.tcx), "kernel: it has no tcx"))
    func mechanismChanges() async throws {
        try await Cluster.run(families: [.ipv4], attachment: .tc) { lab in
            let layout = PinLayout(root: lab.paths.pins("node1"))
            for (choice, filters, isLive) in [("TCX", 0, true), ("TC", 1, true), ("TCX", 0, false), ("TC", 1, false)] {
                if !isLive { try await lab.stopAgent("node1", signal: SIGTERM) }
                try await Cluster.patch(
                    lab, .felixConfiguration, "default", .object(["spec": .object(["bpfAttachType": .string(choice)])]))
                if !isLive { _ = try await lab.startAgent("node1") }
                try await lab.wait("the agent uses \(choice) alone") {
                    let shown = try await Cluster.execute(
                        lab, "node1", ["tc", "filter", "show", "dev", "eth0", "egress"])
                    let count = shown.output.split(separator: "\n").filter { $0.contains("handle 0x1") }.count
                    // Three at the devices of uplink and pod, two at WireGuard's, and those of the kernel's
                    // own tunnel devices.
                    let attachments = lab.status("node1")?.attachments ?? []
                    let devices: Set<String> = ["eth0", "cali1p1", "wireguard.cali"]
                    guard attachments.count(where: { devices.contains($0.device) }) == 5 else { return false }
                    let links = choice == "TCX" ? attachments.count : 0
                    return count == filters && layout.pinnedLinks().count == links
                }
                let prober = Prober(try lab.place("node1"))
                let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false])
                defer { server.stop() }
                let address = LabAddresses.pod(2, 1, .ipv4).bytes
                try await lab.wait("a host's connection through \(choice)", within: .seconds(3)) {
                    try await Task.detachedThread { prober.ask(.tcp, address, identifier: 3, timeoutMilliseconds: 200) }
                }
            }
        }
    }
}
