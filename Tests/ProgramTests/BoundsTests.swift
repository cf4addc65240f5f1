// SPDX-License-Identifier: Apache-2.0

import AllocationCounter
import BPF
import DataplaneMaps
import DesiredState
import Foundation
import Model
import Netlink
import OrderedCollections
import Steering
import SystemDescriptors
import Testing

/// What things cost, counted and not timed, against `bounds.json`: where a number there is passed, something has
/// become dearer. Lower a bound when something has become cheaper; raise one with the reason in the commit.
@Suite("Bounds", .serialized)
struct BoundsTests {
    struct Bounds: Decodable {
        /// Where the programs' bounds hold; each kernel's verifier counts its own way.
        var kernel: String
        /// Instructions that the verifier walks, by program.
        var verifiedInstructions: [String: UInt32]
        /// Instructions of a program as the kernel has it.
        var instructions: [String: UInt32]
        /// Instructions that a packet's way through a program takes (`PathTests`).
        var pathInstructions: [String: UInt64]
        /// Memory allocations of one thread, in a debug build.
        var allocations: [String: UInt64]
        /// Entries written to or taken from BPF maps.
        var mapOperations: [String: Int]
        /// Changes asked for by netlink.
        var netlinkMessages: [String: Int]
    }

    static let bounds = Result {
        let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appending(path: "bounds.json")
        return try JSONDecoder().decode(Bounds.self, from: Data(contentsOf: file))
    }

    static let isKernel: Bool = {
        let release = (try? String(contentsOfFile: "/proc/sys/kernel/osrelease", encoding: .utf8)) ?? ""
        return (try? bounds.get()).map { release.hasPrefix($0.kernel + ".") } ?? true
    }()

