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

/// Routes made of pods' addresses: other nodes' pods come, move and go without a pass.
@Suite("Cluster: pods' addresses", .serialized)
struct WorkloadTests {
    private static let count = 40

    private static func address(_ family: AddressFamily, _ number: Int) -> IPAddress {
        IPAddress(
            family: family,
            bits: (family == .ipv4 ? UInt128(0x0a30_7700) : UInt128(0xfd48_0077) << 96) + UInt128(number))
    }

    private static func pod(_ name: String, _ node: Int, _ number: Int) -> Manifest {
        LabBenchmark.pod(name, node: "node\(node)", AddressFamily.allCases.map { address($0, number) })
    }

    /// Which node a map and the device of node1 lead an address to.
    private static func owners(_ lab: Lab) async throws -> (routes: [IPAddress: String], allowed: [IPAddress: String]) {
        let maps = try lab.maps("node1")
        let slots = try maps.destinations.slotOwners()
        var routes: [IPAddress: String] = [:]
        for (address, slot) in try maps.routes.addressEntries() {
            routes[address] = slot == UInt32(DestinationSlot.local) ? "node1" : slots[Int(slot)]?.node
        }
        var allowed: [IPAddress: String] = [:]
        for family in AddressFamily.allCases {
            let status = lab.status("node1")?[family]
            let name = status?.device ?? ""
            let state = try await Cluster.onNode(lab, "node1") { try BackendSelection.state(device: name)?.1 }
            for (key, peer) in state?.peers ?? [:] {
                let node = status?.peers.first { $0.publicKey == key }?.node
                for cidr in peer.allowedIPs { allowed[cidr.address] = node }
            }
        }
        return (routes, allowed)
    }

    private static func expect(_ lab: Lab, _ wanted: [Int: Int], _ words: String) async throws {
        try await lab.wait(words, within: .seconds(20)) {
            let (routes, allowed) = try await owners(lab)
            return (0..<count).allSatisfy { number in
                AddressFamily.allCases.allSatisfy { family in
                    let node = wanted[number].map { "node\($0)" }
                    let address = address(family, number)
                    return routes[address] == node && (node == "node1" || allowed[address] == node)
                }
            }
        }
    }

    @Test("pods come, move, clash and go; while the agent is away too; what is changed by hand is mended")
    func life() async throws {
        try await Cluster.run(nodes: 3, platform: .eks) { lab in
            var wanted: [Int: Int] = [:]
            for number in 0..<Self.count {
                wanted[number] = 2 + number % 2
                try await lab.datastore.update(Self.pod("p\(number)", 2 + number % 2, number).key) { _ in
                    Self.pod("p\(number)", 2 + number % 2, number).content
                }
            }
            try await Self.expect(lab, wanted, "all are routed")
            // From one node to the other under the same name, and the first gone.
            for number in 0..<10 {
                wanted[number] = 3 - number % 2
                let moved = Self.pod("p\(number)", 3 - number % 2, number)
                try await lab.datastore.update(moved.key) { _ in moved.content }
            }
            for number in 10..<20 {
                wanted[number] = nil
                try await lab.datastore.update(ResourceKey(.pod, "p\(number)")) { _ in nil }
            }
            try await Self.expect(lab, wanted, "they have moved, or are gone")
            // Two claim an address: the first node by name has it, and the other when that one is gone.
            let clash = Self.pod("clash", 2, 21)
            wanted[21] = 2
            try await lab.datastore.update(clash.key) { _ in clash.content }
            try await Self.expect(lab, wanted, "the first node by name has it")
            try await lab.wait("the clash is told") {
                lab.status("node1")?.problems.contains { $0.resource == "Pod/default/p21" } == true
            }
            try await lab.datastore.update(clash.key) { _ in nil }
            wanted[21] = 3
            try await Self.expect(lab, wanted, "the other has it")
            try await lab.wait("nothing is wrong any more") { lab.status("node1")?.problems.isEmpty == true }
            // While the agent is away.
            try await lab.stopAgent("node1", signal: SIGKILL)
            let (gone, late) = (ResourceKey(.pod, "p22"), Self.pod("late", 2, 10))
            try await lab.datastore.update(gone) { _ in nil }
            try await lab.datastore.update(late.key) { _ in late.content }
            (wanted[22], wanted[10]) = (nil, 2)
            _ = try await lab.startAgent("node1")
            try await Self.expect(lab, wanted, "what has changed meanwhile is made so")
            // By hand.
            let maps = try lab.maps("node1")
            try maps.routes.delete(CIDR(host: Self.address(.ipv4, 30)))
            try maps.routes.update(CIDR(host: Self.address(.ipv6, 31)), slot: DestinationSlot.local)
            try maps.routes.update(CIDR(host: Self.address(.ipv4, 12)), slot: DestinationSlot.local)
            try await Self.expect(lab, wanted, "what is changed by hand is mended")
        }
    }

