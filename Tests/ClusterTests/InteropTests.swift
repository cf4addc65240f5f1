// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Datastore
import Flows
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing
import WireGuard

/// WireGuard as others configure and count it.
@Suite("Cluster: interoperation", .serialized)
struct InteropTests {
    /// Runs a script on a node; its output when it succeeds.
    private func shell(_ lab: Lab, _ node: String, _ script: String) async throws -> String {
        let done = try await Cluster.execute(lab, node, ["sh", "-euc", script])
        #expect(done.status == 0, "\(script): \(done.output)")
        return done.output.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    private func reaches(_ lab: Lab, _ source: String, _ address: IPAddress, _ transport: ProbeProtocol) async throws
        -> Bool
    {
        let prober = Prober(try lab.place(source))
        return try await Task.detachedThread {
            (0..<5).contains { _ in
                prober.ask(
                    transport, address.bytes, identifier: UInt16.random(in: 1...60000), timeoutMilliseconds: 1000)
            }
        }
    }

    @Test("a peer configured by hand as in the seed's slides", arguments: [AddressFamily.ipv4, .ipv6])
    func byHand(_ family: AddressFamily) async throws {
        try await Cluster.run(families: [family]) { lab in
            let isIPv4 = family == .ipv4
            let device = isIPv4 ? "wireguard.cali" : "wg-v6.cali"
            let own = try #require(lab.status("node1")?[family])
            let isKernel = lab.status("node1")?.backend == "kernel"
            // From here on node2 has no agent; what it had of one is taken away.
            try await lab.stopAgent("node2", signal: SIGTERM)
            #expect(try await Cluster.wgplane(lab, "node2", "cleanup").status == 0)
            let folder = "\(lab.paths.node("node2"))/wireguard"
            let port = isIPv4 ? 51820 : 51821
            let (address, length) = isIPv4 ? ("10.16.1.221", 24) : ("fd16::221", 64)
            let mtu = isIPv4 ? 1440 : 1420
            let underlay = LabAddresses.node(1, family)
            let endpoint = Endpoint(address: underlay, port: UInt16(port))
            // The slides' commands. Without a kernel that has it, wireguard-go makes the device.
            let make = isKernel ? "ip link add dev wg0 type wireguard" : "wireguard-go wg0 >/dev/null 2>&1"
            let key = try await shell(
                lab, "node2",
                """
                mkdir -p \(folder); cd \(folder); umask 077
                wg genkey | tee private.key >/dev/null
                cat private.key | wg pubkey | tee public.key >/dev/null
                \(make)
                ip address add dev wg0 \(address)/\(length)
                ip link set up mtu \(mtu) dev wg0
                cat >wg0.conf <<END
                [Interface]

                PrivateKey = $(cat private.key)
                ListenPort = \(port)

                [Peer]

                PublicKey = \(try #require(own.publicKey))
                Endpoint = \(endpoint)
                AllowedIPs = \(try #require(own.address))/\(family.bitWidth), \(LabAddresses.block(1, family))
                END
                wg setconf wg0 wg0.conf
                ip route replace \(LabAddresses.block(1, family)) dev wg0
                ip route replace \(try #require(own.address)) dev wg0
                cat public.key
                """)
            // What its owner tells the cluster: the network of the wg0s, as pods' networks are, and the key.
            try await Cluster.patch(
                lab, .ipPool, "by-hand",
                .object([
                    "apiVersion": .string(ResourceKind.ipPool.apiVersion),
                    "kind": .string(ResourceKind.ipPool.rawValue),
                    "metadata": .object(["name": "by-hand"]),
                    "spec": .object(["cidr": .string(isIPv4 ? "10.16.1.0/24" : "fd16::/64")]),
                ]))
            try await Cluster.patch(
                lab, .node, "node2",
                .object([
                    "metadata": .object([
                        "annotations": .object([
                            NodeAnnotation.publicKey(family): .string(key),
                            NodeAnnotation.interfaceAddress(family): .string(address),
                        ])
                    ])
                ]))
            try await lab.wait("node1 has the peer in the tunnel", within: .seconds(20)) {
                let peer = lab.status("node1")?[family]?.peers.first { $0.publicKey.description == key }
                return peer?.state == "ready" && peer?.action == "tunnel"
            }
            let pools = [LabAddresses.pool(family)]
            let capture = try UnderlayCapture(underlay: lab.place("underlay"), pools: pools)
            let servers = try ["node1-pod1", "node2-pod1"].map {
                try EchoServer(in: lab.place($0), port: Prober.port, isIPv6: [!isIPv4])
            }
            defer { servers.forEach { $0.stop() } }
            for transport in ProbeProtocol.allCases {
                #expect(
                    try await reaches(lab, "node1-pod1", LabAddresses.pod(2, 1, family), transport), "to: \(transport)")
                #expect(
                    try await reaches(lab, "node2-pod1", LabAddresses.pod(1, 1, family), transport),
                    "from: \(transport)"
                )
            }
            let byHand = try #require(IPAddress(address))
            #expect(try await reaches(lab, "node1", byHand, .icmp), "the address on the other's wg0, from the host")
            #expect(try await reaches(lab, "node2", LabAddresses.pod(1, 1, family), .icmp), "the other's host to a pod")
            let seen = try await Task.detachedThread { capture.stop() }
            #expect(seen.clearPackets == 0 && seen.lost == 0 && seen.wireguardPackets > 20, "\(seen)")
            let shown = try await shell(lab, "node1", "wg show \(device) allowed-ips")
            #expect(shown.contains("\(key)\t") && shown.contains("\(address)/\(family.bitWidth)"), "\(shown)")
            _ = try await shell(lab, "node2", "ip link delete wg0")
        }
    }

    /// What `wg show DEVICE transfer` says: bytes received and sent.
    private func transfer(_ lab: Lab, _ device: String) async throws -> (received: UInt64, sent: UInt64) {
        let fields = try await shell(lab, "node1", "wg show \(device) transfer").split { "\t\n ".contains($0) }
        try #require(fields.count == 3)
        return (try #require(UInt64(fields[1])), try #require(UInt64(fields[2])))
    }

    /// Bytes of a data message: header and tag around the packet, padded to 16 as far as the MTU.
    private static func message(_ packet: UInt64, mtu: UInt64) -> UInt64 {
        32 + min((packet + 15) / 16 * 16, max(mtu, packet))
    }

    @Test("wg's transfer is the flows' bytes and what WireGuard adds")
    func counters() async throws {
        try await Cluster.run { lab in
            // Its echo has the same length.
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false, true])
            defer { server.stop() }
            for family in [AddressFamily.ipv4, .ipv6] {
                for payload in [16, 777, family == .ipv4 ? 1392 : 1372] {
                    try await count(lab, family, payload)
                }
            }
        }
    }

    private func count(_ lab: Lab, _ family: AddressFamily, _ payload: Int) async throws {
        let device = family == .ipv4 ? "wireguard.cali" : "wg-v6.cali"
        let target = LabAddresses.pod(2, 1, family)
        let place = try lab.place("node1-pod1")
        let datagrams: UInt64 = 100
        // A handshake or keep-alive may come in between; then the next round tells.
        var told = ""
        for round in 0..<5 {
            let before = try await transfer(lab, device)
            let port = UInt16(40_000 + payload + round)
            try await Task.detachedThread {
                try place.run {
                    let isIPv6 = family == .ipv6
                    let socket = try InternetSocket(.udp, isIPv6: isIPv6, timeoutMilliseconds: 2000 * Lab.patience)
                    let anywhere = [UInt8](repeating: 0, count: family.bitWidth / 8)
                    try socket.bind(SocketAddress(anywhere, port: port))
                    try socket.connect(SocketAddress(target.bytes, port: Prober.port))
                    for _ in 0..<datagrams {
                        try socket.send([UInt8](repeating: 7, count: payload))
                        _ = try socket.receive()
                    }
                }
            }
            let after = try await transfer(lab, device)
            let flow = try #require(
                try FlowReader(lab.maps("node1")).biflows().first {
                    $0.transport == "udp" && ($0.sourcePort == port || $0.destinationPort == port)
                        && $0.source.family == family
                })
            let length = UInt64(payload + 8 + (family == .ipv4 ? 20 : 40))
            #expect(flow.packets == datagrams && flow.reversePackets == datagrams && flow.isEncrypted, "\(flow)")
            #expect(flow.bytes == datagrams * length && flow.reverseBytes == flow.bytes, "\(flow)")
            let mtu: UInt64 = family == .ipv4 ? 1440 : 1420
            let added = datagrams * (Self.message(length, mtu: mtu) - length)
            let sent = after.sent - before.sent
            let received = after.received - before.received
            if sent == flow.bytes + added && received == flow.reverseBytes + added { return }
            told = "round \(round): sent \(sent), received \(received), flow \(flow.bytes) with \(added) added"
        }
        Issue.record("\(family), \(payload) bytes: wg and the flows do not agree: \(told)")
    }
}
