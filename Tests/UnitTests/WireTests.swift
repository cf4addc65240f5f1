// SPDX-License-Identifier: Apache-2.0

import Lab
import Model
import Testing

@testable import Netlink
@testable import WireGuard

@Suite("Wire: netlink")
struct NetlinkWireTests {
    @Test("attributes are padded to four bytes, nested ones are marked")
    func attributes() {
        var payload = NetlinkPayload()
        payload.attribute(3, text: "eth0")
        payload.nested(5) { $0.attribute(1, value: UInt16(0x0102)) }
        #expect(
            payload.bytes == [
                9, 0, 3, 0,  // length 9, type 3
                0x65, 0x74, 0x68, 0x30, 0,  // "eth0", zero
                0, 0, 0,  // padding
                12, 0, 5, 0x80,  // length 12, type 5 with NLA_F_NESTED
                6, 0, 1, 0,  // length 6, type 1
                2, 1,  // 0x0102 in host order
                0, 0,  // padding
            ])
        let read = Array(NetlinkAttributes(payload.bytes[...]))
        #expect(read.count == 2)
        #expect(read[0].type == 3 && read[0].text == "eth0")
        #expect(read[1].type == 5 && read[1].nested.first { $0.type == 1 }?.integer(UInt16.self) == 0x0102)
    }

    @Test(
        "hostile lengths end the reading, never run past the end or in a circle",
        arguments: [
            [0, 0, 1, 0, 1, 2, 3, 4], [3, 0, 1, 0], [255, 255, 1, 0, 1, 2], [4, 0, 1], [4, 0], [],
            [8, 0, 1, 0, 1, 2, 3],
        ] as [[UInt8]])
    func hostile(_ bytes: [UInt8]) {
        #expect(Array(NetlinkAttributes(bytes[...])).isEmpty)
    }

    @Test("random bytes are read without harm")
    func random() {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        var generator = SeededGenerator(seed: seed)
        for _ in 0..<20_000 {
            let bytes = (0..<Int.random(in: 0...120, using: &generator)).map { _ in
                UInt8.random(in: 0...255, using: &generator)
            }
            var state = DeviceState(name: "x", interface: 0, listeningPort: 0, firewallMark: 0, peers: [:])
            WireGuardMessages.merge(NetlinkAttributes(bytes[...]), into: &state)
            _ = WireGuardMessages.endpoint(bytes[...])
            var text = bytes
            _ = try? UserspaceProtocol.decode(&text, device: "x")
        }
    }
}

@Suite("Wire: WireGuard")
struct WireGuardWireTests {
    static let key = Make.key(1)

