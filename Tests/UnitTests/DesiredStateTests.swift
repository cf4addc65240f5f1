// SPDX-License-Identifier: Apache-2.0

import DesiredState
import Foundation
import Lab
import Model
import OrderedCollections
import Testing
import WireGuard

/// Builds manifests for tables.
enum Make {
    static func key(_ number: UInt8) -> PublicKey {
        guard let key = PublicKey(bytes: [9, number] + [UInt8](repeating: 7, count: 30)) else { preconditionFailure() }
        return key
    }

    static func node(
        _ name: String, _ address: String? = nil, key: PublicKey? = nil, interface: String? = nil,
        annotations: [String: String] = [:]
    ) -> Manifest {
        var fields: OrderedDictionary<String, ManifestValue> = [:]
        if let key { fields[NodeAnnotation.publicKey(.ipv4)] = .string(key.description) }
        if let interface { fields[NodeAnnotation.interfaceAddress(.ipv4)] = .string(interface) }
        for (name, value) in annotations { fields[name] = .string(value) }
        let addresses: [ManifestValue] =
            address.map {
                [.object(["type": "InternalIP", "address": .string($0)])]
            } ?? []
        return manifest(
            .node, name,
            .object([
                "metadata": .object(["name": .string(name), "annotations": .object(fields)]),
                "status": .object(["addresses": .array(addresses)]),
            ]))
    }

    static func pool(_ cidr: String) -> Manifest {
        manifest(.ipPool, "pool", .object(["spec": .object(["cidr": .string(cidr)])]))
    }

    static func block(_ cidr: String, _ node: String, name: String? = nil, borrowed: [(Int, String)] = []) -> Manifest {
        var allocations = [ManifestValue](repeating: .null, count: 64)
        var attributes: [ManifestValue] = []
        for (offset, owner) in borrowed {
            attributes.append(.object(["handle_id": "x", "secondary": .object(["node": .string(owner)])]))
            allocations[offset] = .integer(Int64(attributes.count - 1))
        }
        return manifest(
            .ipamBlock, name ?? cidr.replacing(".", with: "-").replacing("/", with: "-"),
            .object([
                "spec": .object([
                    "cidr": .string(cidr), "affinity": .string("host:\(node)"), "allocations": .array(allocations),
                    "attributes": .array(attributes),
                ])
            ]))
    }

    static func manifest(_ kind: ResourceKind, _ name: String, _ content: ManifestValue) -> Manifest {
        Manifest(key: ResourceKey(kind, name), content: content)
    }

    static let cluster = [
        pool("10.48.0.0/16"), node("n1", "10.0.0.1", key: key(1), interface: "10.48.1.1"),
        node("n2", "10.0.0.2", key: key(2), interface: "10.48.2.1"), node("n3", "10.0.0.3"),
        block("10.48.1.0/26", "n1"), block("10.48.2.0/26", "n2", borrowed: [(5, "n3"), (6, "n1")]),
        block("10.48.3.0/26", "n3"),
    ]
}

@Suite("DesiredState")
struct DesiredStateTests {
    func cidr(_ text: String) throws -> CIDR { try #require(CIDR(text)) }

    @Test("peers, allowed IPs and routes of a small cluster")
    func cluster() throws {
        let plan = NodePlan(ClusterState(Make.cluster), node: "n1")
        #expect(plan.problems == [])
        #expect(plan.routeSource == .calicoIPAM)
        #expect(plan.ipv4.peers.keys.sorted() == ["n2"])
        let peer = try #require(plan.ipv4.peers["n2"])
        #expect(peer.endpoint?.description == "10.0.0.2:51820")
        #expect(peer.allowedIPs == [try cidr("10.48.2.0/26"), try cidr("10.48.2.1/32")])
        #expect(
            plan.ipv4.routes == [
                try cidr("10.48.0.0/16"): .pool, try cidr("10.48.1.0/26"): .local, try cidr("10.48.1.1/32"): .local,
                try cidr("10.48.2.0/26"): .node("n2"), try cidr("10.48.2.1/32"): .node("n2"),
                try cidr("10.48.3.0/26"): .node("n3"), try cidr("10.48.2.5/32"): .node("n3"),
                try cidr("10.48.2.6/32"): .local,
            ])
        #expect(plan.ipv4.unencrypted == ["n3"])
    }

