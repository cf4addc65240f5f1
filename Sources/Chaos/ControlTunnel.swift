// SPDX-License-Identifier: Apache-2.0

internal import Lab
internal import Model
internal import Netlink
internal import SystemDescriptors
internal import WireGuard

/// Two hosts joined by hand with the same WireGuard, without any agent or program: where datagrams between them wait,
/// the machine had no time for WireGuard, and nobody of ours can be blamed.
final class ControlTunnel: Sendable {
    private let server: EchoServer
    private let probe: LossProbe

    /// In namespaces of the lab's, which go with it.
    init(_ lab: Lab, backend kind: BackendKind) throws {
        let ends = Self.ends(lab)
        for end in ends { try end.create {} }
        let other = SharedDescriptor(try openFile(ends[1].network, flags: 0))
        try ends[0].run {
            try RouteSession().createVethPair(
                "eth0", mtu: 1500, peer: "eth0", peerMTU: 1500, peerNamespace: other)
        }
        let keys = [PrivateKey.generate(), PrivateKey.generate()]
        for (index, end) in ends.enumerated() {
            guard let peer = keys[1 - index].publicKey else { continue }
            // Sockets of wireguard-go are the machine's.
            let device = "c\(processIdentifier())-\(index)"
            let key = keys[index]
            try end.run {
                let session = try RouteSession()
                for link in try session.links() { try session.setLink(link.index, up: true) }
                guard let uplink = try session.link(named: "eth0") else { return }
                try session.addAddress(Self.address(192, index), prefixLength: 24, index: uplink.index)
                let backend = try BackendSelection.backend(kind)
                try backend.create(device: device, mtu: 1420)
                var change = PeerChange(peer)
                change.endpoint = Endpoint(address: Self.address(192, 1 - index), port: 51820)
                change.allowedIPs = [CIDR(host: Self.address(193, 1 - index))]
                try backend.apply(DeviceChange(privateKey: key, listeningPort: 51820, peers: [change]), to: device)
                guard let tunnel = try session.link(named: device) else { return }
                try session.addAddress(Self.address(193, index), prefixLength: 24, index: tunnel.index)
                try session.setLink(tunnel.index, up: true)
            }
        }
        server = try EchoServer(in: ends[1], port: Prober.port, isIPv6: [false])
        probe = try LossProbe(
            in: ends[0], to: Self.address(193, 1).bytes, interval: 5000 * UInt32(Lab.patience))
    }

    static func ends(_ lab: Lab) -> [NamespaceFiles] {
        ["a", "b"].map { NamespaceFiles(network: "\(lab.paths.namespaces)/control-\($0)") }
    }

    /// 192.168.N.1 and .2.
    private static func address(_ net: UInt128, _ index: Int) -> IPAddress {
        IPAddress(family: .ipv4, bits: 0xc0a8_0001 + net << 8 + UInt128(index))
    }

    var gaps: [LossGap] { probe.gaps }

    func stop() {
        _ = probe.stop()
        server.stop()
    }
}
