// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Flows
import Foundation
import Model

/// The data plane's programs and maps for test runs, filled as on a node of a large cluster.
///
/// Test runs see every device as the loopback device, index 1.
final class ProgramRig {
    static let interface: UInt32 = 1
    static let blocks = 20_000
    static let addresses = 100_000
    static let peers = 5000

    let layout: PinLayout
    let maps: NodeMaps
    private(set) var programs: DataplanePrograms
    /// The same, whose flows are not counted.
    private(set) var uncounted: DataplanePrograms
    let yardsticks: YardstickPrograms
    let empty: BPFProgram
    let lookup: BPFProgram

    private init() throws {
        layout = PinLayout(root: "/sys/fs/bpf/wgplane-bench-\(ProcessInfo.processInfo.processIdentifier)")
        try layout.create()
        programs = try DataplanePrograms(layout)
        uncounted = try DataplanePrograms(layout, countsFlows: false)
        maps = try NodeMaps(layout)
        yardsticks = try YardstickPrograms("yardstick")
        // The programs make the yardstick's maps too.
        _ = try DataplanePrograms(yardsticks.layout)
        empty = try yardsticks.empty()
        lookup = try yardsticks.lookup()
    }

    /// Runs a body with a rig that is filled, and takes it away.
    static func with<Value>(_ body: (ProgramRig) async throws -> Value) async throws -> Value {
        let rig = try ProgramRig()
        defer { rig.remove() }
        try rig.fill()
        return try await body(rig)
    }

    private func remove() {
        try? layout.remove()
        yardsticks.remove()
    }

    func program(_ hook: Hook, isEthernet: Bool = true) throws -> BPFProgram {
        try programs.program(hook, isEthernet: isEthernet)
    }

    func uncountedProgram(_ hook: Hook) throws -> BPFProgram { try uncounted.program(hook, isEthernet: true) }

    func configure(isStrict: Bool = false) throws {
        var config = DataplaneConfig(
            ipv4: .init(
                interface: 71, listeningPort: 51820, address: address(.ipv4, .tunnel), mtu: 1420, maximumSegment: 1380),
            ipv6: .init(
                interface: 72, listeningPort: 51821, address: address(.ipv6, .tunnel), mtu: 1420, maximumSegment: 1360),
            firewallMark: 0x2000_0000, isDirect: true)
        config.checksSources = true
        // As an agent has it.
        config.asksConntrack = true
        config.isStrict = isStrict
        config.vxlanPorts = [4789, 8472]
        config.blockLengths = [.ipv4: 26, .ipv6: 122]
        try maps.config.write(config)
    }

    enum Role: UInt128 { case pod = 1, tunnel = 3, host = 5 }

    /// Of this node: in the first block.
    func address(_ family: AddressFamily, _ role: Role) -> IPAddress {
        IPAddress(family: family, bits: Self.pool(family).address.bits + role.rawValue)
    }

    /// In a block of a peer: 0 to `blocks` - 1.
    func remote(_ family: AddressFamily, _ number: Int) -> IPAddress {
        IPAddress(family: family, bits: Self.pool(family).address.bits + UInt128(number + 1) * 64 + 9)
    }

    static func pool(_ family: AddressFamily) -> CIDR {
        let text = family == .ipv4 ? "10.64.0.0/10" : "fd48::/48"
        guard let cidr = CIDR(text) else { preconditionFailure("\(text) is a prefix") }
        return cidr
    }

    private func fill() throws {
        try configure()
        maps.destinations.setAction(DestinationSlot.local, .stack)
        try maps.interfaces.update(checked: Self.interface)
        let other = try NodeMaps(yardsticks.layout)
        for family in AddressFamily.allCases {
            let length = family == .ipv4 ? 26 : 122
            try maps.routes.update(Self.pool(family), slot: DestinationSlot.pool)
            for number in 0..<Self.peers {
                let slot = DestinationSlot.firstPeer + number * 2 + (family == .ipv4 ? 0 : 1)
                maps.destinations.setLanes(slot, family: family, interfaces: [Self.interface])
                maps.destinations.setAction(slot, .tunnel)
                let bits = (family == .ipv4 ? 0x0a01_0000 : UInt128(0xfd01) << 112) + UInt128(number + 1)
                try maps.endpoints.update(
                    Endpoint(address: IPAddress(family: family, bits: bits), port: family == .ipv4 ? 51820 : 51821),
                    slot: slot)
            }
            for number in 0..<Self.blocks {
                let slot = DestinationSlot.firstPeer + number % Self.peers * 2 + (family == .ipv4 ? 0 : 1)
                guard let block = CIDR(masking: remote(family, number), prefixLength: length) else { continue }
                try maps.routes.update(block, slot: slot, place: .block)
                try other.routes.update(block, slot: slot, place: .prefix)
            }
            let far = IPAddress(family: family, bits: (family == .ipv4 ? 0x0b00_0000 : UInt128(0xfd4b) << 112))
            for number in 0..<Self.addresses {
                let host = CIDR(host: IPAddress(family: family, bits: far.bits + UInt128(number)))
                try maps.routes.update(
                    host, slot: DestinationSlot.firstPeer + number % Self.peers * 2 + (family == .ipv4 ? 0 : 1))
            }
            if let own = CIDR(masking: address(family, .pod), prefixLength: length) {
                try maps.routes.update(own, slot: DestinationSlot.local, place: .block)
            }
            try maps.locals.update(
                address(family, .pod),
                LocalAddress(
                    kind: .pod, interface: Self.interface, mtu: 1420,
                    farEnd: DataplaneFeatures.countsAtFarEnds
                        ? FrameAddresses(destination: [2, 0, 0, 0, 0, 1], source: [2, 0, 0, 0, 0, 2]) : nil))
            try maps.locals.update(address(family, .tunnel), LocalAddress(kind: .tunnel))
            try maps.locals.update(address(family, .host), LocalAddress(kind: .host))
        }
    }

    /// A UDP packet of 64 bytes of IP, or as large as given, with most hops left: each test run takes one.
    static func packet(
        _ source: IPAddress, _ destination: IPAddress, port: UInt16 = 40000, to destinationPort: UInt16 = 9999,
        transport: UInt8 = 17, ethernet: Bool = true
    ) -> [UInt8] {
        let packet = SyntheticPacket(
            source: source, destination: destination, transport: transport, sourcePort: port,
            destinationPort: destinationPort)
        return withHops(
            255, packet.bytes(ethernet: ethernet), isIPv6: source.family == .ipv6, offset: ethernet ? 14 : 0)
    }

    private static func withHops(_ hops: UInt8, _ packet: [UInt8], isIPv6: Bool, offset: Int) -> [UInt8] {
        var result = packet
        if isIPv6 {
            result[offset + 7] = hops
            return result
        }
        result[offset + 8] = hops
        result.replaceSubrange(offset + 10..<offset + 12, with: [0, 0])
        let sum = internetChecksum(Array(result[offset..<offset + 20]))
        result.replaceSubrange(offset + 10..<offset + 12, with: [UInt8(sum >> 8), UInt8(sum & 0xff)])
        return result
    }
}