    @Test("the plan is the same for every order of arrival")
    func order() {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        var generator = SeededGenerator(seed: seed)
        // Two that claim one block, two that overlap, two with one key.
        let manifests =
            Make.cluster + [
                Make.block("10.48.2.0/26", "n3", name: "again"), Make.block("10.48.2.0/25", "n3", name: "wider"),
                Make.node("n4", "10.0.0.4", key: Make.key(2)), Make.node("n5", "10.0.0.5", key: Make.key(2)),
            ]
        let first = NodePlan(ClusterState(manifests), node: "n1")
        for _ in 0..<1000 {
            let other = NodePlan(ClusterState(manifests.shuffled(using: &generator)), node: "n1")
            #expect(other.ipv4 == first.ipv4 && other.problems == first.problems)
        }
    }

    @Test("a key that two nodes claim: who had it first keeps it; at a cold start neither has it")
    func duplicateKey() throws {
        let manifests =
            Make.cluster + [Make.node("n4", "10.0.0.4", key: Make.key(2)), Make.block("10.48.4.0/26", "n4")]
        let cold = NodePlan(ClusterState(manifests), node: "n1")
        #expect(cold.ipv4.peers.isEmpty)
        #expect(cold.problems.map(\.resource) == ["Node/n2", "Node/n4"])
        let warm = NodePlan(
            ClusterState(manifests), node: "n1", keyOwners: NodePlan(ClusterState(Make.cluster), node: "n1").keyOwners)
        #expect(warm.ipv4.peers.keys.sorted() == ["n2"])
        #expect(warm.problems.map(\.resource) == ["Node/n4"])
        #expect(
            warm.problems[0].value == Make.key(2).description && warm.problems[0].field.contains("WireguardPublicKey"))
        // Ours is ours, whatever others publish.
        let thief = Make.cluster + [Make.node("n4", "10.0.0.4", key: Make.key(1))]
        let own = NodePlan(ClusterState(thief), node: "n1", ownKeys: [.ipv4: Make.key(1)])
        #expect(own.ipv4.peers.keys.sorted() == ["n2"])
        #expect(own.problems.map(\.resource) == ["Node/n4"])
    }

    @Test("overlapping and foreign prefixes are refused, and named")
    func prefixes() throws {
        let bad = [
            Make.block("10.48.2.0/25", "n3", name: "overlaps"), Make.block("10.0.0.0/24", "n3", name: "covers-nodes"),
            Make.block("172.16.0.0/26", "n3", name: "outside"), Make.block("10.48.1.0/26", "n2", name: "twice"),
            Make.manifest(.ipamBlock, "nonsense", .object(["spec": .object(["cidr": "10.48.9.1/26"])])),
            Make.manifest(.ipamBlock, "empty", .object([:])),
        ]
        let plan = NodePlan(ClusterState(Make.cluster + bad), node: "n1")
        let told = plan.problems.map(\.resource)
        #expect(
            told == [
                "IPAMBlock/covers-nodes", "IPAMBlock/empty", "IPAMBlock/nonsense", "IPAMBlock/outside",
                "IPAMBlock/overlaps", "IPAMBlock/twice",
            ])
        #expect(plan.ipv4 == NodePlan(ClusterState(Make.cluster), node: "n1").ipv4, "the rest goes on")
        for problem in plan.problems { #expect(!problem.field.isEmpty && !problem.remedy.isEmpty) }
    }

    @Test("what no pod can have is refused without pools too, also where a shorter prefix covers it")
    func reserved() throws {
        let rules = AddressRules(ClusterState([]))
        for text in [
            "127.1.0.0/16", "126.0.0.0/7", "128.0.0.0/1", "169.0.0.0/8", "224.0.0.0/3", "0.0.0.0/0", "::/64",
            "fe80::/64",
            "fe00::/7", "ff02::/16", "::/0",
        ] { #expect(rules.refusal(of: try #require(CIDR(text))) != nil, "\(text)") }
        for text in ["10.0.0.0/8", "100.64.0.0/10", "192.0.2.7/32", "fd00::/8", "2000::/3"] {
            #expect(rules.refusal(of: try #require(CIDR(text))) == nil, "\(text)")
        }
    }

    @Test("a node without an address or with a bad key has no peer, and is named")
    func badNodes() {
        let bad = [
            Make.node("n6", nil, key: Make.key(6)),
            Make.node("n7", "10.0.0.7", annotations: [NodeAnnotation.publicKey(.ipv4): "nonsense"]),
            Make.node("n8", "not-an-address", key: Make.key(8)),
        ]
        let plan = NodePlan(ClusterState(Make.cluster + bad), node: "n1")
        #expect(plan.ipv4.peers.keys.sorted() == ["n2"])
        #expect(Set(plan.problems.map(\.resource)) == ["Node/n6", "Node/n7", "Node/n8"])
        #expect(plan.problems.contains { $0.resource == "Node/n7" && $0.value == "nonsense" })
        #expect(plan.problems.contains { $0.resource == "Node/n8" && $0.field == "status.addresses[0].address" })
    }

    @Test("pod CIDRs and workload addresses as sources")
    func otherSources() throws {
        var one = Make.node("n1", "10.0.0.1", key: Make.key(1))
        one.content[["spec", "podCIDRs"]] = .array(["10.244.1.0/24"])
        var two = Make.node("n2", "10.0.0.2", key: Make.key(2))
        two.content[["spec", "podCIDR"]] = "10.244.2.0/24"
        let plan = NodePlan(ClusterState([one, two]), node: "n1")
        #expect(plan.routeSource == .podCIDRs)
        #expect(plan.ipv4.peers["n2"]?.allowedIPs == [try cidr("10.244.2.0/24")])
        let pod = Manifest(
            key: ResourceKey(.pod, "web"),
            content: .object(["spec": .object(["nodeName": "n2"]), "status": .object(["podIP": "10.9.9.9"])]))
        let workloads = NodePlan(
            ClusterState([Make.node("n1", "10.0.0.1"), Make.node("n2", "10.0.0.2", key: Make.key(2)), pod]), node: "n1")
        #expect(workloads.routeSource == .workloadIPs)
        #expect(workloads.ipv4.peers["n2"]?.allowedIPs == [try cidr("10.9.9.9/32")])
    }

    @Test("an address is taken from an own block, found again, and given back")
    func allocation() throws {
        let block = Make.block("10.48.1.0/26", "n1", borrowed: [(0, "n1"), (1, "n1")]).content
        let (given, address) = try #require(AddressAllocation.allocate(in: block, node: "n1", family: .ipv4))
        #expect(address.description == "10.48.1.2")
        #expect(AddressAllocation.find(in: given, node: "n1", family: .ipv4) == address)
        #expect(AddressAllocation.find(in: given, node: "n2", family: .ipv4) == nil)
        #expect(AddressAllocation.allocate(in: block, node: "n1", family: .ipv6) == nil)
        let back = try #require(AddressAllocation.release(in: given, node: "n1", family: .ipv4))
        #expect(back[["spec", "allocations"]] == block[["spec", "allocations"]])
        #expect(back[["spec", "attributes"]] == block[["spec", "attributes"]])
    }

    @Test("a node that sends from its own address: each has one node, in every order, and none is ours or a pod's")
    func hostAddresses() {
        let nodes = [
            Make.pool("10.48.0.0/16"), Make.node("n1", "10.0.0.1", key: Make.key(1)),
            Make.node("n2", "10.0.0.2", key: Make.key(2), interface: "10.0.0.2"),
            // The same again; ours; a pod's; nobody's.
            Make.node("n3", "10.0.0.2", key: Make.key(3), interface: "10.0.0.2"),
            Make.node("n4", "10.0.0.1", key: Make.key(4), interface: "10.0.0.1"),
            Make.node("n5", "10.48.7.7", key: Make.key(5), interface: "10.48.7.7"),
            Make.node("n6", "127.0.0.1", key: Make.key(6), interface: "127.0.0.1"),
        ]
        func source(_ word: ManifestValue) -> Manifest {
            Make.manifest(.felixConfiguration, "default", .object(["spec": .object(["routeSource": word])]))
        }
        for _ in 0..<20 {
            let plan = NodePlan(ClusterState((nodes + [source("CalicoIPAM")]).shuffled()), node: "n1")
            #expect(plan.ipv4.peers["n2"]?.allowedIPs == Set([CIDR("10.0.0.2/32")].compactMap { $0 }))
            for name in ["n3", "n4", "n5", "n6"] {
                #expect(plan.ipv4.peers[name]?.allowedIPs.isEmpty != false, "\(name)")
                #expect(plan.problems.contains { $0.resource == "Node/\(name)" }, "\(name)")
            }
        }
        // In a cloud's network, whose pools nodes and pods share.
        let shared = NodePlan(ClusterState(nodes + [source("WorkloadIPs")]), node: "n1")
        #expect(shared.ipv4.peers["n5"]?.allowedIPs == Set([CIDR("10.48.7.7/32")].compactMap { $0 }))
    }
}