    @Test(
        "the verifier walks no more instructions than before, and the programs are no longer",
        .enabled(if: isKernel, "kernel: the bounds are another one's"))
    func programs() throws {
        let bounds = try Self.bounds.get()
        let harness = try Harness()
        var programs = harness.programs
        for hook in Hook.allCases {
            _ = try programs.program(hook, isEthernet: ![.toWireGuard, .fromWireGuard].contains(hook))
        }
        for (hook, isEthernet, program) in programs.all {
            let name =
                isEthernet || [.toWireGuard, .fromWireGuard].contains(hook) ? hook.name : "\(hook.name), no Ethernet"
            let found = try program.information()
            print("\(name): \(found.verifiedInstructions) walked, \(found.translatedSize / 8) instructions")
            #expect(
                found.verifiedInstructions <= bounds.verifiedInstructions[name] ?? 0, "\(name): instructions walked")
            #expect(found.translatedSize / 8 <= bounds.instructions[name] ?? 0, "\(name): instructions")
        }
    }

    /// What a body costs.
    private func cost(_ name: String, _ bounds: Bounds, _ body: () throws -> Void) rethrows {
        let (memory, maps, netlink) = (wgt_allocations(), BPFWork.changes, NetlinkWork.changes)
        try body()
        let spent = (wgt_allocations() - memory, BPFWork.changes - maps, NetlinkWork.changes - netlink)
        print("\(name): \(spent.0) allocations, \(spent.1) map operations, \(spent.2) netlink messages")
        #expect(spent.0 <= bounds.allocations[name] ?? 0, "\(name): allocations")
        #expect(spent.1 <= bounds.mapOperations[name] ?? 0, "\(name): map operations")
        #expect(spent.2 <= bounds.netlinkMessages[name] ?? 0, "\(name): netlink messages")
    }

    @Test("a data plane of 1,000 nodes: at rest, and with one change")
    func steering() throws {
        let bounds = try Self.bounds.get()
        try inNewNetworkNamespace {
            let layout = PinLayout(root: "/sys/fs/bpf/wgplane-bounds-\(getpid())")
            defer { try? EBPFSteering.removeAll(layout: layout) }
            var steering = try EBPFSteering(layout: layout, mechanism: AttachmentMechanism.probe())
            var plan = try Self.plan(nodes: 1000)
            #expect(try steering.apply(plan).isEmpty)
            try cost("nothing changed", bounds) { _ = try steering.apply(plan) }
            let key = PeerSlotKey(node: "node7", family: .ipv4)
            plan.peers[key]?.action = .clear
            try cost("a peer's action", bounds) { _ = try steering.apply(plan) }
            plan.peers[key]?.endpoints = [Endpoint(address: try #require(IPAddress("10.9.9.9")), port: 51820)]
            try cost("a peer's endpoint", bounds) { _ = try steering.apply(plan) }
            plan.routes[try #require(CIDR("10.99.0.0/26"))] = .peer(key)
            try cost("a route", bounds) { _ = try steering.apply(plan) }
            plan.routes[try #require(CIDR("10.99.0.0/26"))] = nil
            try cost("a route gone", bounds) { _ = try steering.apply(plan) }
        }
    }

    @Test("route mode with 1,000 nodes: at rest, and with one change")
    func routes() throws {
        let bounds = try Self.bounds.get()
        let folder = FileManager.default.temporaryDirectory.appending(path: "wgplane-bounds-\(getpid())").path
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try inNewNetworkNamespace {
            let session = try RouteSession()
            try session.setLink(1, up: true)
            var plan = try Self.plan(nodes: 1000)
            plan.routing = RoutingPlan(
                priority: 99, tables: [77...77],
                devices: [.ipv4: .init(names: ["lo"], interface: 1, listeningPort: 51820, otherPort: 0)],
                podPrefixes: ["cali"], makesExceptions: false)
            var steering = try RouteSteering(stateFolder: folder)
            #expect(try steering.apply(plan).isEmpty)
            try cost("route mode, nothing changed", bounds) { _ = try steering.apply(plan) }
            plan.routes[try #require(CIDR("10.99.0.0/26"))] = .peer(PeerSlotKey(node: "node7", family: .ipv4))
            try cost("route mode, a route", bounds) { _ = try steering.apply(plan) }
        }
    }

    @Test("a pod of 10,000: its way from the datastore to the map")
    func pods() throws {
        let bounds = try Self.bounds.get()
        try inNewNetworkNamespace {
            let layout = PinLayout(root: "/sys/fs/bpf/wgplane-bounds-\(getpid())")
            defer { try? EBPFSteering.removeAll(layout: layout) }
            var steering = try EBPFSteering(layout: layout, mechanism: AttachmentMechanism.probe())
            let plan = try Self.plan(nodes: 100)
            #expect(try steering.apply(plan).isEmpty)
            var inventory = Inventory(node: "node0")
            var changes = ResourceChanges()
            changes.whole = Set(ResourceKind.allCases)
            for number in 0..<10_000 { changes.put(try Self.pod(number), own: "node0") }
            inventory.apply(changes)
            inventory.followWorkloads(true)
            func change(_ changes: ResourceChanges) {
                inventory.apply(changes)
                steering.noteWorkloads(inventory.takeWorkloadChanges().keys)
                steering.changeWorkloads(
                    WorkloadRoutes(node: "node0", owners: inventory.workloads?.owners ?? [:], families: [.ipv4]),
                    preserved: [])
            }
            change(ResourceChanges())
            // What the first call alone makes.
            var one = ResourceChanges()
            one.put(try Self.pod(20_000), own: "node0")
            change(one)
            var two = ResourceChanges()
            two.put(try Self.pod(20_001), own: "node0")
            cost("a pod", bounds) { change(two) }
            var three = ResourceChanges()
            three.remove(try Self.pod(20_001).key)
            cost("a pod gone", bounds) { change(three) }
        }
    }

    private static func pod(_ number: Int) throws -> Manifest {
        let text = "10.\(128 + number >> 16).\(number >> 8 & 255).\(number & 255)"
        return try Manifest(
            .object([
                "apiVersion": "v1", "kind": "Pod",
                "metadata": .object(["name": .string("pod-\(number)"), "namespace": "default"]),
                "spec": .object(["nodeName": .string("node\(1 + number % 99)")]),
                "status": .object(["phase": "Running", "podIP": .string(text)]),
            ]), origin: "pod-\(number)")
    }

    private static func plan(nodes: Int) throws -> SteeringPlan {
        var plan = SteeringPlan(
            config: DataplaneConfig(
                ipv4: .init(interface: 1, listeningPort: 51820), ipv6: nil, firewallMark: 0x2000_0000, isDirect: true))
        plan.routes[try #require(CIDR("10.64.0.0/10"))] = .pool
        for number in 0..<nodes {
            let key = PeerSlotKey(node: "node\(number)", family: .ipv4)
            let endpoint = IPAddress(family: .ipv4, bits: 0x0a01_0000 + UInt128(number))
            plan.peers[key] = PeerSteering(
                publicKey: nil, endpoints: [Endpoint(address: endpoint, port: 51820)], action: .tunnel, lanes: [1])
            let block = IPAddress(family: .ipv4, bits: 0x0a40_0000 + UInt128(number * 64))
            plan.routes[try #require(CIDR(masking: block, prefixLength: 26))] = .peer(key)
        }
        return plan
    }
}
