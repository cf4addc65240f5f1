// SPDX-License-Identifier: Apache-2.0

import DesiredState
import Lab
import Model
import OrderedCollections
import Testing
import WireGuard

@testable import Agent

/// Pods' addresses kept change by change must be what they would be, read at once.
@Suite("workloads' addresses")
struct WorkloadAddressesTests {
    static let nodes = ["n1", "n2", "n3", "n4"]

    static func pod(
        _ name: String, on node: String, _ addresses: [String], phase: String = "Running", hostNetwork: Bool = false
    ) -> Manifest {
        Manifest(
            key: ResourceKey(.pod, name),
            content: .object([
                "spec": .object(["nodeName": .string(node), "hostNetwork": .bool(hostNetwork)]),
                "status": .object([
                    "phase": .string(phase),
                    "podIPs": .array(addresses.map { .object(["ip": .string($0)]) }),
                ]),
            ]))
    }

    static func cluster(pools: [String] = []) -> [Manifest] {
        nodes.enumerated().map { index, name in
            Make.node(name, "10.0.0.\(index + 1)", key: Make.key(UInt8(index + 1)))
        } + pools.map(Make.pool)
    }

    static func inventory(_ manifests: [Manifest]) -> Inventory {
        var inventory = Inventory(node: "n1")
        var changes = ResourceChanges()
        changes.whole = Set(ResourceKind.allCases)
        for manifest in manifests { changes.put(manifest, own: "n1") }
        inventory.apply(changes)
        inventory.followWorkloads(true)
        return inventory
    }

    static func owners(_ workloads: WorkloadAddresses?) -> [IPAddress: String] {
        (workloads?.owners ?? [:]).mapValues(\.pod.node)
    }

    /// What differs between an inventory that was changed bit by bit and one that is made anew.
    static func differences(_ inventory: Inventory) -> [String] {
        let fresh = WorkloadAddresses(inventory.cluster)
        var words: [String] = []
        if owners(inventory.workloads) != owners(fresh) { words.append("owners") }
        for family in AddressFamily.allCases where inventory.workloads?[family] != fresh[family] {
            words.append("\(family) by node")
        }
        let problems = inventory.workloads.map { Set($0.problems(inventory.cluster)) }
        if problems != Set(fresh.problems(inventory.cluster)) { words.append("problems") }
        // Beside a plan, they are the plan that has them all in it.
        let folded = NodePlan(inventory.cluster, node: "n1")
        let beside = NodePlan(inventory.cluster, node: "n1", workloads: inventory.workloads)
        for family in AddressFamily.allCases {
            if folded[family].unencrypted != beside[family].unencrypted { words.append("\(family) unencrypted") }
            var routes = beside[family].routes
            for (address, node) in owners(inventory.workloads) where address.family == family {
                routes[CIDR(host: address)] = node == "n1" ? .local : .node(node)
            }
            if folded[family].routes != routes { words.append("\(family) routes") }
            for (name, peer) in folded[family].peers {
                let own = beside[family].peers[name]?.allowedIPs ?? []
                if peer.allowedIPs != own.union(inventory.workloads?[family][name] ?? []) {
                    words.append("\(family) allowed IPs of \(name)")
                }
            }
        }
        return words
    }

