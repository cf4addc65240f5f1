// SPDX-License-Identifier: Apache-2.0

import Agent
import Foundation
import Lab
import Model
import SystemDescriptors
import Testing
import WireGuard

/// The clock of the machine jumps: in a machine of its own.
@Suite("Cluster: clocks", .serialized)
struct ClockTests {
    private static let leap: Int64 = 86_400 * 3650

    /// Seconds that the machine's clock is ahead of what it was, since `begin`.
    private func set(_ lab: Lab, ahead seconds: Int64, since begin: (wall: Int64, monotonic: UInt64)) async throws {
        let passed = Int64((monotonicNanoseconds() - begin.monotonic) / 1_000_000_000)
        let answer = try await Cluster.execute(lab, "node1", ["date", "-s", "@\(begin.wall + passed + seconds)"])
        #expect(answer.status == 0, "\(answer.output)")
    }

    private func devices(_ lab: Lab) async throws -> [DeviceState] {
        var devices: [DeviceState] = []
        for node in lab.nodeNames() {
            for family in lab.spec.families {
                guard let name = lab.status(node)?[family]?.device else { continue }
                let state = try await Cluster.onNode(lab, node) { try BackendSelection.state(device: name)?.1 }
                devices += state.map { [$0] } ?? []
            }
        }
        return devices
    }

    private func expectConnected(_ lab: Lab) async throws {
        let result = try await LabCheck(lab).run()
        #expect(result.pairs.allSatisfy { $0.reachable && $0.way == "tunnel" } && result.underlay.clearPackets == 0)
    }

    @Test(
        "ten years ahead and back: keys that have shaken hands there are replaced, once, and nodes find each other",
        .enabled(if: KernelTraits.ownsClock, "kernel: its clock is not a test's to set"))
    func leap() async throws {
        let begin = (wall: wallSeconds(), monotonic: monotonicNanoseconds())
        try await Cluster.run { lab in
            do {
                let first = try await devices(lab).map(\.publicKey)
                try await set(lab, ahead: Self.leap, since: begin)
                // Other keys shake hands then.
                for family in lab.spec.families {
                    let device = try #require(lab.status("node2")?[family]?.device)
                    _ = try await Cluster.execute(lab, "node2", ["ip", "link", "delete", device])
                }
                try await lab.wait("handshakes lie in what is to be the future", within: .seconds(40)) {
                    let states = try await devices(lab)
                    return states.count == first.count
                        && states.allSatisfy { $0.handshakeLead(begin.wall) > Self.leap - 10 }
                }
                try await lab.waitUntilSettled(enabled: true)
                try await expectConnected(lab)
                let burnt = try await devices(lab).map(\.publicKey)
                try await set(lab, ahead: 0, since: begin)
                try await lab.wait("all keys are others", within: .seconds(30)) {
                    let states = try await devices(lab)
                    return states.count == burnt.count
                        && states.allSatisfy { !$0.peers.isEmpty && !burnt.contains($0.publicKey) }
                }
                try await lab.waitUntilSettled(enabled: true, within: .seconds(40))
                try await expectConnected(lab)
                // Once is enough.
                let renewed = try await devices(lab)
                #expect(renewed.allSatisfy { $0.handshakeLead(wallSeconds()) < 5 })
                try await lab.stopAgent("node1", signal: 9)
                _ = try await lab.startAgent("node1")
                try await lab.waitUntilSettled(enabled: true)
                #expect(try await devices(lab).map(\.publicKey) == renewed.map(\.publicKey))
            } catch {
                try await set(lab, ahead: 0, since: begin)
                throw error
            }
        }
    }
}