    @Test("an agent that is killed as most pods have gone leaves no memory that holds the next one back")
    func gone() async throws {
        try await Cluster.run(nodes: 2, platform: .eks) { lab in
            for number in 0..<Self.count {
                let pod = Self.pod("p\(number)", 2, number)
                try await lab.datastore.update(pod.key) { _ in pod.content }
            }
            try await Self.expect(
                lab, Dictionary(uniqueKeysWithValues: (0..<Self.count).map { ($0, 2) }), "all are routed")
            let memory = "\(lab.paths.runDirectory("node1"))/state/resources.jsonl"
            func remembered() throws -> Int {
                guard fileExists(memory) else { return 0 }
                return String(decoding: try readFile(memory), as: UTF8.self).split(separator: "\n")
                    .count { $0.contains("\"name\":\"p") }
            }
            try await lab.wait("they are kept on disk", within: .seconds(45)) { try remembered() == Self.count }
            // Never nine of ten in one look, which would be held back.
            var left = Self.count
            for next in [12, 4, 1] {
                for number in next..<left {
                    try await lab.datastore.update(ResourceKey(.pod, "p\(number)")) { _ in nil }
                }
                left = next
                try await Self.expect(
                    lab, Dictionary(uniqueKeysWithValues: (0..<left).map { ($0, 2) }), "all but \(left) are gone")
            }
            try await lab.wait("the memory on disk is not far behind", within: .seconds(5)) { try remembered() < 10 }
            try await lab.stopAgent("node1", signal: SIGKILL)
            _ = try await lab.startAgent("node1")
            try await lab.wait("the next one is at work") {
                guard let status = lab.status("node1"), let process = await lab.agent("node1") else { return false }
                return status.process == process.identifier && status.mode == "ebpf"
            }
            let held = lab.status("node1")?.problems.filter { $0.field == "list" } ?? []
            #expect(held.isEmpty, "\(held)")
            try await Self.expect(lab, [0: 2], "nothing has come back")
        }
    }

    @Test("another node's pod costs an entry and an allowed IP a family, and no pass")
    func cost() async throws {
        try await Cluster.run(nodes: 3, platform: .eks) { lab in
            // A first one, so that node2 is known to have pods.
            try await lab.datastore.update(Self.pod("first", 2, 0).key) { _ in Self.pod("first", 2, 0).content }
            try await Self.expect(lab, [0: 2], "the first is routed")
            func count(_ name: String) async throws -> Double {
                let (text, _) = try await Cluster.execute(
                    lab, "node1", ["curl", "-s", "--unix-socket", "/run/wgplane/http.sock", "http://node/metrics"])
                let line = text.split(separator: "\n").first { $0.hasPrefix("\(name) ") }
                return try #require(line.flatMap { Double($0.split(separator: " ")[1]) }, "\(name)")
            }
            func passes() async throws -> Double { try await count("wgplane_reconcile_duration_seconds_count") }
            // Between two looks at everything, which come each ten seconds.
            let before = try await passes()
            try await lab.wait("a whole pass") { try await passes() > before }
            let start = try await passes()
            var wanted = [0: 2]
            for number in 1...20 {
                wanted[number] = 2
                let pod = Self.pod("p\(number)", 2, number)
                try await lab.datastore.update(pod.key) { _ in pod.content }
                try await Self.expect(lab, wanted, "pod \(number) is routed")
            }
            // What is served is a moment old.
            try await lab.wait("20 pods of two addresses are told, and no pass", within: .seconds(9)) {
                try await count("wgplane_workload_changes_total") >= 40
            }
            let after = try await passes()
            #expect(after - start <= 2, "20 pods, one after the other")
        }
    }
}
