// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Foundation
import Model
import Testing

/// The programs loaded into the kernel with maps of their own, which go with the test.
///
/// Test runs see every device as the loopback device, index 1.
final class Harness {
    static let interface: UInt32 = 1
    /// Index of the WireGuard device of IPv4; IPv6's is the next. Not there, but only looked at.
    static let wireGuard: UInt32 = 71
    static let tunnelled: Int32 = 7  // TC_ACT_REDIRECT
    static let passed: Int32 = -1  // TC_ACT_UNSPEC
    static let dropped: Int32 = 2  // TC_ACT_SHOT
    static let firstPeer = DestinationSlot.firstPeer

    /// Share of the packets, for emulated machines: WGPLANE_TEST_SHARE, a divisor.
    static let share = ProcessInfo.processInfo.environment["WGPLANE_TEST_SHARE"].flatMap { Int($0) } ?? 1

    let layout: PinLayout
    let maps: NodeMaps
    var programs: DataplanePrograms

    init() throws {
        layout = PinLayout(root: "/sys/fs/bpf/wgplane-test-\(getpid())-\(Int.random(in: 0..<1 << 30))")
        try layout.create()
        programs = try DataplanePrograms(layout)
        maps = try NodeMaps(layout)
        maps.destinations.setAction(DestinationSlot.local, .stack)
        try configure()
        for (family, pool, block, own, remote, local, host, tunnel) in [
            ("4", "10.48.0.0/16", "10.48.2.0/26", "10.48.1.0/26", "10.0.0.2", "10.48.1.1", "10.0.0.1", "10.48.1.3"),
            (
                "6", "fd48::/48", "fd48:0:0:2::/122", "fd48:0:0:1::/122", "fd00::2", "fd48:0:0:1::1", "fd00::1",
                "fd48:0:0:1::3"
            ),
        ] {
            let slot = Self.firstPeer + (family == "4" ? 0 : 1)
            let version: AddressFamily = family == "4" ? .ipv4 : .ipv6
            try maps.destinations.setOwner(slot, SlotOwner(node: "node2", family: version))
            maps.destinations.setLanes(slot, family: version, interfaces: [Self.interface])
            maps.destinations.setAction(slot, .tunnel)
            try maps.routes.update(#require(CIDR(pool)), slot: DestinationSlot.pool)
            try maps.routes.update(#require(CIDR(block)), slot: slot)
            try maps.routes.update(#require(CIDR(own)), slot: DestinationSlot.local)
            try maps.endpoints.update(
                Endpoint(address: #require(IPAddress(remote)), port: version == .ipv4 ? 51820 : 51821), slot: slot)
            try maps.locals.update(#require(IPAddress(local)), LocalAddress(kind: .pod, interface: Self.interface))
            try maps.locals.update(#require(IPAddress(host)), LocalAddress(kind: .host))
            try maps.locals.update(#require(IPAddress(tunnel)), LocalAddress(kind: .tunnel))
        }
    }

    func configure(direct: Bool = true, addresses: Bool = true, ports: ClosedRange<UInt16> = 32768...60999) throws {
        var config = DataplaneConfig(
            ipv4: .init(
                interface: Self.wireGuard, listeningPort: 51820, address: addresses ? IPAddress("10.48.1.3") : nil),
            ipv6: .init(
                interface: Self.wireGuard + 1, listeningPort: 51821,
                address: addresses ? IPAddress("fd48:0:0:1::3") : nil),
            firewallMark: 0x2000_0000, isDirect: direct)
        config.masqueradePorts = ports
        try maps.config.write(config)
    }

    deinit { try? layout.remove() }

    func run(
        _ hook: Hook, _ packet: PacketBuilder, mark: UInt32 = 0, ingressInterface: UInt32 = 0, segments: UInt32 = 0,
        segmentSize: UInt32 = 0
    ) throws -> BPFProgram.TestResult {
        try programs.program(hook, isEthernet: packet.hasEthernet).testRun(
            packet.bytes, mark: mark, interface: Self.interface, ingressInterface: ingressInterface,
            segments: segments, segmentSize: segmentSize)
    }

    func count(_ hook: Hook, _ reason: Reason) throws -> UInt64 { try maps.counters.read(hook, reason).packets }

    var flows: [FlowKey: FlowEntry] { get throws { try maps.flows.entries() } }
}

/// The addresses that tests use, by family.
struct Addresses: CustomTestStringConvertible, Sendable {
    var family: AddressFamily
    var pod: String
    var remotePod: String
    var host: String
    var remoteNode: String
    var tunnel: String
    var outside: String
    var port: UInt16
    var testDescription: String { family.description }

    static let both = [
        Addresses(
            family: .ipv4, pod: "10.48.1.1", remotePod: "10.48.2.1", host: "10.0.0.1", remoteNode: "10.0.0.2",
            tunnel: "10.48.1.3", outside: "192.0.2.1", port: 51820),
        Addresses(
            family: .ipv6, pod: "fd48:0:0:1::1", remotePod: "fd48:0:0:2::1", host: "fd00::1", remoteNode: "fd00::2",
            tunnel: "fd48:0:0:1::3", outside: "2001:db8::1", port: 51821),
    ]
    var slot: Int { Harness.firstPeer + (family == .ipv4 ? 0 : 1) }
}
