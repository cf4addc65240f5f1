// SPDX-License-Identifier: Apache-2.0

import Agent
import BPF
import Chaos
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import Netlink
import OrderedCollections
import Synchronization
import SystemDescriptors
import Testing

/// What `scripts/chaos.sh` does for long, in short, and faults that need more than a hand.
@Suite("Cluster: faults", .serialized)
struct FaultTests {
    @Test("faults at random under traffic: no packet in clear, no connection broken, nothing grown")
    func chaos() async throws {
        let seed =
            ProcessInfo.processInfo.environment["WGPLANE_SEED"].flatMap { UInt64($0) }
            ?? .random(in: 0...UInt64(UInt32.max))
        print("seed \(seed); WGPLANE_SEED repeats it")
        var options = ChaosOptions(seed: seed, duration: .seconds(75 * Lab.patience))
        options.connections = 24
        // A debug build that starts takes both processors from wireguard-go for a while; scripts/chaos.sh is strict.
        options.longestGap = 3000 * Double(Lab.patience)
        let started = options
        try await Cluster.run(nodes: 3, pods: 2, enabled: false) { lab in
            var chaos = Chaos(lab, started) { print("chaos: \($0)") }
            let report = try await chaos.run()
            print("P=\(report.clearPackets) F=\(report.failures) faults=\(report.faults) seed=\(seed)")
            #expect(report.isGood, "\(report)")
            #expect(report.faults > 3)
        }
    }

    @Test(
        "a map that is full: what is new is closed and named, all else goes on, and it comes when there is room",
        arguments: [RoutePlace.address, .prefix])
    func full(_ place: RoutePlace) async throws {
        let platform: LabPlatform = place == .address ? .eks : .onPremises
        try await Cluster.run(nodes: 2, pods: 1, families: [.ipv4], platform: platform) { lab in
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled"])
            try await lab.wait("strict mode is on") {
                lab.nodeNames().allSatisfy { lab.status($0)?.strictMode == true }
            }
            let capture = try UnderlayCapture(
                underlay: lab.place("underlay"), pools: [LabAddresses.pool(.ipv4)])
            let traffic = try await Traffic.start(lab, interval: 5000)
            let maps = try lab.maps("node1")
            // 198.16.0.0/13 has more than the map has room for.
            let junk = (0..<UInt32(1 << 19)).map { number in
                (key: IPAddress(family: .ipv4, bits: UInt128(0xc610_0000 + number)), value: UInt32(0))
            }
            let stop = StopFlag()
            let filler = BackgroundThread {
                while !stop.isRaised {
                    if place == .address {
                        for part in 0..<128 {
                            try? maps.routes.update(addresses: Array(junk[part << 12..<(part + 1) << 12]))
                        }
                    } else {
                        for (address, _) in junk where address.bits & 1 == 0 && !stop.isRaised {
                            guard let pair = CIDR(masking: address, prefixLength: 31) else { continue }
                            try? maps.routes.update(pair, slot: 0, place: .prefix)
                        }
                    }
                }
            }
            defer {
                stop.raise()
                filler.join()
            }
            func count() throws -> Int {
                place == .address
                    ? try maps.routes.addressEntries().count
                    : try maps.routes.placedPrefixes().values.count { $0.place == .prefix }
            }
            try await lab.wait("the map is full", within: .seconds(30)) {
                try count() > (place == .address ? 262_000 : 131_000)
            }
            let (address, block) = (LabAddresses.pod(2, 20, .ipv4), "10.48.77.16/28")
            if place == .address {
                _ = try await lab.addPod("late", node: 2, addresses: [address], device: "eni2late")
            } else {
                // In the pool, and nobody knows whose it is.
                let prober = Prober(try lab.place("node1-pod1"))
                let unknown = try #require(IPAddress("10.48.77.17")).bytes
                let before = try maps.counters.read(.fromPod, .dropClear).packets
                let answered = try await Task.detachedThread {
                    prober.ask(.icmp, unknown, identifier: 2, timeoutMilliseconds: 200)
                }
                let dropped = try maps.counters.read(.fromPod, .dropClear).packets - before
                #expect(!answered && dropped > 0)
                // Of another length than the others: these are in a hash.
                try await lab.datastore.update(ResourceKey(.ipamBlock, "late")) { _ in
                    .object([
                        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock",
                        "metadata": .object(["name": "late"]),
                        "spec": .object(["cidr": .string(block), "affinity": "host:node2"]),
                    ])
                }
            }
            let words = place == .address ? "\(address)" : block
            try await lab.wait("the agent names it", within: .seconds(25)) {
                lab.status("node1")?.problems.contains { $0.description.contains(words) } == true
            }
            stop.raise()
            filler.join()
            let inside = place == .address ? address : try #require(CIDR(block)).address
            try await lab.wait("it comes when there is room", within: .seconds(40)) {
                try count() < 1000 && maps.routes.slot(of: inside) >= DestinationSlot.firstPeer
            }
            try await traffic.goesOn(lab)
            try await expectNoLoss(await traffic.stop(), lab)
            let seen = capture.stop()
            #expect(seen.clearPackets == 0 && seen.lost == 0 && seen.wireguardPackets > 100, "\(seen)")
        }
    }

