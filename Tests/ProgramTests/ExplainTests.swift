// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Flows
import Foundation
import Lab
import Model
import Testing

/// `explain` says what the programs do.
@Suite("Programs: explain")
struct ExplainTests {
    /// Fewer where everything is emulated.
    static let nodes = Harness.share > 1 ? 100 : 1000
    static let pairs = 10_000 / Harness.share

    /// A cluster of a thousand nodes, as one of them has it: blocks, peers in all states, 60 pods of its own.
    struct Cluster {
        var pods: [IPAddress] = []
        var addresses: [IPAddress] = []

        init(_ harness: Harness, isStrict: Bool, isDirect: Bool, _ random: inout SeededGenerator) throws {
            let maps = harness.maps
            var config = try maps.config.read().0
            config.isStrict = isStrict
            config.isDirect = isDirect
            config.checksSources = true
            config.blockLengths = [.ipv4: 26, .ipv6: 122]
            try maps.config.write(config)
            let actions: [DestinationAction] = [.tunnel, .tunnel, .tunnel, .tunnel, .clear, .drop, .draining, .exempt]
            for (index, family) in AddressFamily.allCases.enumerated() {
                let pool = try #require(CIDR(family == .ipv4 ? "10.48.0.0/14" : "fd48::/48"))
                try maps.routes.update(pool, slot: DestinationSlot.pool)
                for number in 3..<ExplainTests.nodes {
                    let slot = Harness.firstPeer + number * 2 + index
                    let block = try #require(Self.block(number, family))
                    try maps.destinations.setOwner(slot, SlotOwner(node: "node\(number)", family: family))
                    maps.destinations.setLanes(slot, family: family, interfaces: [Harness.interface])
                    maps.destinations.setAction(slot, actions.randomElement(using: &random) ?? .tunnel)
                    try maps.routes.update(block, slot: slot, place: .block)
                    addresses.append(try #require(block.address(at: UInt64.random(in: 1..<60, using: &random))))
                }
                for host in 1...30 {
                    let own = try #require(CIDR(family == .ipv4 ? "10.48.1.0/26" : "fd48:0:0:1::/122"))
                    let address = try #require(own.address(at: UInt64(10 + host)))
                    try maps.locals.update(address, LocalAddress(kind: .pod, interface: Harness.interface))
                    pods.append(address)
                }
            }
            try maps.interfaces.update(checked: Harness.interface)
            for text in [
                "10.48.1.60", "10.51.255.1", "192.0.2.7", "10.0.0.2", "fd48:0:0:1::3e", "fd48:0:ffff::1", "2001:db8::9",
                "fd00::2",
            ] {
                addresses.append(try #require(IPAddress(text)))
            }
            addresses += pods
        }

        static func block(_ number: Int, _ family: AddressFamily) -> CIDR? {
            family == .ipv4
                ? CIDR("10.\(48 + number / 256).\(number % 256).64/26")
                : CIDR("fd48:0:0:\(String(number, radix: 16))::40/122")
        }
    }

    @Test(
        "ten thousand pairs on a node of a thousand: explain and the programs agree",
        arguments: [(false, true), (true, true), (true, false)])
    func agreement(isStrict: Bool, isDirect: Bool) throws {
        let environment = ProcessInfo.processInfo.environment["WGPLANE_SEED"].flatMap { UInt64($0) }
        let seed = environment ?? UInt64.random(in: 0...UInt64.max)
        print("seed \(seed) (explain); WGPLANE_SEED repeats it")
        var random = SeededGenerator(seed: seed)
        let harness = try Harness()
        let cluster = try Cluster(harness, isStrict: isStrict, isDirect: isDirect, &random)
        let explainer = try Explainer(harness.maps, names: FlowNames(node: "node1"))
        // The same from an archive, through its text.
        let text = try JSONEncoder().encode(try MapArchive(harness.maps))
        let archived = try Explainer(
            NodeMaps(try JSONDecoder().decode(MapArchive.self, from: text)), names: FlowNames(node: "node1"))
        var verdicts: [String: Int] = [:]
        for number in 0..<Self.pairs {
            let isOut = Bool.random(using: &random)
            let own = try #require((cluster.pods + [Self.host(.ipv4), Self.host(.ipv6)]).randomElement(using: &random))
            let other = try #require(
                cluster.addresses.filter { $0.family == own.family }.randomElement(using: &random))
            let packet = SyntheticPacket(
                source: isOut ? own : other, destination: isOut ? other : own,
                transport: [6, 17, own.family == .ipv4 ? 1 : 58].randomElement(using: &random) ?? 6,
                sourcePort: UInt16(truncatingIfNeeded: 1024 + number), destinationPort: 80)
            let isEncrypted = Bool.random(using: &random)
            func decide(_ explainer: Explainer) -> Explainer.Decision? {
                isOut ? explainer.firstDecision(packet) : explainer.arrivingDecision(packet, encrypted: isEncrypted)
            }
            let decision = try #require(decide(explainer))
            #expect(decide(archived)?.outcome == decision.outcome)
            let result = try harness.programs.program(decision.hook, isEthernet: decision.input.hasEthernet).testRun(
                decision.input.bytes, mark: 0, interface: Harness.interface)
            let verdict: ReferenceModel.Verdict =
                result.verdict == Harness.tunnelled ? .redirect : result.verdict == Harness.dropped ? .drop : .pass
            verdicts["\(decision.hook.name) \(verdict)", default: 0] += 1
            guard verdict == decision.outcome.verdict else {
                Issue.record("\(packet) at \(decision.hook.name): \(verdict), explained as \(decision.outcome)")
                return
            }
            let hops = isOut ? explainer.outgoing(packet) : explainer.incoming(packet, encrypted: isEncrypted)
            let first = try #require(hops.first)
            #expect((first.action == "drop") == (verdict == .drop), "\(first)")
            #expect(first.place == decision.hook.name && !first.text.isEmpty)
            if verdict == .drop { #expect(first.reason?.hasPrefix("drop") == true, "\(first)") }
        }
        print("explain: \(verdicts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }.joined(separator: ", "))")
        #expect(verdicts.count >= 6 || Harness.share > 1)
    }

    private static func host(_ family: AddressFamily) -> IPAddress {
        IPAddress(family == .ipv4 ? "10.0.0.1" : "fd00::1") ?? .anyIPv4
    }
}