    @Test("random changes of pods, nodes and pools: the same as read at once, and every change is told")
    func random() throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        var generator = SeededGenerator(seed: seed)
        var inventory = Self.inventory(Self.cluster(pools: ["10.48.0.0/16"]))
        var told = Self.owners(inventory.workloads)
        _ = inventory.takeWorkloadChanges()
        for step in 0..<3000 {
            var changes = ResourceChanges()
            let name = "p\(Int.random(in: 0..<12, using: &generator))"
            let node = Self.nodes.randomElement(using: &generator) ?? "n1"
            // Few addresses, so that many pods want the same; some that nobody may have.
            let addresses = (0..<Int.random(in: 0...2, using: &generator)).map { _ in
                ["10.48.0.1", "10.48.0.2", "10.48.0.3", "10.48.0.4", "10.0.0.2", "172.16.0.1", "fd00::1", "127.0.0.1"]
                    .randomElement(using: &generator) ?? ""
            }
            switch Int.random(in: 0..<10, using: &generator) {
            case 0..<6:
                let phase = Int.random(in: 0..<6, using: &generator) == 0 ? "Succeeded" : "Running"
                changes.put(Self.pod(name, on: node, addresses, phase: phase), own: "n1")
            case 6, 7: changes.remove(ResourceKey(.pod, name))
            case 8:
                let interface = Bool.random(using: &generator) ? "10.48.0.2" : nil
                let number = UInt8(Self.nodes.firstIndex(of: node) ?? 0) + 1
                changes.put(
                    Make.node(node, "10.0.0.\(number)", key: Make.key(number), interface: interface), own: "n1")
            default:
                if Bool.random(using: &generator) {
                    changes.put(
                        Make.pool(["10.48.0.0/16", "172.16.0.0/16"].randomElement(using: &generator) ?? ""), own: "n1")
                } else {
                    changes.remove(ResourceKey(.ipPool, "pool"))
                }
            }
            inventory.apply(changes)
            inventory.refreshWorkloads()
            for (address, before) in inventory.takeWorkloadChanges() {
                #expect(told[address] == before, "step \(step): who had \(address)")
                told[address] = inventory.workloads?.node(of: address)
            }
            #expect(told == Self.owners(inventory.workloads), "step \(step): a change was not told")
            let differences = Self.differences(inventory)
            try #require(differences == [], "step \(step)")
        }
    }

    @Test("another node's pods are no new version of the plan; this node's are")
    func versions() {
        var inventory = Self.inventory(Self.cluster())
        let (version, nodes) = (inventory.version, inventory.workloads?.nodesVersion)
        var changes = ResourceChanges()
        changes.put(Self.pod("far", on: "n2", ["10.48.0.9"]), own: "n1")
        inventory.apply(changes)
        #expect(inventory.version == version && inventory.workloads?.nodesVersion != nodes, "n2 has its first")
        let second = inventory.workloads?.nodesVersion
        changes = ResourceChanges()
        changes.put(Self.pod("farther", on: "n2", ["10.48.0.10"]), own: "n1")
        inventory.apply(changes)
        #expect(inventory.version == version && inventory.workloads?.nodesVersion == second)
        changes = ResourceChanges()
        changes.put(Self.pod("near", on: "n1", ["10.48.0.11"]), own: "n1")
        inventory.apply(changes)
        #expect(inventory.version == version + 1)
    }

    @Test("allowed IPs alone: given before they are taken, and nothing else is touched")
    func allowedIPs() throws {
        let (one, two, three) = (Make.key(2), Make.key(3), Make.key(4))
        func cidr(_ text: String) throws -> CIDR { try #require(CIDR(text)) }
        let plan = [
            "n2": PeerPlan(node: "n2", publicKey: one, endpoint: nil, allowedIPs: [try cidr("10.0.0.2/32")]),
            "n3": PeerPlan(node: "n3", publicKey: two, endpoint: nil, allowedIPs: []),
            "n4": PeerPlan(node: "n4", publicKey: three, endpoint: nil, allowedIPs: []),
        ]
        func peer(_ texts: [String]) throws -> PeerState {
            PeerState(allowedIPs: Set(try texts.map(cidr)), keepAlive: 0, receivedBytes: 0, sentBytes: 0)
        }
        let device = DeviceState(
            name: "wg", interface: 3, listeningPort: 1, firewallMark: 0,
            peers: [
                one: try peer(["10.0.0.2/32", "10.48.0.1/32", "10.48.0.2/32"]), two: try peer(["10.48.0.3/32"]),
                three: try peer(["10.48.0.4/32"]),
            ])
        var table = PeerTable()
        table.observe(device, plan, now: .now)
        // 0.1 moves from n2 to n3, 0.2 goes, 0.5 comes, 0.3 stays, and n2's own address is no pod's any more.
        let moves: [PeerTable.Move] = [
            .init(address: try cidr("10.48.0.1/32"), from: "n2", to: "n3"),
            .init(address: try cidr("10.48.0.2/32"), from: "n2", to: nil),
            .init(address: try cidr("10.48.0.5/32"), from: nil, to: "n3"),
            .init(address: try cidr("10.48.0.3/32"), from: "n3", to: "n3"),
            .init(address: try cidr("10.0.0.2/32"), from: "n2", to: nil),
        ]
        let changes = table.allowedIPChanges(device, plan, moves)
        #expect(changes.map(\.publicKey) == [two, one])
        #expect(changes.first?.allowedIPs == [try cidr("10.48.0.1/32"), try cidr("10.48.0.5/32")])
        #expect(changes.last?.removedAllowedIPs == [try cidr("10.48.0.2/32")], "what another gets is not taken")
        let incomplete = table.allowedIPChanges(device, plan, moves, mayRemove: false)
        #expect(incomplete.map(\.publicKey) == [two], "what is not known to be gone is not taken")
        #expect(changes.allSatisfy { $0.updateOnly && !$0.replaceAllowedIPs && $0.endpoint == nil })
    }
}
