// SPDX-License-Identifier: Apache-2.0

import Lab
import Model

/// Random packets between addresses that matter, sometimes cut, sometimes with bytes changed.
struct PacketGenerator {
    var random: SeededGenerator
    /// Packets as they come to WireGuard's device: between the node and remote pods, few ports,
    /// errors that quote such packets.
    var isTranslated = false

    private mutating func chance(_ one: Int) -> Bool { Int.random(in: 0..<one, using: &random) == 0 }

    private mutating func pick<Element>(_ elements: [Element]) -> Element {
        elements[Int.random(in: 0..<elements.count, using: &random)]
    }

    private mutating func addresses(isIPv4: Bool) -> (source: String, destination: String) {
        if isTranslated {
            let own =
                isIPv4
                ? ["10.0.0.1", "10.0.0.77", "10.48.1.3", "10.48.1.1", "10.48.1.5"]
                : ["fd00::1", "fd00::77", "fd48:0:0:1::3", "fd48:0:0:1::1", "fd48:0:0:1::5"]
            let other = isIPv4 ? ["10.48.2.1", "10.48.2.2"] : ["fd48:0:0:2::1", "fd48:0:0:2::2"]
            return chance(2) ? (pick(own), pick(other)) : (pick(other), pick(own))
        }
        let last = pick([1, 3, 77, 5])
        let remote = pick([1, 2, 2, 10, 11, 12, 13, 99])
        let candidates =
            isIPv4
            ? ["10.48.1.1", "10.48.1.3", "10.0.0.1", "10.0.0.2", "192.0.2.1", "10.48.\(remote).\(last)"]
            : ["fd48:0:0:1::1", "fd48:0:0:1::3", "fd00::1", "fd00::2", "2001:db8::1", "fd48:0:0:\(remote)::\(last)"]
        let rare = isIPv4 ? ["0.0.0.0", "192.0.2.200", "224.0.0.1"] : ["::", "fe80::1", "2001:db8:8000::1", "ff02::1"]
        let source = chance(8) ? pick(rare) : pick(candidates)
        return (source, chance(2) ? candidates[5] : chance(12) ? pick(rare) : pick(candidates))
    }

    private mutating func port() -> UInt16 {
        if isTranslated { return pick([53, 80, 33000, 33001]) }
        return pick([51820, 51821, 80, 53, 67, 1000, 6443, 4789, UInt16.random(in: 0...65535, using: &random)])
    }

    /// TCP options, a multiple of four bytes, often with a segment size at any offset.
    private mutating func options() -> [UInt8] {
        var bytes: [UInt8] = []
        for _ in 0..<Int.random(in: 0...4, using: &random) {
            switch Int.random(in: 0..<4, using: &random) {
            case 0: bytes += [1]
            case 1: bytes += [2, 4] + PacketBuilder.word(pick([536, 1200, 1201, 1460, 8960]))
            case 2: bytes += [3, 3, 7]
            default: bytes += [pick([8, 5, 254]), UInt8.random(in: 0...10, using: &random)]
            }
        }
        return Array(bytes.prefix(36)) + [UInt8](repeating: 0, count: (4 - min(36, bytes.count) % 4) % 4)
    }

    private mutating func builder(isIPv4: Bool, payload: [UInt8]) -> PacketBuilder {
        let (source, destination) = addresses(isIPv4: isIPv4)
        let builder = PacketBuilder(source, destination)
        switch Int.random(in: 0..<7, using: &random) {
        case 0, 1: return builder.udp(port(), port(), payload: payload)
        case 2, 3:
            return builder.tcp(
                port(), port(), flags: pick([2, 2, 16, 18, 17, 4]), options: options(), payload: payload)
        case 4: return builder.echo(port(), reply: chance(2), payload: payload)
        case 5:
            guard isTranslated, !chance(6) else {
                return builder.icmp(type: UInt8.random(in: 0...140, using: &random), code: 1, payload: payload)
            }
            // An error about a packet of the other direction, cut anywhere.
            var quoted = self.builder(isIPv4: isIPv4, payload: payload).layer3()
            (quoted.source, quoted.destination) = (builder.destination, builder.source)
            let whole = quoted.bytes
            let length = min(whole.count, Int.random(in: 20...80, using: &random) & ~1)
            return builder.icmp(
                type: isIPv4 ? pick([3, 11, 5, 12]) : pick([1, 2, 3, 4]), code: 0, payload: Array(whole.prefix(length)))
        default:
            var other = builder.udp(port(), port(), payload: payload)
            other.transport = UInt8.random(in: 0...255, using: &random)
            other.checksumOffset = nil
            return other
        }
    }

    mutating func next(hasEthernet: Bool) -> [UInt8] {
        let isIPv4 = chance(2)
        // Long enough that a test run takes it: 34 bytes of IPv4, 54 of IPv6, from the link header on.
        let length = chance(4) ? Int.random(in: 200...1400, using: &random) : Int.random(in: 14...60, using: &random)
        var builder = builder(isIPv4: isIPv4, payload: [UInt8](repeating: 0x5a, count: length))
        if chance(10) {
            // Inside an overlay's packet.
            let inner = self.builder(isIPv4: chance(2), payload: [1, 2, 3, 4])
            if chance(2) {
                builder = builder.udp(1234, pick([4789, 8472]), payload: [8, 0, 0, 0, 0, 0, 1, 0] + inner.bytes)
            } else {
                builder.transport = inner.source.family == .ipv4 ? 4 : 41
                builder.checksumOffset = nil
                builder.segment = inner.layer3().bytes
            }
        }
        builder.hasEthernet = hasEthernet
        builder.hopLimit = pick([64, 64, 64, 255, 2, 1, 0])
        if isIPv4 { builder.fragment = chance(8) ? pick([0x2000, 0x0010, 0x2010]) : pick([0, 0x4000]) }
        // No-operation (1) and the end (0): what routers skip.
        if isIPv4, chance(8) {
            builder.options = [UInt8](repeating: pick([0, 1]), count: 4 * Int.random(in: 1...10, using: &random))
        }
        if hasEthernet, chance(40) { builder.tags = pick([[0x8100], [0x88a8, 0x8100], [0x8100, 0x8100]]) }
        if !isIPv4, chance(4) {
            for _ in 0..<Int.random(in: 1...8, using: &random) {
                let number: UInt8 = pick([0, 43, 44, 60])
                let field: [UInt8] = number == 44 ? [0, pick([0, 1, 8]), 0] : [0, 0, 0]
                builder.extensions.append((number, field + [0, 0, 0, 0]))
            }
        }
        var bytes = builder.bytes
        if chance(6) {
            // Behind the link header: the kernel derives more from its type than the programs see.
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let start = hasEthernet ? 14 : 0
                bytes[Int.random(in: start..<min(bytes.count, start + 80), using: &random)] =
                    UInt8.random(in: 0...255, using: &random)
            }
        }
        if chance(8) {
            let shortest = isIPv4 ? 34 : 54
            if bytes.count > shortest {
                bytes = Array(bytes[..<Int.random(in: shortest...bytes.count, using: &random)])
            }
        }
        return bytes
    }
}
