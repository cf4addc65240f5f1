// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import SystemDescriptors
import Testing
import WireGuard

@Suite("Cluster: the agent's life", .serialized)
struct AgentLifeTests {
    @Test(
        "killed: no packet is lost; the next one takes over within two seconds with the same key",
        arguments: [SIGKILL, SIGTERM])
    func killed(signal: Int32) async throws {
        try await Cluster.run { lab in
            let keys = lab.spec.families.map { lab.status("node1")?[$0]?.publicKey }
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false, true])
            defer { server.stop() }
            let target = try await Cluster.pod(lab, "node2-pod1")
            let probes = try target.addresses.map { try LossProbe(in: lab.place("node1-pod1"), to: $0.bytes) }
            try await lab.wait("the probes run") { probes.allSatisfy { $0.sent > 50 } }
            for _ in 1...3 {
                try await lab.stopAgent("node1", signal: signal)
                let sent = probes.map(\.sent)
                try await lab.wait("traffic goes on without an agent") {
                    zip(probes, sent).allSatisfy { $0.sent > $1 + 100 }
                }
                try FileManager.default.removeItem(
                    atPath: StatusReport.path(runDirectory: lab.paths.runDirectory("node1")))
                _ = try await lab.startAgent("node1")
                try await lab.wait("the next agent has taken over", within: .seconds(2)) {
                    guard let status = lab.status("node1"), status.mode == "ebpf" else { return false }
                    return lab.spec.families.allSatisfy { family in
                        status[family]?.peers.allSatisfy { $0.action == "tunnel" } == true
                            && status[family]?.peers.count == 1
                    }
                }
            }
            let reports = try await Task.detachedThread { probes.map { $0.stop() } }
            for report in reports { #expect(report.lost == 0, "\(report)") }
            if reports.contains(where: { $0.lost > 0 }) { await Cluster.describe(lab) }
            #expect(lab.spec.families.map { lab.status("node1")?[$0]?.publicKey } == keys)
            let clear = try lab.maps("node1").counters.total(.clear)
            #expect(clear.packets == 0, "no moment in clear")
        }
    }

    @Test("two agents for one node exclude each other")
    func twoAgents() async throws {
        try await Cluster.run(nodes: 1, pods: 0, families: [.ipv4]) { lab in
            let second = try await Cluster.wgplane(lab, "node1", "agent")
            #expect(second.status == 1)
            let process = try #require(await lab.agent("node1"))
            #expect(second.output.contains("another agent (process \(process.identifier))"), "\(second.output)")
        }
    }

    @Test("maps, flows and status are read with the agent dead; cleanup takes all away")
    func agentDead() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            try await lab.stopAgent("node1", signal: SIGKILL)
            let status = try await Cluster.wgplane(lab, "node1", "status")
            #expect(status.status == 0 && status.output.contains("agent: not running"))
            let json = try await Cluster.wgplane(lab, "node1", "status", "-o", "json")
            #expect(try JSONDecoder().decode(ManifestValue.self, from: Data(json.output.utf8))["agentRunning"] == false)
            let dump = try await Cluster.wgplane(lab, "node1", "maps", "dump", "route_blocks4", "-o", "json")
            let rows = try JSONDecoder().decode(ManifestValue.self, from: Data(dump.output.utf8))
            guard case .array(let entries) = rows else {
                Issue.record("no array: \(dump.output)")
                return
            }
            #expect(entries.contains { $0["prefix"]?.text == "10.48.2.0/26" && $0["destination"]?.text == "node2" })
            let list = try await Cluster.wgplane(lab, "node1", "maps", "list")
            // The second lock's maps are there in strict mode only.
            for name in NodeMaps.names where !name.hasPrefix("guard_") { #expect(list.output.contains(name)) }
            func annotations(_ node: String) async throws -> [String: String]? {
                try await lab.datastore.read().manifests[ResourceKey(.node, node)]?.annotations
            }
            // Which node that was, and which datastore, is known from the agent's report.
            #expect(try await annotations("node1")?.isEmpty == false)
            let cleaned = try await Cluster.execute(
                lab, "node1", ["env", "-u", "WGPLANE_NODE", "-u", "WGPLANE_DATASTORE", Cluster.binary, "cleanup"])
            #expect(cleaned.status == 0, "\(cleaned.output)")
            #expect(try await annotations("node1")?.isEmpty == true)
            #expect(!FileManager.default.fileExists(atPath: lab.paths.pins("node1")))
            #expect(!FileManager.default.fileExists(atPath: "\(lab.paths.runDirectory("node1"))/state"))
            // Where it cannot be told, the rest is done, and it is said.
            try await lab.stopAgent("node2", signal: SIGKILL)
            let untold = try await Cluster.wgplane(lab, "node2", "cleanup", "--datastore", "directory:/nowhere")
            #expect(untold.status == 1 && untold.output.contains("may still tell the others"), "\(untold.output)")
            #expect(!FileManager.default.fileExists(atPath: lab.paths.pins("node2")))
            #expect(try await annotations("node2")?.isEmpty == false)
            let devices = try await Cluster.execute(lab, "node1", ["ip", "-br", "link"])
            #expect(!devices.output.contains("wireguard.cali"))
            let none = try await Cluster.wgplane(lab, "node1", "maps", "list")
            #expect(none.status == 1 && none.output.contains("there are no maps"))
        }
    }

    @Test("a private key is in no log, file, argument list or environment")
    func secrets() async throws {
        try await Cluster.run(nodes: 2, pods: 0, families: [.ipv4]) { lab in
            let shown = try await Cluster.execute(lab, "node1", ["wg", "show", "wireguard.cali", "private-key"])
            let secret = shown.output.trimmingCharacters(in: .whitespacesAndNewlines)
            #expect(secret.count == 44)
            let hex = (Base64.decode(secret) ?? []).map { String($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
            var texts: [String] = []
            let files = FileManager.default.enumerator(atPath: lab.paths.root)
            while let file = files?.nextObject() as? String {
                if file.hasPrefix("bpf") || file.hasPrefix("ns") { continue }
                if let text = try? String(contentsOfFile: "\(lab.paths.root)/\(file)", encoding: .utf8) {
                    texts.append(text)
                }
            }
            #expect(texts.count > 8)
            for process in try lab.place("node1").processes() {
                for name in ["cmdline", "environ"] {
                    let bytes = FileManager.default.contents(atPath: "/proc/\(process.identifier)/\(name)") ?? Data()
                    texts.append(String(decoding: bytes, as: UTF8.self))
                }
            }
            texts.append(try await Cluster.wgplane(lab, "node1", "status", "-o", "json").output)
            for text in texts { #expect(!text.contains(secret) && !text.lowercased().contains(hex)) }
        }
    }
}