    @Test(
        "agents are killed as they start, and others take over: at each hook is one program of ours at all times",
        arguments: Cluster.attachments)
    func oneProgram(_ attachment: AttachmentChoice) async throws {
        try await Cluster.run(nodes: 2, pods: 1, attachment: attachment) { lab in
            let layout = PinLayout(root: lab.paths.pins("node1"))
            let attached = lab.status("node1")?.attachments ?? []
            #expect(attached.count >= 7, "a pod's, the uplink's, and two of each tunnel")
            let place = try lab.place("node1")
            let stop = StopFlag()
            // By hook: how often so many were seen.
            let counts = Mutex<[String: [Int: Int]]>([:])
            let failure = Mutex<(any Error)?>(nil)
            let sampler = BackgroundThread {
                do {
                    try place.run {
                        let session = try RouteSession()
                        while !stop.isRaised {
                            for point in attached {
                                let isEgress = ["to_uplink", "to_wireguard"].contains(point.hook)
                                guard let index = try session.link(named: point.device)?.index else { continue }
                                let count =
                                    attachment == .tc
                                    ? try session.foreignFilters(interface: index, isEgress: isEgress, own: [])
                                    : Attachment.tcxPrograms(interface: index, direction: isEgress ? .egress : .ingress)
                                        .count
                                counts.withLock {
                                    $0["\(point.hook) of \(point.device)", default: [:]][count, default: 0] += 1
                                }
                            }
                            Thread.sleep(forTimeInterval: 0.005)
                        }
                    }
                } catch {
                    failure.withLock { $0 = error }
                }
            }
            defer {
                stop.raise()
                sampler.join()
            }
            for number in 0..<12 {
                try await lab.stopAgent("node1", signal: SIGKILL)
                if number % 4 == 3, fileExists(layout.folder) {
                    try renameFile(layout.folder, "\(layout.root)/v\(PinLayout.version + number)")
                }
                let process = try await lab.startAgent("node1")
                try await Task.sleep(for: .milliseconds(Int.random(in: 1...400) * Lab.patience))
                process?.signal(SIGKILL)
                try await lab.wait("the agent is gone") {
                    process.map { reapChild($0.identifier) || !$0.isRunning } ?? true
                }
            }
            _ = try await lab.startAgent("node1")
            try await lab.wait("versions of others are gone") { layout.presentVersions == [PinLayout.version] }
            try await lab.waitUntilSettled(enabled: true)
            stop.raise()
            sampler.join()
            let (seen, error) = (counts.withLock { $0 }, failure.withLock { $0 })
            #expect(error == nil)
            // A filter is told of in two messages: its priority's head, and itself.
            let one = attachment == .tc ? 2 : 1
            #expect(
                seen.count == attached.count
                    && seen.values.allSatisfy { $0.keys.sorted() == [one] && $0[one] ?? 0 > 100 },
                "\(seen)")
        }
    }

    @Test("an agent of another layout takes over what is at work: nothing is lost, the node's own connections live on")
    func layout() async throws {
        try await Cluster.run(nodes: 2, pods: 1) { lab in
            let traffic = try await Traffic.start(lab, interval: 4000)
            let node = try lab.place("node1")
            let targets = try await Cluster.pod(lab, "node2-pod1").addresses
            // Of the node itself: with a source that only the masquerade's maps know.
            let streams = try await Task.detachedThread {
                try targets.map { try StreamProbe(in: node, to: $0.bytes, interval: 4000 * UInt32(Lab.patience)) }
            }
            try await traffic.goesOn(lab)
            let layout = PinLayout(root: lab.paths.pins("node1"))
            func mappings() throws -> Int {
                try NodeMaps(layout).list().filter { $0.name.hasPrefix("masquerade") }.reduce(0) { $0 + $1.entries }
            }
            let (links, before) = (layout.pinnedLinks().map(\.pin).sorted(), try mappings())
            #expect(before >= 2 * targets.count, "both halves of each")
            for (version, signal) in [(PinLayout.version - 1, SIGTERM), (PinLayout.version + 1, SIGKILL)] {
                try await lab.stopAgent("node1", signal: signal)
                let other = "\(layout.root)/v\(version)"
                try renameFile(layout.folder, other)
                _ = try await lab.startAgent("node1")
                try await lab.wait("version \(version) is taken over") {
                    !fileExists(other) && layout.pinnedLinks().map(\.pin).sorted() == links
                }
                try await lab.waitUntilSettled(enabled: true)
                try await traffic.goesOn(lab)
                #expect(try mappings() >= before)
            }
            let reports = try await Task.detachedThread { streams.map { $0.stop() } }
            let result = await traffic.stop()
            for report in reports + result.streams.map(\.report) {
                #expect(report.failure.isEmpty && report.lost == 0 && report.returned > 0, "\(report)")
            }
            try await expectNoLoss(result, lab)
        }
    }

    @Test("agents that start again and again leave nothing more each time")
    func restarts() async throws {
        let count = ProcessInfo.processInfo.environment["WGPLANE_RESTARTS"].flatMap { Int($0) } ?? 25
        try await Cluster.run(nodes: 2, pods: 1) { lab in
            func holdings() async throws -> [String: Int] {
                let agent = try #require(await lab.agent("node1"))
                let layout = PinLayout(root: lab.paths.pins("node1"))
                var result = [
                    "descriptors": try listFolder("/proc/\(agent.identifier)/fd").count,
                    "pins": try listFolder(layout.folder).count, "links": layout.pinnedLinks().count,
                ]
                for command in ["ip rule show", "ip route show table all", "nft list ruleset", "ip -o link show"] {
                    let words = command.split(separator: " ").map(String.init)
                    result[command] = try await Cluster.execute(lab, "node1", words).output.split(separator: "\n").count
                }
                return result
            }
            func restart(_ signal: Int32) async throws {
                try await lab.stopAgent("node1", signal: signal)
                let before = lab.status("node1")?.process
                _ = try await lab.startAgent("node1")
                try await lab.wait("the next agent has reported") {
                    lab.status("node1").map { $0.process != before } ?? false
                }
                try await lab.waitUntilSettled(enabled: true)
            }
            try await restart(SIGTERM)
            let first = try await holdings()
            for number in 1...count { try await restart(number % 2 == 0 ? SIGKILL : SIGTERM) }
            try await lab.wait("as after the first") {
                let now = try await holdings()
                return now.allSatisfy { $0.value <= (first[$0.key] ?? 0) + ($0.key == "descriptors" ? 4 : 0) }
            }
        }
    }
}
