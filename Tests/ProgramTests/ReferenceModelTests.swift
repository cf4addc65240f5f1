// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Flows
import Foundation
import Lab
import Model
import Testing

/// Random and mutated packets, decided by the programs and by the model: no difference.
@Suite("Programs: against the reference model")
struct ReferenceModelTests {
    /// Of each arrangement; 216,000 in all.
    static let packets = 27_000 / Harness.share

    /// Settings that decide, each with and without the others.
    struct Arrangement: CustomTestStringConvertible, Sendable {
        var isDirect: Bool
        var isStrict: Bool
        var encryptsHosts: Bool
        var testDescription: String {
            "\(isDirect ? "direct" : "stack")\(isStrict ? ", strict" : "")\(encryptsHosts ? ", hosts" : "")"
        }
        static let all = (0..<8).map {
            Arrangement(isDirect: $0 & 1 != 0, isStrict: $0 & 2 != 0, encryptsHosts: $0 & 4 != 0)
        }
    }

    private func arrange(_ harness: Harness, _ arrangement: Arrangement) throws {
        var config = try harness.maps.config.read().0
        config.isDirect = arrangement.isDirect
        config.isStrict = arrangement.isStrict
        config.encryptsHosts = arrangement.encryptsHosts
        config.checksSources = true
        config.vxlanPorts = [4789, 8472]
        config.exemptPorts = [
            PortRange(transport: 6, ports: 6443...6443), PortRange(transport: 17, ports: 1000...1010),
        ]
        // A port and a mark that change, and a peer behind NAT, in half of the arrangements.
        config.admitsAnybody = arrangement.isStrict != arrangement.encryptsHosts
        config.oldFirewallMark = config.admitsAnybody ? 0x0001_0000 : 0
        for family in AddressFamily.allCases {
            if config.admitsAnybody { config[family]?.otherPort = 1000 }
            config[family]?.mtu = 300
            config[family]?.maximumSegment = 1200
            if arrangement.encryptsHosts {
                // The device has the node's own address, and the other node's is a peer's.
                let own = try #require(IPAddress(family == .ipv4 ? "10.0.0.1" : "fd00::1"))
                let other = try #require(IPAddress(family == .ipv4 ? "10.0.0.2" : "fd00::2"))
                config[family]?.address = own
                try harness.maps.locals.update(own, LocalAddress(kind: .tunnel))
                try harness.maps.routes.update(
                    CIDR(host: other), slot: Harness.firstPeer + (family == .ipv4 ? 0 : 1))
            }
        }
        // The blocks below in hashes for half of the arrangements, in tries for the others.
        let place: RoutePlace = arrangement.isStrict ? .block : .prefix
        if place == .block { config.blockLengths = [.ipv4: 24, .ipv6: 64] }
        try harness.maps.config.write(config)
        // One peer of each family for each action.
        for (index, action) in [DestinationAction.clear, .drop, .draining, .exempt].enumerated() {
            for (family, text) in [
                (AddressFamily.ipv4, "10.48.\(10 + index).0/24"), (.ipv6, "fd48:0:0:\(10 + index)::/64"),
            ] {
                let slot = Harness.firstPeer + 2 + index * 2 + (family == .ipv4 ? 0 : 1)
                harness.maps.destinations.setLanes(slot, family: family, interfaces: [1])
                harness.maps.destinations.setAction(slot, action)
                try harness.maps.routes.update(#require(CIDR(text)), slot: slot, place: place)
                // A single address inside it that belongs to the first peer.
                let host = try #require(CIDR(text)).address(at: 77)
                try harness.maps.routes.update(
                    CIDR(host: #require(host)), slot: Harness.firstPeer + (family == .ipv4 ? 0 : 1))
            }
        }
        // A pod's device on which only one prefix more may send.
        try harness.maps.interfaces.update(checked: 1)
        for text in ["192.0.2.0/25", "2001:db8::/33"] {
            try harness.maps.allowedSources.update(AllowedSource(interface: 1, prefix: #require(CIDR(text))))
        }
    }

    @Test("steering, guard and allow policy decide as the model does", arguments: Arrangement.all)
    func differential(_ arrangement: Arrangement) throws {
        let environment = ProcessInfo.processInfo.environment["WGPLANE_SEED"].flatMap { UInt64($0) }
        let seed = environment ?? UInt64.random(in: 0...UInt64.max)
        print("seed \(seed) (\(arrangement.testDescription)); WGPLANE_SEED repeats it")
        var generator = PacketGenerator(random: SeededGenerator(seed: seed))
        let harness = try Harness()
        try arrange(harness, arrangement)
        var model = try Self.model(of: harness)
        #expect(Set(model.actions.values).count == 6)
        var verdicts: [ReferenceModel.Verdict: Int] = [:]
        var answers = 0
        for number in 0..<Self.packets {
            let hasEthernet = Bool.random(using: &generator.random)
            let bytes = generator.next(hasEthernet: hasEthernet)
            var input = ReferenceModel.Input(bytes: bytes, hasEthernet: hasEthernet, interface: 1)
            input.mark =
                [0, 0, 0, 0x2000_0000, PacketMark.counted, PacketMark.host].randomElement(using: &generator.random) ?? 0
            input.ingress = [0, 0, 1, 1, Harness.wireGuard].randomElement(using: &generator.random) ?? 0
            input.segment = bytes.count > 900 ? [0, 0, 200, 500].randomElement(using: &generator.random) ?? 0 : 0
            if !TestRun.setsIngressInterface { input.ingress = 0 }
            if !TestRun.setsSegmentSize { input.segment = 0 }
            let hook: Hook
            let expected: ReferenceModel.Outcome
            switch Int.random(in: 0..<3, using: &generator.random) {
            case 0 where hasEthernet:
                hook = .fromPod
                expected = model.fromPod(input)
            case 1:
                hook = .fromUplink
                expected = model.fromUplink(input)
            default:
                hook = .toUplink
                expected = model.toUplink(input)
            }
            let result = try harness.programs.program(hook, isEthernet: hasEthernet).testRun(
                bytes, mark: input.mark, interface: 1, ingressInterface: input.ingress,
                segments: input.segment == 0 ? 0 : 3, segmentSize: input.segment)
            let verdict: ReferenceModel.Verdict =
                result.verdict == Harness.tunnelled ? .redirect : result.verdict == Harness.dropped ? .drop : .pass
            verdicts[verdict, default: 0] += 1
            // Answers are limited in number.
            if expected.isAnswer, verdict == .drop { continue }
            if expected.isAnswer { answers += 1 }
            if verdict != expected.verdict || verdict != .drop && result.mark != expected.mark {
                Issue.record(
                    "packet \(number) at \(hook.name): \(verdict), mark \(result.mark); model \(expected); \(input), \(ParsedPacket(bytes, hasEthernet: hasEthernet))"
                )
                return
            }
            if let packet = expected.packet, packet != result.packet {
                Issue.record("packet \(number) at \(hook.name): \(result.packet); model \(packet); \(input)")
                return
            }
        }
        #expect(verdicts.count == 3 || Harness.share > 1, "\(verdicts): all verdicts occur")
        #expect(answers > 5 || Harness.share > 1, "answers occur")
        let clamped = try harness.maps.counters.total(.mssClamped).packets
        #expect(clamped > 0 || Harness.share > 1, "\(clamped) SYNs were clamped")
    }

    @Test("masquerade, errors, fragments and delivery go as in the model", arguments: [true, false])
    func translation(direct: Bool) throws {
        let environment = ProcessInfo.processInfo.environment["WGPLANE_SEED"].flatMap { UInt64($0) }
        let seed = environment ?? UInt64.random(in: 0...UInt64.max)
        print("seed \(seed) (translation); WGPLANE_SEED repeats it")
        var generator = PacketGenerator(random: SeededGenerator(seed: seed), isTranslated: true)
        let harness = try Harness()
        var config = try harness.maps.config.read().0
        config.isDirect = direct
        for family in AddressFamily.allCases { config[family]?.maximumSegment = 1200 }
        try harness.maps.config.write(config)
        // Two addresses of the host, whose ports collide; a pod whose device is small.
        for text in ["10.0.0.77", "fd00::77"] {
            try harness.maps.locals.update(#require(IPAddress(text)), LocalAddress(kind: .host))
        }
        let end = FrameAddresses(destination: [2, 0, 0, 0, 0, 1], source: [2, 0, 0, 0, 0, 2])
        for text in ["10.48.1.5", "fd48:0:0:1::5"] {
            try harness.maps.locals.update(
                #require(IPAddress(text)), LocalAddress(kind: .pod, interface: 1, mtu: 100, farEnd: end))
        }
        var model = try Self.model(of: harness)
        var changed = 0
        let packets = 30_000 / Harness.share
        for number in 0..<packets {
            let bytes = generator.next(hasEthernet: false)
            var input = ReferenceModel.Input(bytes: bytes, hasEthernet: false, interface: 1)
            let isOut = Bool.random(using: &generator.random)
            let marks: [UInt32] = [
                0, PacketMark.counted, PacketMark.counted | PacketMark.host, PacketMark.counted | PacketMark.host,
                PacketMark.counted | PacketMark.host | 0x1234_0000,
            ]
            input.mark = isOut ? marks.randomElement(using: &generator.random) ?? 0 : 0
            let hook: Hook = isOut ? .toWireGuard : .fromWireGuard
            let result = try harness.programs.program(hook, isEthernet: false).testRun(
                bytes, mark: input.mark, interface: 1)
            let verdict: ReferenceModel.Verdict =
                result.verdict == Harness.tunnelled ? .redirect : result.verdict == Harness.dropped ? .drop : .pass
            var chosen: UInt16?
            if case .facts(let facts) = ParsedPacket(bytes, hasEthernet: false),
                case .facts(let after) = ParsedPacket(result.packet, hasEthernet: false),
                after.sourcePort != facts.sourcePort
            {
                chosen = after.sourcePort
            }
            let expected = isOut ? model.toWireGuard(input, chosen: chosen) : model.fromWireGuard(input)
            if verdict == .pass, result.packet != bytes { changed += 1 }
            guard verdict == expected.verdict, verdict == .drop || result.mark == expected.mark,
                expected.packet == nil || expected.packet == result.packet
            else {
                Issue.record(
                    "packet \(number) at \(hook.name): \(verdict), mark \(result.mark), \(result.packet); model \(expected); \(input), \(ParsedPacket(bytes, hasEthernet: false))"
                )
                return
            }
        }
        #expect(changed > packets / 10, "\(changed) packets were rewritten")
        #expect(try harness.count(.fromWireGuard, .unmasqueraded) > packets / 300 || Harness.share > 1)
        #expect(model.hasCollided || Harness.share > 1, "ports collided")
    }

    static func model(of harness: Harness) throws -> ReferenceModel {
        let maps = harness.maps
        var actions: [Int: DestinationAction] = [:]
        for slot in 0..<16 { actions[slot] = maps.destinations[slot].action }
        var model = ReferenceModel(
            config: try maps.config.read().0, routes: try maps.routes.entries(), locals: try maps.locals.entries(),
            endpoints: Set(try maps.endpoints.entries().keys), actions: actions)
        model.checkedInterfaces = try maps.interfaces.entries()
        model.allowedSources = try maps.allowedSources.entries()
        return model
    }
}
