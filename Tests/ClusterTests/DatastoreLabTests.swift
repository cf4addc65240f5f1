// SPDX-License-Identifier: Apache-2.0

import Agent
import Foundation
import Lab
import Model
import SystemDescriptors
import Testing

/// Labs whose resources are on a real etcd or API server.
@Suite("Cluster: datastores", .serialized)
struct DatastoreLabTests {
    /// `scripts/deploy`, beside these tests.
    static let deploy = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../../scripts/deploy").standardizedFileURL.path

    private func expectEncrypted(_ lab: Lab) async throws {
        let result = try await LabCheck(lab).run()
        #expect(result.pairs.allSatisfy(\.reachable) && result.underlay.clearPackets == 0)
        #expect(result.underlay.wireguardPackets > 0)
    }

    private func wgplane(_ lab: Lab, _ words: String...) async throws {
        try await lab.control(["wgplane"] + words)
    }

    @Test(
        "etcd, kubernetes: what the demo shows; the server is killed and comes back under traffic, agents start without it",
        arguments: [LabDatastore.etcd, .kubernetes])
    func servers(_ datastore: LabDatastore) async throws {
        try await Cluster.run(datastore: datastore) { lab in
            try await expectEncrypted(lab)
            let server = try #require(await lab.server).process
            let traffic = try await Traffic.start(lab, interval: 4000)
            try await traffic.goesOn(lab)
            server.end()
            try await lab.wait("the agents say that it is away", within: .seconds(30)) {
                lab.nodeNames().allSatisfy { lab.status($0)?.datastoreState == "unavailable" }
            }
            try await traffic.goesOn(lab)
            // One starts while it is away, on what an earlier one has known.
            try await lab.stopAgent("node1", signal: SIGTERM)
            try await lab.startAgent("node1")
            try await lab.wait("node1 works from memory", within: .seconds(30)) {
                lab.status("node1")?.datastoreState == "stale"
            }
            #expect(lab.status("node1")?.problems.contains { $0.value == "stale" } == true)
            try await traffic.goesOn(lab)
            try server.start()
            try await lab.wait("all are back", within: .seconds(60)) {
                lab.nodeNames().allSatisfy { lab.status($0)?.datastoreState == "ready" }
            }
            // And hear of what changes.
            let pod = try await lab.addPod(
                "late", node: 1, addresses: lab.spec.families.map { LabAddresses.pod(1, 9, $0) }, device: "cali1late")
            let prober = Prober(try lab.place("node2-pod1"))
            try await lab.wait("the pod is known", within: .seconds(30)) {
                try await Task.detachedThread { prober.ask(.icmp, pod.addresses[0].bytes, identifier: 7) }
            }
            try await traffic.goesOn(lab)
            let result = await traffic.stop()
            try await expectNoLoss(result, lab)
            try await expectEncrypted(lab)
            if case .kubernetes(let kubernetes)? = await lab.server {
                try await byKubectl(lab, kubernetes)
            } else {
                try await wgplane(
                    lab, "patch", "felixconfiguration", "default", "-p",
                    #"{"spec":{"wireguardEnabled":false,"wireguardEnabledV6":false}}"#)
            }
            try await lab.waitUntilSettled(enabled: false)
        }
    }

    /// As the seed shows it.
    private func byKubectl(_ lab: Lab, _ server: KubernetesServer) async throws {
        let text = try await Task.detachedThread { try server.kubectl(["get", "nodes", "-o", "yaml"]) }
        #expect(text.contains("projectcalico.org/WireguardPublicKey:") && text.contains("type: WireGuardReady"))
        _ = try await Task.detachedThread {
            try server.kubectl([
                "patch", "felixconfiguration", "default", "--type=merge", "-p",
                #"{"spec":{"wireguardEnabled":false,"wireguardEnabledV6":false}}"#,
            ])
        }
        try await lab.wait("the annotations are gone") {
            try await Task.detachedThread { try server.kubectl(["get", "nodes", "-o", "yaml"]) }
                .contains("WireguardPublicKey:") == false
        }
    }
}
