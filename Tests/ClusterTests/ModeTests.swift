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

/// Which mode a node has, who says so, and what is said of it.
@Suite("Cluster: modes and settings", .serialized)
struct ModeTests {
    private func object(_ text: String) throws -> ManifestValue {
        try JSONDecoder().decode(ManifestValue.self, from: Data(text.utf8))
    }

    @Test("modes are selected by command, told by status, condition and command, and change live")
    func modes() async throws {
        try await Cluster.run { lab in
            let all = try await Cluster.wgplane(lab, "node1", "mode", "get", "-o", "json")
            #expect(all.output.contains("\"running\" : \"ebpf\"") && all.output.contains("\"selected\" : \"Auto\""))
            for (word, mode) in [("route", "route"), ("ebpf", "ebpf"), ("disabled", "disabled"), ("auto", "ebpf")] {
                let set = try await Cluster.wgplane(lab, "node1", "mode", "set", word, "--node", "node2")
                #expect(set.status == 0 && set.output.contains("DataplaneConfiguration/node.node2"), "\(set.output)")
                try await lab.wait("node2 is \(mode)") { lab.status("node2")?.mode == mode }
                #expect(lab.status("node1")?.mode == "ebpf", "the other node is left alone")
                guard mode != "disabled" else { continue }
                try await lab.waitUntilSettled(enabled: true)
                try await lab.wait("its condition says so") {
                    let told = try await Cluster.wgplane(lab, "node1", "mode", "get", "--node", "node2")
                    return told.output.contains(mode) && told.output.contains("DataplaneConfiguration/node.node2")
                }
            }
            let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
            let condition = node?.content[["status", "conditions"]]
            #expect(condition?.text.contains("WireGuardReady") == true && condition?.text.contains("EBPF") == true)
            let status = try await Cluster.wgplane(lab, "node1", "status")
            #expect(status.output.contains("mode: ebpf (this kernel can)"), "\(status.output)")
            for (arguments, code) in [
                (["mode", "set", "fast"], Int32(2)), (["mode", "set", "route", "--node", "nobody"], 1),
                (["mode", "get", "--node", "nobody"], 1),
            ] {
                let answer = try await Cluster.execute(lab, "node1", [Cluster.binary] + arguments)
                #expect(answer.status == code, "\(arguments): \(answer.output)")
            }
        }
    }

