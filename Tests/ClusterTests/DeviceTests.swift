// SPDX-License-Identifier: Apache-2.0

import DesiredState
import Foundation
import Lab
import Model
import Netlink
import OrderedCollections
import SystemDescriptors
import Testing

@testable import Agent
@testable import WireGuard

/// WireGuard devices: many peers, changes by hand, no WireGuard at all.
@Suite("Cluster: WireGuard devices", .serialized)
struct DeviceTests {
    static let device = "wgscale"

    private static func peer(_ number: Int) throws -> PeerPlan {
        var random = SeededGenerator(seed: UInt64(number) + 1)
        let key = (0..<32).map { _ in UInt8.random(in: 0...255, using: &random) }
        let (high, low) = (number / 256, number % 256)
        let allowed =
            (0..<5).map { "10.\($0 + 1).\(high * 64).\(low)/32" }.map { $0 }
            + (0..<3).map { "fd00:\($0 + 1):\(number)::/64" }
        return PeerPlan(
            node: "node\(number)", publicKey: try #require(PublicKey(bytes: key)),
            endpoint: Endpoint(address: try #require(IPAddress("192.0.2.\(low)")), port: UInt16(50_000 + high)),
            allowedIPs: Set(try allowed.map { try #require(CIDR($0)) }))
    }

    private static func same(_ device: DeviceState, _ plan: [String: PeerPlan]) -> Bool {
        device.peers.count == plan.count
            && plan.values.allSatisfy {
                let present = device.peers[$0.publicKey]
                return present?.allowedIPs == $0.allowedIPs && present?.endpoint == $0.endpoint
            }
    }

    /// Runs a body with a new device in a namespace of its own.
    private static func withDevice(_ body: @escaping @Sendable (any WireGuardBackend) throws -> Void) throws {
        try KernelInterfaceTests.inNamespace {
            let backend = try BackendSelection.backend(Cluster.wireguard.kind)
            try backend.create(device: device, mtu: 1420)
            defer { try? backend.delete(device: device) }
            try body(backend)
        }
    }

    @Test("1,000 peers with 8 allowed IPs: set, read back, changed one by one, removed")
    func scale() throws {
        try Self.withDevice { backend in
            try backend.apply(
                DeviceChange(privateKey: .generate(), listeningPort: 51820, firewallMark: 0x2000_0000), to: Self.device)
            func read() throws -> DeviceState { try #require(try backend.state(device: Self.device)) }
            let now = ContinuousClock.now
            var table = PeerTable()
            var plan: [String: PeerPlan] = [:]
            for number in 0..<1000 {
                let peer = try Self.peer(number)
                plan[peer.node] = peer
            }
            func changes(_ device: DeviceState) -> [PeerChange] {
                table.observe(device, plan, now: now)
                let (changes, stamped) = table.changes(device, plan, keepAlive: 0, now: now)
                table.note(stamped: stamped)
                return changes
            }
            try backend.apply(DeviceChange(peers: changes(read())), to: Self.device)
            var device = try read()
            #expect(device.listeningPort == 51820 && device.firewallMark == 0x2000_0000)
            #expect(Self.same(device, plan), "\(device.peers.count) peers read back")
            #expect(changes(device).isEmpty, "what is as it should be is not sent again")

            // Each peer changes one of its allowed IPs; of some it is looked at what is sent.
            for number in 0..<1000 {
                let name = "node\(number)"
                var peer = try #require(plan[name])
                let old = try #require(peer.allowedIPs.min())
                let new = try #require(CIDR("10.200.\(number / 256).\(number % 256)/32"))
                peer.allowedIPs.remove(old)
                peer.allowedIPs.insert(new)
                plan[name] = peer
                var sent = [PeerChange(peer.publicKey), PeerChange(peer.publicKey)]
                sent[0].updateOnly = true
                sent[0].allowedIPs = [new]
                sent[1].updateOnly = true
                sent[1].removedAllowedIPs = [old]
                if number % 100 == 0 {
                    #expect(changes(device) == sent, "only the change is sent")
                    #expect(device.peers[peer.publicKey]?.allowedIPs.count == 8)
                }
                try backend.apply(DeviceChange(peers: sent), to: Self.device)
                device.peers[peer.publicKey]?.allowedIPs = peer.allowedIPs
                if number % 250 == 0 { #expect(try Self.same(read(), plan), "peer \(number) has changed and no other") }
            }
            #expect(try Self.same(read(), plan))

            plan = [:]
            var removals: [PeerChange] = []
            for key in device.peers.keys {
                var removal = PeerChange(key)
                removal.remove = true
                removals.append(removal)
            }
            try backend.apply(DeviceChange(peers: removals), to: Self.device)
            #expect(try read().peers.isEmpty)
            try backend.delete(device: Self.device)
            #expect(try backend.state(device: Self.device) == nil)
        }
    }

    @Test("an allowed IP goes and comes without a moment in which others are missing")
    func removal() throws {
        try Self.withDevice { backend in
            let first = try Self.peer(1)
            let second = try Self.peer(2)
            var changes = [first, second].map { peer in
                var change = PeerChange(peer.publicKey)
                change.allowedIPs = peer.allowedIPs.sorted()
                return change
            }
            try backend.apply(DeviceChange(privateKey: .generate(), peers: changes), to: Self.device)
            // In one change: one goes from the first for good, another goes to the second.
            let sorted = first.allowedIPs.sorted()
            changes = [PeerChange(second.publicKey), PeerChange(first.publicKey)]
            changes[0].allowedIPs = [sorted[1], sorted[7]]
            changes[1].removedAllowedIPs = Array(sorted[0...1]) + [sorted[6]]
            try backend.apply(DeviceChange(peers: changes), to: Self.device)
            let after = try #require(try backend.state(device: Self.device)?.peers)
            #expect(after.count == 2, "the peer that took them is gone")
            #expect(after[first.publicKey]?.allowedIPs == Set(sorted[2...5]))
            #expect(after[second.publicKey]?.allowedIPs == second.allowedIPs.union([sorted[1], sorted[7]]))
            if let kernel = backend as? KernelBackend {
                print("removal of single allowed IPs: \(kernel.removesAllowedIPs == true ? "by flag" : "by moving")")
                let version = Self.kernelRelease.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
                #expect(kernel.removesAllowedIPs == !version.lexicographicallyPrecedes([6, 16]))
            }
        }
    }

    /// Each change waits ten seconds for the next look: where all is emulated, one family must do.
    private static let families: [AddressFamily] = Lab.patience > 1 ? [.ipv6] : AddressFamily.allCases

    @Test("what is changed by hand is found and mended", arguments: families)
    func drift(_ family: AddressFamily) async throws {
        try await Cluster.run(families: [family]) { lab in
            let name = family == .ipv4 ? "wireguard.cali" : "wg-v6.cali"
            let other = try #require(lab.status("node2")?[family]?.publicKey).description
            struct Whole: Equatable {
                var device: DeviceState
                var mtu: UInt32
                var addresses: Set<IPAddress>
            }
            func look() async throws -> Whole? {
                try await Cluster.onNode(lab, "node1") {
                    let route = try RouteSession()
                    guard let link = try route.link(named: name), link.isUp,
                        var device = try BackendSelection.state(device: name)?.1
                    else { return nil }
                    device.interface = 0
                    for key in device.peers.keys {
                        device.peers[key]?.lastHandshake = nil
                        device.peers[key]?.receivedBytes = 0
                        device.peers[key]?.sentBytes = 0
                    }
                    let addresses = try route.addresses().filter { $0.index == link.index && !$0.address.isLinkLocal }
                    return Whole(device: device, mtu: link.mtu, addresses: Set(addresses.map(\.address)))
                }
            }
            // While a handshake is provoked, the keep-alive interval is another.
            try await lab.wait("the peer is as it stays") {
                let peers = try await look()?.device.peers
                return peers?.count == 1 && peers?.values.first?.keepAlive == 0
            }
            let before = try #require(try await look())
            let address = try #require(before.addresses.first)
            let length = family.bitWidth
            let (stranger, elsewhere) = family == .ipv4 ? ("10.99.0.0/16", "10.98.0.1") : ("fd99::/32", "fd98::1")
            let third = try #require(PrivateKey.generate().publicKey)
            let capture = try UnderlayCapture(underlay: lab.place("underlay"), pools: [LabAddresses.pool(family)])
            let target = try await Cluster.pod(lab, "node2-pod1").addresses[0]
            let probe = try LossProbe(in: lab.place("node1-pod1"), to: target.bytes)
            defer { _ = probe.stop() }
            for command in [
                "ip address delete \(address)/\(length) dev \(name)",
                "ip address add \(elsewhere)/\(length) dev \(name)",
                "ip link set dev \(name) mtu 1300",
                "ip link set dev \(name) down",
                "wg set \(name) listen-port 4711",
                "wg set \(name) fwmark 0x77",
                "wg set \(name) peer \(other) allowed-ips \(stranger)",
                "wg set \(name) peer \(other) persistent-keepalive 77",
                "wg set \(name) peer \(other) remove",
                "wg set \(name) peer \(third) allowed-ips \(stranger)",
            ] {
                let done = try await Cluster.execute(lab, "node1", command.split(separator: " ").map(String.init))
                #expect(done.status == 0, "\(command): \(done.output)")
                var last = "no device"
                do {
                    try await lab.wait("mended: \(command)", within: .seconds(25)) {
                        guard var now = try await look() else { return false }
                        // Where the other side speaks from, its datagrams say.
                        for key in now.device.peers.keys {
                            now.device.peers[key]?.endpoint = before.device.peers[key]?.endpoint
                        }
                        let state = lab.status("node1")?[family]?.peers.first?.state
                        last = "\(now)\n  \(state ?? "no status")\nwas\n  \(before)"
                        return now == before && state == "ready"
                    }
                } catch {
                    Issue.record("\(error)\nis\n  \(last)")
                    throw error
                }
                let count = capture.count()
                #expect(count.clearPackets == 0, "\(command): \(count.examples)")
            }
            let count = try await Task.detachedThread {
                _ = probe.stop()
                return capture.stop()
            }
            #expect(count.clearPackets == 0 && count.lost == 0, "\(count)")
            #expect(count.wireguardPackets > 0)
        }
    }

    /// A machine of ours, whose modules can be taken away without harm, has this.
    private static let removeModule = "/run/vm-bin/rmmod"
    private static let isModule = FileManager.default.fileExists(atPath: "/lib/modules/\(kernelRelease)/modules.dep")
    private static let kernelRelease =
        (try? String(contentsOfFile: "/proc/sys/kernel/osrelease", encoding: .utf8))?
        .trimmingCharacters(in: .whitespacesAndNewlines) ?? ""
    private static let canLackWireGuard =
        FileManager.default.fileExists(atPath: removeModule) && isModule || !KernelBackend.isAvailable()

    @Test(
        "no WireGuard in the kernel: who asks for it is told, else wireguard-go takes its place",
        .enabled(if: canLackWireGuard, "kernel: its WireGuard is built in"))
    func moduleMissing() async throws {
        let loader = "/proc/sys/kernel/modprobe"
        let before = try? String(contentsOfFile: loader, encoding: .utf8)
        let isLoaded = KernelBackend.isAvailable()
        if isLoaded {
            // All other modules that a lab and wireguard-go need, before nothing is loaded any more.
            try await Cluster.run(families: [.ipv4]) { _ in }
            _ = UserspaceBackend.isAvailable()
            try "/nowhere".write(toFile: loader, atomically: false, encoding: .utf8)
            let status = try await Task.detachedThread {
                try ProgramLaunch([Self.removeModule, "wireguard"], environment: currentEnvironment()).run()
            }
            #expect(status == 0)
        }
        defer { if isLoaded, let before { try? before.write(toFile: loader, atomically: false, encoding: .utf8) } }
        try #require(!KernelBackend.isAvailable())
        try await Cluster.run(families: [.ipv4], enabled: false) { lab in
            try await Cluster.configure(lab, ["wireguardBackend": "Kernel"])
            try await Cluster.switchWireGuard(lab, on: true)
            try await lab.wait("the agents say what is missing", within: .seconds(10)) {
                lab.nodeNames().allSatisfy { node in
                    lab.status(node)?.problems.contains {
                        "\($0)".contains("this kernel has no WireGuard")
                            && "\($0)".contains("load the module wireguard")
                    } == true
                }
            }
            try await Cluster.configure(lab, ["wireguardBackend": "Auto"])
            try await lab.wait("the agents use what is there", within: .seconds(20)) {
                lab.nodeNames().allSatisfy { lab.status($0)?.backend == "userspace" }
            }
            try await lab.waitUntilSettled(enabled: true)
            let result = try await LabCheck(lab).run()
            #expect(result.pairs.allSatisfy(\.reachable) && result.underlay.clearPackets == 0)
        }
    }
}
