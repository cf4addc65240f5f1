// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Flows
import Foundation
import Model
import Testing

/// Random and mutated packets, decided by the programs and by the model: no difference.
@Suite("Programs: against the reference model")
struct ReferenceModelTests {
    static let packets = 60_000

    @Test("steering and allow policy decide as the model does", arguments: [true, false])
    func differential(direct: Bool) throws {
        let environment = ProcessInfo.processInfo.environment["WGPLANE_SEED"].flatMap { UInt64($0) }
        let seed = environment ?? UInt64.random(in: 0...UInt64.max)
        print("seed \(seed); WGPLANE_SEED repeats it")
        var random = SplitMix(state: seed)
        let harness = try Harness()
        try harness.configure(direct: direct)
        // One peer of each family for each action.
        for (index, action) in [DestinationAction.clear, .drop, .draining].enumerated() {
            for (family, text) in [
                (AddressFamily.ipv4, "10.48.\(10 + index).0/24"), (.ipv6, "fd48:0:0:\(10 + index)::/64"),
            ] {
                let slot = Harness.firstPeer + 2 + index * 2 + (family == .ipv4 ? 0 : 1)
                harness.maps.destinations.setLanes(slot, family: family, interfaces: [1])
                harness.maps.destinations.setAction(slot, action)
                try harness.maps.routes.update(#require(CIDR(text)), slot: slot)
                // A single address inside it that belongs to the first peer.
                let host = try #require(CIDR(text)).address(at: 77)
                try harness.maps.routes.update(
                    CIDR(host: #require(host)), slot: Harness.firstPeer + (family == .ipv4 ? 0 : 1))
            }
        }
        var model = try Self.model(of: harness)
        let actions = Dictionary(grouping: model.actions.values, by: { $0 }).mapValues(\.count)
        #expect(actions.count == 5)
        var verdicts: [ReferenceModel.Verdict: Int] = [:]
        for number in 0..<Self.packets {
            let hasEthernet = Bool.random(using: &random)
            let bytes = Self.packet(&random, hasEthernet: hasEthernet)
            let parsed = ParsedPacket(bytes, hasEthernet: hasEthernet)
            let mark: UInt32 =
                [0, 0, 0x2000_0000, PacketMark.counted, PacketMark.host].randomElement(using: &random) ?? 0
            let ingress: UInt32 = [0, 0, 1, 1, Harness.wireGuard].randomElement(using: &random) ?? 0
            let hook: Hook
            let expected: ReferenceModel.Outcome
            switch Int.random(in: 0..<3, using: &random) {
            case 0 where hasEthernet:
                hook = .fromPod
                expected = model.fromPod(parsed, mark: mark, interface: 1)
            case 1:
                hook = .fromUplink
                expected = model.fromUplink(parsed, mark: mark, interface: 1)
            default:
                hook = .toUplink
                expected = model.toUplink(parsed, mark: mark, interface: 1, ingress: ingress)
            }
            let result = try harness.programs.program(hook, isEthernet: hasEthernet).testRun(
                bytes, mark: mark, interface: 1, ingressInterface: ingress)
            let verdict: ReferenceModel.Verdict =
                result.verdict == Harness.tunnelled ? .redirect : result.verdict == Harness.dropped ? .drop : .pass
            verdicts[verdict, default: 0] += 1
            #expect(result.packet == bytes, "steering changes no byte")
            if verdict != expected.verdict || result.mark != expected.mark {
                Issue.record(
                    "packet \(number) at \(hook.name): \(verdict), mark \(result.mark); model \(expected); ingress \(ingress), mark before \(mark), \(parsed), \(bytes)"
                )
                return
            }
        }
        #expect(verdicts.count == 3, "\(verdicts): all verdicts occur")
    }

    static func model(of harness: Harness) throws -> ReferenceModel {
        let maps = harness.maps
        var actions: [Int: DestinationAction] = [:]
        for slot in 0..<16 { actions[slot] = maps.destinations[slot].action }
        return ReferenceModel(
            config: try maps.config.read().0, routes: try maps.routes.entries(), locals: try maps.locals.entries(),
            endpoints: Set(try maps.endpoints.entries().keys), actions: actions)
    }

    /// A packet between addresses that matter, sometimes cut, sometimes with bytes changed.
    static func packet(_ random: inout SplitMix, hasEthernet: Bool) -> [UInt8] {
        let isIPv4 = Bool.random(using: &random)
        let last = [1, 3, 77, 5].randomElement(using: &random) ?? 1
        let remote = [1, 2, 10, 11, 12, 99].randomElement(using: &random) ?? 2
        let candidates =
            isIPv4
            ? ["10.48.1.1", "10.48.1.3", "10.0.0.1", "10.0.0.2", "192.0.2.1", "10.48.\(remote).\(last)"]
            : ["fd48:0:0:1::1", "fd48:0:0:1::3", "fd00::1", "fd00::2", "2001:db8::1", "fd48:0:0:\(remote)::\(last)"]
        func pick() -> String { candidates.randomElement(using: &random) ?? candidates[0] }
        var builder = PacketBuilder(pick(), Bool.random(using: &random) ? candidates[5] : pick())
        builder.hasEthernet = hasEthernet
        let ports: [UInt16] = [51820, 51821, 80, 53, 1000, UInt16.random(in: 0...65535, using: &random)]
        func port() -> UInt16 { ports.randomElement(using: &random) ?? 80 }
        // Long enough that a test run takes it: 34 bytes of IPv4, 54 of IPv6, from the link header on.
        let payload = [UInt8](repeating: 0x5a, count: Int.random(in: 14...60, using: &random))
        switch Int.random(in: 0..<6, using: &random) {
        case 0: builder = builder.udp(port(), port(), payload: payload)
        case 1, 2:
            builder = builder.tcp(
                port(), port(), flags: [2, 16, 18, 17, 4].randomElement(using: &random) ?? 2, payload: payload)
        case 3: builder = builder.echo(port(), reply: Bool.random(using: &random), payload: payload)
        case 4: builder = builder.icmp(type: UInt8.random(in: 0...140, using: &random), code: 1, payload: payload)
        default:
            builder = builder.udp(port(), port(), payload: payload)
            builder.transport = UInt8.random(in: 0...255, using: &random)
            builder.checksumOffset = nil
        }
        if isIPv4, Int.random(in: 0..<8, using: &random) == 0 {
            builder.fragment = [0x2000, 0x0010, 0x2010].randomElement(using: &random) ?? 0
        }
        if !isIPv4, Int.random(in: 0..<4, using: &random) == 0 {
            for _ in 0..<Int.random(in: 1...8, using: &random) {
                let number: UInt8 = [0, 43, 44, 60].randomElement(using: &random) ?? 60
                let field: [UInt8] = number == 44 ? [0, [0, 1, 8].randomElement(using: &random) ?? 0, 0] : [0, 0, 0]
                builder.extensions.append((number, field + [0, 0, 0, 0]))
            }
        }
        var bytes = builder.bytes
        if Int.random(in: 0..<6, using: &random) == 0 {
            // Behind the link header: the kernel derives more from its type than the programs see.
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let start = hasEthernet ? 14 : 0
                bytes[Int.random(in: start..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
            }
        }
        if Int.random(in: 0..<8, using: &random) == 0 {
            let shortest = isIPv4 ? 34 : 54
            if bytes.count > shortest {
                bytes = Array(bytes[..<Int.random(in: shortest...bytes.count, using: &random)])
            }
        }
        return bytes
    }
}

/// A small generator whose seed reproduces a failure.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}
