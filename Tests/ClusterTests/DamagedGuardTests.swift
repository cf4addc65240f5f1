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

/// What is kept of strict mode over a reboot cannot be read.
@Suite("Cluster: a guard that is damaged", .serialized)
struct DamagedGuardTests {
    @Test("all families are taken to be promised, over a crash too, until the datastore tells which are")
    func damaged() async throws {
        try await Cluster.run(nodes: 2, families: [.ipv4]) { lab in
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled"])
            try await lab.wait("it is armed") { lab.status("node1")?.strictMode == true }
            let path = GuardState.path("\(lab.paths.runDirectory("node1"))/state")
            try await lab.wait("it is kept") { fileExists(path) }
            try await lab.reboot("node1")
            try replaceFile(path, with: Array("{".utf8))
            let outcome = try await Cluster.wgplane(lab, "node1", "guard", "--wait", "0")
            #expect(outcome.status != 0, "what is damaged is not taken for none")
            // Nobody says that WireGuard is on, nor that strict mode is.
            let (felix, dataplane) = (
                ResourceKey(.felixConfiguration, "default"), ResourceKey(.dataplaneConfiguration, "default")
            )
            let before = try await lab.datastore.read().manifests
            let (felixContent, dataplaneContent) = (
                try #require(before[felix]?.content), try #require(before[dataplane]?.content)
            )
            try await lab.datastore.update(felix) {
                $0?.merging(.object(["spec": .object(["wireguardEnabled": .null])]))
            }
            try await lab.datastore.update(dataplane) {
                $0?.merging(.object(["spec": .object(["wireguardStrictMode": .null])]))
            }
            func assumes() -> Int { lab.status("node1")?.problems.count { $0.message.contains("was damaged") } ?? 0 }
            for round in 1...2 {
                _ = try await lab.startAgent("node1")
                try await lab.wait("agent \(round) holds both families") {
                    guard let process = await lab.agent("node1") else { return false }
                    return lab.status("node1")?.process == process.identifier && assumes() == 2
                        && lab.status("node1")?.strictMode == true
                        && lab.status("node1")?.attachments.contains { $0.hook == "guard_out" } == true
                }
                #expect(try GuardState.read("\(lab.paths.runDirectory("node1"))/state")?.assumed == [.ipv4, .ipv6])
                #expect(try lab.maps("node1").config.read().0[.ipv6] != nil)
                try await lab.stopAgent("node1", signal: SIGKILL)
            }
            try await lab.datastore.update(felix) { _ in felixContent }
            _ = try await lab.startAgent("node1")
            try await lab.waitUntilSettled(enabled: true)
            try await lab.wait("the family that nobody has switched on is let go") {
                try assumes() == 0 && lab.maps("node1").config.read().0[.ipv6] == nil
            }
            #expect(lab.status("node1")?.strictMode == true, "nobody has ended it")
            let kept = try GuardState.read("\(lab.paths.runDirectory("node1"))/state")
            #expect(kept != nil && kept?.assumed == nil)
            try await lab.datastore.update(dataplane) { _ in dataplaneContent }
            try await Cluster.switchWireGuard(lab, on: false)
            try await lab.wait("the word ends it") {
                !fileExists(path) && lab.status("node1")?.strictMode == false
            }
        }
    }
}
