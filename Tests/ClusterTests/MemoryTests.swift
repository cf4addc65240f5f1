// SPDX-License-Identifier: Apache-2.0

import Agent
import Datastore
import Foundation
import Lab
import Model
import SystemDescriptors
import Testing

/// What an agent keeps on disk of the cluster, for one that starts while the datastore is away.
@Suite("Cluster: what is remembered", .serialized)
struct MemoryTests {
    @Test("the keys that are in place are newer than those that are kept, and stay")
    func keys() async throws {
        try await Cluster.run { lab in
            func key(_ family: AddressFamily) -> String? {
                lab.status("node1")?[family]?.peers.first { $0.state == "ready" }?.publicKey.description
            }
            let memory = "\(lab.paths.runDirectory("node1"))/state/resources.jsonl"
            func remembers(_ keys: [String?]) throws -> Bool {
                guard fileExists(memory) else { return false }
                let text = String(decoding: try readFile(memory), as: UTF8.self)
                    .replacingOccurrences(of: "\\/", with: "/")
                return keys.allSatisfy { $0.map(text.contains) ?? false }
            }
            let old = AddressFamily.allCases.map(key)
            try await lab.wait("keys are kept", within: .seconds(45)) { try remembers(old) }
            let older = try readFile(memory)
            for name in ["wireguard.cali", "wg-v6.cali"] {
                _ = try await Cluster.execute(lab, "node2", ["ip", "link", "delete", name])
            }
            try await lab.wait("node2 has others") {
                let now = AddressFamily.allCases.map(key)
                return now.allSatisfy { $0 != nil } && zip(now, old).allSatisfy { $0 != $1 }
            }
            let new = AddressFamily.allCases.map(key)
            // Both sides' last handshakes with the former keys are over.
            try await lab.waitUntilSettled(enabled: true)
            try await lab.wait("pods reach each other") {
                let prober = Prober(try lab.place("node1-pod1"))
                let addresses = try await Cluster.pod(lab, "node2-pod1").addresses
                return try await Task.detachedThread {
                    addresses.allSatisfy { prober.ask(.icmp, $0.bytes, identifier: 5) }
                }
            }
            let traffic = try await Traffic.start(lab, interval: 4000)
            try await traffic.goesOn(lab)
            try await lab.stopAgent("node1", signal: SIGKILL)
            // As if it had not come to keep the new ones.
            try replaceFile(memory, with: older, mode: 0o600)
            #expect(try remembers(old), "what is kept is older")
            let (folder, aside) = (lab.paths.datastore, "\(lab.paths.datastore)/.aside")
            try FileManager.default.createDirectory(atPath: aside, withIntermediateDirectories: true)
            let entries = try listFolder(folder).map(\.name).filter { !$0.hasPrefix(".") }
            for name in entries {
                try FileManager.default.moveItem(atPath: "\(folder)/\(name)", toPath: "\(aside)/\(name)")
            }
            try await lab.startAgent("node1")
            try await lab.wait("node1 works from memory", within: .seconds(30)) {
                lab.status("node1")?.datastoreState == "stale"
            }
            try await lab.wait("its peers are ready") { AddressFamily.allCases.map(key) == new }
            try await traffic.goesOn(lab)
            for name in entries {
                try FileManager.default.moveItem(atPath: "\(aside)/\(name)", toPath: "\(folder)/\(name)")
            }
            try await lab.wait("all are back", within: .seconds(60)) {
                lab.nodeNames().allSatisfy { lab.status($0)?.datastoreState == "ready" }
            }
            try await traffic.goesOn(lab)
            let result = await traffic.stop()
            try await expectNoLoss(result, lab)
        }
    }
}