    @Test("the settings in force are told with their origin; environment and command line are above")
    func effective() async throws {
        try await Cluster.run(nodes: 2, families: [.ipv4]) { lab in
            func told(_ arguments: String...) async throws -> ManifestValue {
                let command = [Cluster.binary, "get", "felixconfiguration", "--effective", "-o", "json"] + arguments
                let answer = try await Cluster.execute(lab, "node1", command)
                try #require(answer.status == 0, "\(answer.output)")
                return try object(answer.output)
            }
            func value(_ answer: ManifestValue, _ name: String) -> String {
                guard case .array(let settings) = answer["settings"] else { return "" }
                let found = settings.first { $0["name"]?.text == name }
                return "\(found?["value"]?.text ?? "") from \(found?["origin"]?.text ?? "")"
            }
            try await Cluster.patch(
                lab, .felixConfiguration, "default",
                .object(["spec": .object(["wireguardMTU": .integer(1400), "wireguardKeepAlive": "20s"])]))
            try await lab.wait("node1 has them") {
                value(try await told(), "wireguardMTU") == "1400 from FelixConfiguration/default"
            }
            // A node elsewhere is told of from the resources alone.
            let other = try await told("--node", "node2")
            #expect(other["basis"]?.text == "resources")
            #expect(value(other, "wireguardKeepAlive") == "20s from FelixConfiguration/default")
            // An agent with an environment and options of its own.
            try await lab.stopAgent("node1", signal: SIGTERM)
            let place = "FELIX_WIREGUARDKEEPALIVE=30s FELIX_WIREGUARDMTU=1390"
            _ = try await Cluster.execute(
                lab, "node1",
                [
                    "bash", "-c",
                    "\(place) setsid \(Cluster.binary) agent --set wireguardMTU=1380 >/run/wgplane/own.log 2>&1 &",
                ])
            try await lab.wait("they are in force") {
                let answer = try await told()
                return value(answer, "wireguardMTU") == "1380 from command line --set wireguardMTU"
                    && value(answer, "wireguardKeepAlive")
                        == "30s from environment variable FELIX_WIREGUARDKEEPALIVE"
            }
            try await lab.wait("the device has it") {
                try await Cluster.execute(lab, "node1", ["ip", "link", "show", "wireguard.cali"]).output.contains(
                    "mtu 1380")
            }
            // What cannot be used is refused alone, and what is in force stays.
            try await Cluster.patch(
                lab, .felixConfiguration, "node.node2",
                .object([
                    "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration",
                    "metadata": .object(["name": "node.node2"]), "spec": .object(["wireguardMTU": .integer(1410)]),
                ]))
            try await lab.wait("node2 has 1410") { lab.status("node2")?.ipv4?.mtu == 1410 }
            try await Cluster.patch(
                lab, .felixConfiguration, "node.node2",
                .object(["spec": .object(["wireguardMTU": .integer(12), "wireguardKeepAlive": "7s"])]))
            try await lab.wait("it is named, and the rest is in force") {
                let status = lab.status("node2")
                return status?.problems.contains {
                    $0.resource == "FelixConfiguration/node.node2" && $0.field == "spec.wireguardMTU"
                        && $0.value == "12"
                } == true && status?.settings.first { $0.name == "wireguardKeepAlive" }?.value == "7s"
            }
            #expect(lab.status("node2")?.ipv4?.mtu == 1410)
            try await lab.stopAgent("node2", signal: 9)
            _ = try await lab.startAgent("node2")
            try await lab.wait("a new agent keeps it, too") {
                lab.status("node2")?.problems.contains { $0.field == "spec.wireguardMTU" } == true
            }
            #expect(lab.status("node2")?.ipv4?.mtu == 1410)
            #expect(
                lab.status("node2")?.settings.first { $0.name == "wireguardMTU" }?.origin
                    == "in force before FelixConfiguration/node.node2")
        }
    }

    @Test("where the kernel refuses BPF, routes and rules take its place, and it is said why")
    func fallback() async throws {
        try await Cluster.run(families: [.ipv4], agents: false) { lab in
            // Without the capabilities that loading programs takes.
            let drop = "-sys_admin,-bpf,-perfmon"
            _ = try await Cluster.execute(
                lab, "node1",
                [
                    "bash", "-c",
                    "setsid setpriv --bounding-set=\(drop) \(Cluster.binary) agent >/run/wgplane/own.log 2>&1 &",
                ])
            _ = try await lab.startAgent("node2")
            try await lab.waitUntilSettled(enabled: true)
            #expect(lab.status("node2")?.mode == "ebpf")
            let status = try #require(lab.status("node1"))
            #expect(
                status.mode == "route" && status.modeReason.hasPrefix("eBPF cannot be used"), "\(status.modeReason)")
            #expect(status.problems.contains { $0.resource == "Kernel" && $0.severity == .warning })
            let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
            #expect(node?.content[["status", "conditions"]]?.text.contains("eBPF cannot be used") == true)
            let log = try await Cluster.execute(lab, "node1", ["cat", "/run/wgplane/own.log"]).output
            #expect(log.contains("data plane") && log.contains("mode=route"))
            let result = try await LabCheck(lab).run()
            #expect(result.pairs.filter { !$0.reachable }.isEmpty && result.underlay.clearPackets == 0)
            // Asked for by name it is an error, and encryption stays.
            try await Cluster.configure(lab, ["mode": "EBPF"])
            try await lab.wait("it is an error now") {
                lab.status("node1")?.problems.contains { $0.resource == "Kernel" && $0.severity == .error } == true
            }
            #expect(lab.status("node1")?.mode == "route")
        }
    }

    @Test("drops and flows are in the agent's log while bpfLogLevel says so")
    func packetLog() async throws {
        try await Cluster.run(families: [.ipv4], mode: .ebpf) { lab in
            let pod = try await Cluster.pod(lab, "node2-pod1")
            let prober = Prober(try lab.place("node1-pod1"))
            func log() throws -> String { try String(contentsOfFile: lab.paths.log("node1"), encoding: .utf8) }
            for (level, word) in [("Info", ""), ("Debug", "flow begins")] {
                try await Cluster.patch(
                    lab, .felixConfiguration, "default", .object(["spec": .object(["bpfLogLevel": .string(level)])]))
                try await lab.wait("the log tells of \(level)") {
                    _ = try await Task.detachedThread {
                        prober.ask(
                            .udp, pod.addresses[0].bytes, identifier: UInt16.random(in: 1...60000),
                            timeoutMilliseconds: 50)
                    }
                    return try word.isEmpty || log().contains(word)
                }
            }
            // From an address that is not its own.
            _ = try await Cluster.execute(
                lab, "node1-pod1",
                ["bash", "-c", "ip address add 10.48.9.9/32 dev lo; ping -c 1 -W 1 -I 10.48.9.9 10.48.2.1"])
            try await lab.wait("the drop is told") { try log().contains("reason=drop_spoofed") }
        }
    }
}