    @Test("a peer as bytes of generic netlink")
    func encoding() throws {
        var peer = PeerChange(Self.key)
        peer.replaceAllowedIPs = true
        peer.endpoint = Endpoint(address: try #require(IPAddress("10.0.1.20")), port: 51820)
        peer.keepAlive = 25
        peer.allowedIPs = [try #require(CIDR("10.48.115.64/26"))]
        var payload = NetlinkPayload()
        WireGuardMessages.encode(
            DeviceChange(listeningPort: 51820, firewallMark: 0x2000_0000, peers: [peer]), device: "wg0", into: &payload)
        var expected: [UInt8] = [8, 0, 2, 0, 0x77, 0x67, 0x30, 0]  // WGDEVICE_A_IFNAME "wg0"
        expected += [6, 0, 6, 0, 0x6c, 0xca, 0, 0]  // WGDEVICE_A_LISTEN_PORT 51820
        expected += [8, 0, 7, 0, 0, 0, 0, 0x20]  // WGDEVICE_A_FWMARK
        expected += [112, 0, 8, 0x80, 108, 0, 0, 0x80]  // WGDEVICE_A_PEERS, one peer
        expected += [36, 0, 1, 0] + Self.key.bytes  // WGPEER_A_PUBLIC_KEY
        expected += [8, 0, 3, 0, 2, 0, 0, 0]  // WGPEER_A_FLAGS: REPLACE_ALLOWEDIPS
        expected += [20, 0, 4, 0, 2, 0, 0xca, 0x6c, 10, 0, 1, 20, 0, 0, 0, 0, 0, 0, 0, 0]  // WGPEER_A_ENDPOINT
        expected += [6, 0, 5, 0, 25, 0, 0, 0]  // persistent keepalive
        expected += [32, 0, 9, 0x80, 28, 0, 0, 0x80]  // WGPEER_A_ALLOWEDIPS, one
        expected += [6, 0, 1, 0, 2, 0, 0, 0]  // family AF_INET
        expected += [8, 0, 2, 0, 10, 48, 115, 64]  // address
        expected += [5, 0, 3, 0, 26, 0, 0, 0]  // mask
        #expect(payload.bytes == expected)
    }

    @Test("a large change is split into messages that fit, and none of it is lost")
    func splitting() throws {
        var peers: [PeerChange] = []
        for number in 0..<UInt8(40) {
            var peer = PeerChange(Make.key(number))
            peer.replaceAllowedIPs = true
            for third in 0..<100 { peer.allowedIPs.append(try #require(CIDR("10.\(number).\(third).0/24"))) }
            peers.append(peer)
        }
        let parts = WireGuardMessages.parts(of: DeviceChange(listeningPort: 1, peers: peers))
        #expect(parts.count == 5)
        #expect(parts[0].listeningPort == 1 && parts[1].listeningPort == nil)
        var seen: [PublicKey: [CIDR]] = [:]
        for part in parts {
            var payload = NetlinkPayload()
            WireGuardMessages.encode(part, device: "wg0", into: &payload)
            #expect(payload.bytes.count < 65000, "nested lengths are of 16 bits")
            for peer in part.peers {
                #expect(peer.replaceAllowedIPs == (seen[peer.publicKey] == nil), "only the first part replaces")
                #expect(peer.updateOnly == (seen[peer.publicKey] != nil))
                seen[peer.publicKey, default: []] += peer.allowedIPs
            }
        }
        for peer in peers { #expect(seen[peer.publicKey] == peer.allowedIPs) }
    }

    @Test("single allowed IPs are removed by their flag, in as many messages as it takes")
    func removing() throws {
        var peer = PeerChange(Self.key)
        peer.updateOnly = true
        peer.removedAllowedIPs = [try #require(CIDR("10.48.115.64/26"))]
        var payload = NetlinkPayload()
        WireGuardMessages.encode(DeviceChange(peers: [peer]), device: "wg0", into: &payload)
        var expected: [UInt8] = [8, 0, 2, 0, 0x77, 0x67, 0x30, 0]  // WGDEVICE_A_IFNAME "wg0"
        expected += [92, 0, 8, 0x80, 88, 0, 0, 0x80]  // WGDEVICE_A_PEERS, one peer
        expected += [36, 0, 1, 0] + Self.key.bytes  // WGPEER_A_PUBLIC_KEY
        expected += [8, 0, 3, 0, 4, 0, 0, 0]  // WGPEER_A_FLAGS: UPDATE_ONLY
        expected += [40, 0, 9, 0x80, 36, 0, 0, 0x80]  // WGPEER_A_ALLOWEDIPS, one
        expected += [6, 0, 1, 0, 2, 0, 0, 0]  // family AF_INET
        expected += [8, 0, 2, 0, 10, 48, 115, 64]  // address
        expected += [5, 0, 3, 0, 26, 0, 0, 0]  // mask
        expected += [8, 0, 4, 0, 1, 0, 0, 0]  // WGALLOWEDIP_A_FLAGS: REMOVE_ME
        #expect(payload.bytes == expected)

        func many(_ second: Int) throws -> [CIDR] {
            try (0..<900).map { try #require(CIDR("10.\(second).\($0 / 256).\($0 % 256)/32")) }
        }
        peer.allowedIPs = try many(1)
        peer.removedAllowedIPs = try many(2) + [peer.allowedIPs[7]]
        let parts = WireGuardMessages.parts(of: DeviceChange(peers: [peer]))
        #expect(parts.count == 3)
        #expect(parts.flatMap(\.peers).flatMap(\.allowedIPs) == peer.allowedIPs)
        #expect(try parts.flatMap(\.peers).flatMap(\.removedAllowedIPs) == many(2), "what is added stays")
        for part in parts {
            payload = NetlinkPayload()
            WireGuardMessages.encode(part, device: "wg0", into: &payload)
            #expect(payload.bytes.count < 65000)
        }
    }

    @Test("where there is no flag, allowed IPs move to a peer that goes with them")
    func moving() throws {
        let cidrs = try (0..<4).map { try #require(CIDR("10.48.\($0).0/24")) }
        var taking = PeerChange(Make.key(2))
        taking.allowedIPs = [cidrs[0]]
        var losing = PeerChange(Self.key)
        losing.allowedIPs = [cidrs[2]]
        losing.removedAllowedIPs = Array(cidrs[0...1])
        var going = PeerChange(Make.key(3))
        going.remove = true
        going.removedAllowedIPs = [cidrs[3]]
        let moved = DeviceChange(peers: [taking, losing, going]).movingRemovals()
        #expect(moved.peers.count == 5 && moved.peers[0] == taking)
        #expect(moved.peers[1].removedAllowedIPs.isEmpty && moved.peers[1].allowedIPs == [cidrs[2]])
        #expect(moved.peers[3].allowedIPs == [cidrs[1]] && moved.peers[3].publicKey == moved.peers[4].publicKey)
        #expect(moved.peers[4].remove)
    }

    @Test("a dump in several messages is merged")
    func merging() throws {
        func message(_ cidrs: [String]) throws -> NetlinkAttributes {
            var peer = PeerChange(Self.key)
            peer.allowedIPs = try cidrs.map { try #require(CIDR($0)) }
            var payload = NetlinkPayload()
            WireGuardMessages.encode(DeviceChange(listeningPort: 7, peers: [peer]), device: "wg0", into: &payload)
            return NetlinkAttributes(payload.bytes[...])
        }
        var state = DeviceState(name: "wg0", interface: 0, listeningPort: 0, firewallMark: 0, peers: [:])
        WireGuardMessages.merge(try message(["10.1.0.0/16", "fd01::/64"]), into: &state)
        WireGuardMessages.merge(try message(["10.2.0.0/16"]), into: &state)
        #expect(state.listeningPort == 7 && state.peers.count == 1)
        #expect(state.peers[Self.key]?.allowedIPs.count == 3)
    }

    @Test("the userspace protocol's text, both ways")
    func userspace() throws {
        var peer = PeerChange(Self.key)
        peer.updateOnly = true
        peer.endpoint = Endpoint(address: try #require(IPAddress("fd00::2")), port: 51821)
        peer.keepAlive = 0
        peer.allowedIPs = [try #require(CIDR("fd48::/64"))]
        var gone = PeerChange(Make.key(2))
        gone.remove = true
        let hex = UserspaceProtocol.hex(Self.key.bytes)
        let text = String(
            decoding: UserspaceProtocol.encode(DeviceChange(firewallMark: 3, peers: [peer, gone])), as: UTF8.self)
        #expect(
            text == """
                set=1
                fwmark=3
                public_key=\(hex)
                update_only=true
                endpoint=[fd00::2]:51821
                persistent_keepalive_interval=0
                allowed_ip=fd48::/64
                public_key=\(UserspaceProtocol.hex(Make.key(2).bytes))
                remove=true


                """)
        var answer = Array(
            """
            private_key=\(String(repeating: "a8", count: 32))
            listen_port=51820
            fwmark=536870912
            public_key=\(hex)
            endpoint=10.0.0.2:51820
            last_handshake_time_sec=1700000000
            tx_bytes=5
            rx_bytes=6
            allowed_ip=10.48.2.0/26
            errno=0


            """.utf8)
        let state = try UserspaceProtocol.decode(&answer, device: "wg0")
        #expect(state.publicKey != nil && state.listeningPort == 51820 && state.firewallMark == 0x2000_0000)
        #expect(state.peers[Self.key]?.lastHandshake == 1_700_000_000)
        #expect(!String(decoding: answer, as: UTF8.self).contains("a8a8"), "the private key is wiped from the text")
        var refused = Array("errno=22\n\n".utf8)
        #expect(throws: WireGuardError.self) { try UserspaceProtocol.decode(&refused, device: "wg0") }
    }

    @Test("a private key never becomes text")
    func hidden() throws {
        let key = PrivateKey.generate()
        #expect("\(key)" == "(hidden)" && String(reflecting: key) == "(hidden)")
        #expect(key.publicKey != nil && PrivateKey.generate().publicKey != key.publicKey)
        // A pair that OpenSSL has computed.
        var bytes =
            UserspaceProtocol.unhex(
                Array("77076d0a7318a57d3c16c17251b26645df4c2f92ebc0992ac177fba51db92c2a".utf8)[...]) ?? []
        let alice = try #require(PrivateKey(wiping: &bytes))
        #expect(bytes.isEmpty, "the source is wiped")
        #expect(
            UserspaceProtocol.hex(try #require(alice.publicKey).bytes)
                == "f8a9535a2d2ff605e8e144d54f4ef5c62313a2055dbb21fddd3fd9c299eb015d")
    }
}
