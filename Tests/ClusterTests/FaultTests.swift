// SPDX-License-Identifier: Apache-2.0

import Agent
import Chaos
import DataplaneMaps
import Foundation
import Lab
import Model
import OrderedCollections
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

    @Test("a map that is full: what is new is closed and named, all else goes on, and it comes when there is room")
    func full() async throws {
        try await Cluster.run(nodes: 2, pods: 1, families: [.ipv4], platform: .eks) { lab in
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled"])
            try await lab.wait("strict mode is on") {
                lab.nodeNames().allSatisfy { lab.status($0)?.strictMode == true }
            }
            let traffic = try await Traffic.start(lab, interval: 5000)
            let maps = try lab.maps("node1")
            // 198.18.0.0/15 has half as many as the map has room for: twice as many as fit.
            let junk = (0..<UInt32(1 << 19)).map { number in
                (key: IPAddress(family: .ipv4, bits: UInt128(0xc612_0000 + number)), value: UInt32(0))
            }
            let stop = StopFlag()
            let filler = BackgroundThread {
                while !stop.isRaised {
                    for part in 0..<128 {
                        try? maps.routes.update(addresses: Array(junk[part << 12..<(part + 1) << 12]))
                    }
                }
            }
            defer {
                stop.raise()
                filler.join()
            }
            try await lab.wait("the map is full", within: .seconds(30)) {
                try maps.routes.addressEntries().count > 262_000
            }
            let address = LabAddresses.pod(2, 20, .ipv4)
            _ = try await lab.addPod("late", node: 2, addresses: [address], device: "eni2late")
            try await lab.wait("the agent names it", within: .seconds(25)) {
                lab.status("node1")?.problems.contains { $0.description.contains("\(address)") } == true
            }
            stop.raise()
            filler.join()
            try await lab.wait("it comes when there is room", within: .seconds(40)) {
                try maps.routes.addressEntries().count < 1000
                    && maps.routes.slot(of: address) >= DestinationSlot.firstPeer
            }
            try await traffic.goesOn(lab)
            try await expectNoLoss(await traffic.stop(), lab)
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
