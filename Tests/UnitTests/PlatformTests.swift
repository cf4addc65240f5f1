// SPDX-License-Identifier: Apache-2.0

import Datastore
import DesiredState
import Foundation
import Model
import Testing

/// Resources as the platforms of the seed produce them, and what a node's agent makes of them.
@Suite("platforms' resources")
struct PlatformResourcesTests {
    /// Manifests of a fixture.
    static func manifests(_ platform: String) throws -> [Manifest] {
        let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appending(path: "Platforms/\(platform).yaml")
        let list = try ManifestText.parse(String(decoding: try Data(contentsOf: file), as: UTF8.self), origin: platform)
        guard case .array(let items)? = list["items"] else { return [] }
        return try items.map { try Manifest($0, origin: platform) }
    }

    /// A plan in short: source, host encryption, then routes, then each peer with its endpoint and allowed IPs.
    static func summary(_ plan: NodePlan) -> [String] {
        let routes = plan.ipv4.routes.sorted { $0.key < $1.key }.map { cidr, target in
            let way =
                switch target {
                case .pool: "pool"
                case .local: "local"
                case .node(let name): name
                }
            return "\(cidr) \(way)"
        }
        let peers = plan.ipv4.peers.values.sorted { $0.node < $1.node }.map { peer in
            let allowed = peer.allowedIPs.sorted().map(\.description).joined(separator: " ")
            return "peer \(peer.node) \(peer.endpoint?.description ?? "") \(allowed)"
        }
        let pods = plan.pods.map { pod in "pod \(pod.name) \(pod.addresses.map(\.description).joined(separator: " "))" }
        return ["\(plan.routeSource.rawValue) hosts \(plan.encryptsHosts)"] + routes + peers + pods
    }

    static let amazon = (
        a: "ip-10-0-12-34.eu-central-1.compute.internal", b: "ip-10-0-47-5.eu-central-1.compute.internal"
    )
    static let azure = (a: "aks-nodepool1-31718369-vmss000000", b: "aks-nodepool1-31718369-vmss000001")

    static let expected: [(platform: String, node: String, plan: [String])] = [
        (
            "on-premises", "worker-1",
            [
                "CalicoIPAM hosts false", "192.168.0.0/16 pool", "192.168.10.0/29 cp-1", "192.168.10.2/32 cp-1",
                "192.168.20.0/29 local", "192.168.20.2/32 local", "192.168.20.4/32 cp-1", "192.168.30.0/29 worker-2",
                "192.168.30.2/32 worker-2",
                "peer cp-1 10.20.0.11:51820 192.168.10.0/29 192.168.10.2/32 192.168.20.4/32",
                "peer worker-2 10.20.0.13:51820 192.168.30.0/29 192.168.30.2/32",
                "pod shop/web-6f7d8c9b5-abcde 192.168.20.3",
            ]
        ),
        (
            "flannel", "cp-1",
            [
                "PodCIDRs hosts false", "10.244.0.0/24 local", "10.244.1.0/24 worker-1", "10.244.2.0/24 worker-2",
                "peer worker-1 10.20.0.12:51820 10.20.0.12/32 10.244.1.0/24",
                "peer worker-2 10.20.0.13:51820 10.20.0.13/32 10.244.2.0/24",
            ]
        ),
        (
            "eks", amazon.a,
            [
                "WorkloadIPs hosts true", "10.0.9.201/32 local", "10.0.33.17/32 \(amazon.b)",
                "10.0.40.88/32 \(amazon.b)", "10.0.47.5/32 \(amazon.b)",
                "peer \(amazon.b) 10.0.47.5:51820 10.0.33.17/32 10.0.40.88/32 10.0.47.5/32",
                "pod kube-system/coredns-6b8d5f5c5-q4w9d 10.0.9.201",
            ]
        ),
        (
            "eks-calico", amazon.a,
            [
                "CalicoIPAM hosts true", "10.0.47.5/32 \(amazon.b)", "172.16.0.0/16 pool", "172.16.8.0/29 local",
                "172.16.16.0/29 \(amazon.b)", "peer \(amazon.b) 10.0.47.5:51820 10.0.47.5/32 172.16.16.0/29",
                "pod kube-system/coredns-6b8d5f5c5-q4w9d 172.16.8.1",
            ]
        ),
        (
            "aks", azure.a,
            [
                "WorkloadIPs hosts true", "10.224.0.12/32 local", "10.224.0.33/32 \(azure.b)",
                "10.224.0.40/32 \(azure.b)", "10.224.0.51/32 \(azure.b)",
                "peer \(azure.b) 10.224.0.33:51820 10.224.0.33/32 10.224.0.40/32 10.224.0.51/32",
                "pod kube-system/coredns-789789675-7g5rd 10.224.0.12",
            ]
        ),
        (
            "aks-calico", azure.b,
            [
                "CalicoIPAM hosts true", "10.224.0.4/32 \(azure.a)", "10.244.0.0/16 pool", "10.244.7.0/29 \(azure.a)",
                "10.244.9.0/29 local", "peer \(azure.a) 10.224.0.4:51820 10.224.0.4/32 10.244.7.0/29",
                "pod shop/web-7c9f6d4b8-x7k2p 10.244.9.1",
            ]
        ),
    ]

    @Test("as EKS, AKS and own machines write them", arguments: 0..<6)
    func plans(_ index: Int) throws {
        let (platform, node, plan) = Self.expected[index]
        let cluster = ClusterState(try Self.manifests(platform))
        #expect(cluster.problems == [], "\(platform): nothing there is unknown")
        let found = NodePlan(cluster, node: node)
        #expect(found.problems == [], "\(platform)")
        #expect(Self.summary(found) == plan, "\(platform)")
    }
}
