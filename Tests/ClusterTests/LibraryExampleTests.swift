// SPDX-License-Identifier: Apache-2.0

import Addresses
import Foundation
import Netlink
import SystemDescriptors
import Testing
import WireGuard

// Begin of the example in WireGuard.docc.

/// Makes a WireGuard device with one peer, gives it an address, and brings it up.
func tunnel(
    _ device: String, address: IPAddress, to peer: PublicKey, at endpoint: Endpoint, for prefixes: [CIDR]
) throws -> DeviceState? {
    // The kernel's WireGuard where it has one, else wireguard-go.
    let wireguard = try BackendSelection.backend(nil)
    try wireguard.create(device: device, mtu: 1420)

    var change = PeerChange(peer)
    change.endpoint = endpoint
    change.keepAlive = 25
    change.allowedIPs = prefixes
    try wireguard.apply(
        DeviceChange(privateKey: .generate(), listeningPort: 51820, peers: [change]), to: device)

    let route = try RouteSession()
    if let link = try route.link(named: device) {
        try route.addAddress(address, prefixLength: address.family.bitWidth, index: link.index)
        try route.setLink(link.index, up: true)
        for prefix in prefixes { try route.replaceRoute(Route(prefix, index: link.index)) }
    }
    return try wireguard.state(device: device)
}

// End of the example.

@Suite("Libraries")
struct LibraryExampleTests {
    @Test("the example of the documentation does what it says")
    func example() throws {
        let address = try #require(IPAddress("10.16.1.220"))
        let endpoint = Endpoint(address: try #require(IPAddress("172.16.1.221")), port: 51820)
        let prefix = try #require(CIDR("10.16.1.221/32"))
        let peer = try #require(PrivateKey.generate().publicKey)
        try KernelInterfaceTests.inNamespace {
            defer { try? BackendSelection.delete(device: "wgexample") }
            let made = try tunnel("wgexample", address: address, to: peer, at: endpoint, for: [prefix])
            let state = try #require(made)
            #expect(state.publicKey != nil && state.listeningPort == 51820)
            #expect(state.peers[peer]?.endpoint == endpoint && state.peers[peer]?.allowedIPs == [prefix])
            let routes = try RouteSession().routes(.ipv4).filter { $0.destination == prefix }
            #expect(routes.count == 1)
        }
    }

    @Test("the documentation shows the example as it is compiled")
    func documentation() throws {
        let here = URL(fileURLWithPath: #filePath)
        let article = here.deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            .appendingPathComponent("Sources/WireGuard/WireGuard.docc/WireGuard.md")
        let source = try String(contentsOf: here, encoding: .utf8)
        let parts = source.components(separatedBy: "// Begin of the example in WireGuard.docc.\n\n")
        let example = try #require(parts.last?.components(separatedBy: "\n// End of the example.").first)
        #expect(try String(contentsOf: article, encoding: .utf8).contains(example))
    }
}
