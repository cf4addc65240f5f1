// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Lab
import Model
import Testing

@Suite("Programs: routes")
struct RouteTests {
    private func address(_ family: AddressFamily, _ number: Int) -> IPAddress {
        family == .ipv4
            ? IPAddress(family: .ipv4, bits: 0x0a00_0000 + UInt128(number))
            : IPAddress(family: .ipv6, bits: UInt128(0xfd48) << 112 + UInt128(number))
    }

    @Test("20,000 blocks and 100,000 addresses", arguments: [AddressFamily.ipv4, .ipv6])
    func many(_ family: AddressFamily) throws {
        let harness = try Harness()
        let length = family == .ipv4 ? 26 : 122
        var config = try harness.maps.config.read().0
        config.blockLengths = [family: length]
        try harness.maps.config.write(config)
        // Of these a tenth where everything is emulated.
        let blocks = 20_000 / min(Harness.share, 10)
        let addresses = 5 * blocks
        for block in 0..<blocks {
            let cidr = try #require(CIDR(masking: address(family, block * 64), prefixLength: length))
            try harness.maps.routes.update(cidr, slot: Harness.firstPeer + block % 5, place: .block)
        }
        // Each in a block of another peer.
        for number in 0..<addresses {
            let host = address(family, (number % blocks) * 64 + 1 + number / blocks)
            try harness.maps.routes.update(CIDR(host: host), slot: Harness.firstPeer + 5 + number % 3)
        }
        var random = SeededGenerator(seed: 7)
        for _ in 0..<200 {
            let number = Int.random(in: 0..<addresses, using: &random)
            let block = number % blocks
            #expect(
                try harness.maps.routes.slot(of: address(family, block * 64 + 1 + number / blocks))
                    == Harness.firstPeer + 5 + number % 3)
            #expect(try harness.maps.routes.slot(of: address(family, block * 64 + 40)) == Harness.firstPeer + block % 5)
        }
        // And so do the programs.
        let pod = Addresses.both[family == .ipv4 ? 0 : 1].pod
        // One whose number three and five divide.
        let block = blocks / 2 / 15 * 15
        for (number, slot) in [(block * 64 + 40, Harness.firstPeer + 0), (block * 64 + 1, Harness.firstPeer + 5)] {
            _ = try harness.run(.fromPod, PacketBuilder(pod, address(family, number).description).udp(1, 2))
            let flow = try harness.flows.first { $0.key.destination == address(family, number) }
            #expect(flow?.value.slot == slot)
        }
    }

    @Test("a prefix that changes its place is never in none", arguments: [AddressFamily.ipv4, .ipv6])
    func places(_ family: AddressFamily) throws {
        let harness = try Harness()
        let routes = harness.maps.routes
        let length = family == .ipv4 ? 26 : 122
        var config = try harness.maps.config.read().0
        config.blockLengths = [family: length]
        try harness.maps.config.write(config)
        let block = try #require(CIDR(masking: address(family, 640), prefixLength: length))
        let nested = try #require(CIDR(masking: address(family, 640), prefixLength: length + 2))
        try routes.update(block, slot: 9, place: .block)
        #expect(try routes.slot(of: address(family, 641)) == 9)
        try routes.update(block, slot: 9, place: .prefix)
        try routes.update(nested, slot: 10)
        #expect(try routes.slot(of: address(family, 641)) == 10)
        #expect(try routes.slot(of: address(family, 660)) == 9)
        #expect(try routes.slot(covering: nested) == 10 && routes.slot(covering: block) == 9)
        try routes.update(block, slot: 11, place: .block)
        #expect(try routes.placedEntries()[block]?.place == .block)
        try routes.delete(block)
        try routes.delete(nested)
        #expect(try routes.slot(of: address(family, 641)) == DestinationSlot.outside || family == .ipv6)
    }
}
