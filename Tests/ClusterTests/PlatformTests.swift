// SPDX-License-Identifier: Apache-2.0

import Agent
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing

/// Clusters as the platforms make them.
@Suite("Cluster: platforms", .serialized)
struct PlatformTests {
    @Test(
        "each platform's resources: routes from what it has, hosts encrypted where Felix does, all pairs in the tunnel",
        arguments: LabPlatform.allCases)
    func platform(_ platform: LabPlatform) async throws {
        try await Cluster.run(platform: platform) { lab in
            let sources: [LabPlatform: RouteSource] = [.flannel: .podCIDRs, .eks: .workloadIPs, .aks: .workloadIPs]
            for node in lab.nodeNames() {
                let status = try #require(lab.status(node))
                #expect(status.routeSource == (sources[platform] ?? .calicoIPAM).rawValue)
                #expect(status.hostEncryption == platform.encryptsHosts)
                #expect(status.problems.isEmpty, "\(status.problems)")
            }
            if platform == .flannel {
                // The device has the node's own address, which others answer in clear unless hosts are encrypted.
                let result = try await LabCheck(lab).run()
                #expect(
                    result.pairs.allSatisfy {
                        $0.reachable && ($0.way == "tunnel" || lab.nodeNames().contains($0.source))
                    })
                try await Cluster.patch(
                    lab, .felixConfiguration, "default",
                    .object(["spec": .object(["wireguardHostEncryptionEnabled": true])]))
                try await lab.wait("hosts are encrypted") {
                    lab.nodeNames().allSatisfy { lab.status($0)?.hostEncryption == true }
                }
                try await lab.waitUntilSettled(enabled: true)
            }
            let result = try await LabCheck(lab).run()
            #expect(result.pairs.allSatisfy(\.reachable) && result.underlay.clearPackets == 0)
            // Flows of the first check are remembered with both ways.
            let others = result.pairs.filter { $0.way != "tunnel" && (platform != .flannel || $0.way != "mixed") }
            #expect(others.isEmpty, "\(others)")
            // A pod that comes and goes, without a block that would have said so.
            let address = lab.spec.families.map { LabAddresses.pod(1, 9, $0) }
            let pod = try await lab.addPod("late", node: 1, addresses: address, device: "eni1late")
            let prober = Prober(try lab.place("node2-pod1"))
            try await lab.wait("the pod is reached", within: .seconds(20)) {
                try await Task.detachedThread { prober.ask(.icmp, pod.addresses[0].bytes, identifier: 9) }
            }
            try await lab.removePod("late")
        }
    }

    @Test("the agent has enough with four capabilities and a read-only /proc/sys, as its pod gives it")
    func capabilities() async throws {
        try await Cluster.run(nodes: 2, agents: false) { lab in
            for node in lab.nodeNames() {
                // The node's own /proc/sys stands aside, as in a container.
                let words = [
                    "mkdir -p /run/proc-sys/net && mount --bind /proc/sys/net /run/proc-sys/net",
                    "mount --bind -o ro /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys",
                ]
                for word in words {
                    let (output, status) = try await Cluster.execute(lab, node, ["sh", "-c", word])
                    try #require(status == 0, "\(output)")
                }
                _ = try await lab.startAgent(
                    node,
                    through: [
                        "env", "WGPLANE_PROC_SYS=/run/proc-sys", "setpriv", "--no-new-privs", "--bounding-set",
                        "-all,+net_admin,+bpf,+perfmon,+net_raw", "--",
                    ])
            }
            try await lab.waitUntilSettled(enabled: true)
            let process = try #require(await lab.agent("node1"))
            let status = try String(contentsOfFile: "/proc/\(process.identifier)/status", encoding: .utf8)
            // CAP_NET_ADMIN 12, CAP_NET_RAW 13, CAP_PERFMON 38, CAP_BPF 39.
            // NET_RAW is for what another process starts.
            #expect(status.contains("CapEff:\t000000c000001000") && status.contains("CapPrm:\t000000c000001000"))
            #expect(status.contains("CapBnd:\t000000c000003000"))
            #expect(status.contains("NoNewPrivs:\t1"))
            let result = try await LabCheck(lab).run()
            #expect(result.pairs.allSatisfy(\.reachable) && result.underlay.clearPackets == 0)
            #expect(lab.status("node1")?.problems.isEmpty == true, "\(lab.status("node1")?.problems ?? [])")
            try await Cluster.switchWireGuard(lab, on: false)
            try await lab.waitUntilSettled(enabled: false)
        }
    }
}
