// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
import Addresses
import Netlink

/// The wire form of WireGuard's generic netlink (`<linux/wireguard.h>`): encoding
/// split into messages that fit, and messages merged into a device's state.
enum WireGuardMessages {
    /// `WGALLOWEDIP_A_FLAGS` and `WGALLOWEDIP_F_REMOVE_ME`, which headers before Linux 6.16 lack.
    static let allowedIPFlags: UInt32 = 4
    static let removeMe: UInt32 = 1
    /// Allowed IPs in one message: each takes at most 48 bytes, and a nested
    /// attribute's length is 16 bits.
    static let allowedIPsPerMessage = 800
    static let peersPerMessage = 128

    /// Splits a change so that each part fits one message. A peer that is split is
    /// replaced by its first part and extended by the others.
    static func parts(of change: DeviceChange) -> [DeviceChange] {
        var parts: [DeviceChange] = []
        var current = DeviceChange(
            privateKey: change.privateKey, listeningPort: change.listeningPort, firewallMark: change.firewallMark)
        var room = allowedIPsPerMessage
        func flush() {
            parts.append(current)
            current = DeviceChange()
            room = allowedIPsPerMessage
        }
        for peer in change.peers {
            var added = peer.allowedIPs[...]
            // What is added at the same time stays, as where it is done by moving.
            var removed = peer.removedAllowedIPs.filter { !peer.allowedIPs.contains($0) }[...]
            var piece = peer
            repeat {
                if room == 0 || current.peers.count == peersPerMessage { flush() }
                piece.allowedIPs = Array(added.prefix(room))
                room -= piece.allowedIPs.count
                added = added.dropFirst(piece.allowedIPs.count)
                piece.removedAllowedIPs = Array(removed.prefix(room))
                room -= piece.removedAllowedIPs.count
                removed = removed.dropFirst(piece.removedAllowedIPs.count)
                current.peers.append(piece)
                piece = PeerChange(peer.publicKey)
                piece.updateOnly = true
            } while !added.isEmpty || !removed.isEmpty
        }
        if !current.peers.isEmpty || parts.isEmpty { flush() }
        return parts
    }

    static func encode(_ change: DeviceChange, device: String, into payload: inout NetlinkPayload) {
        payload.attribute(WGDEVICE_A_IFNAME.rawValue, text: device)
        if let key = change.privateKey { payload.attribute(WGDEVICE_A_PRIVATE_KEY.rawValue, secret: key.memory) }
        if let port = change.listeningPort { payload.attribute(WGDEVICE_A_LISTEN_PORT.rawValue, value: port) }
        if let mark = change.firewallMark { payload.attribute(WGDEVICE_A_FWMARK.rawValue, value: mark) }
        guard !change.peers.isEmpty else { return }
        payload.nested(WGDEVICE_A_PEERS.rawValue) { peers in
            for peer in change.peers { peers.nested(0) { encode(peer, into: &$0) } }
        }
    }

    private static func encode(_ peer: PeerChange, into payload: inout NetlinkPayload) {
        payload.attribute(WGPEER_A_PUBLIC_KEY.rawValue, bytes: peer.publicKey.bytes)
        var flags: UInt32 = 0
        if peer.remove { flags |= WGPEER_F_REMOVE_ME.rawValue }
        if peer.replaceAllowedIPs { flags |= WGPEER_F_REPLACE_ALLOWEDIPS.rawValue }
        if peer.updateOnly { flags |= WGPEER_F_UPDATE_ONLY.rawValue }
        if flags != 0 { payload.attribute(WGPEER_A_FLAGS.rawValue, value: flags) }
        if peer.remove { return }
        if let endpoint = peer.endpoint {
            payload.attribute(WGPEER_A_ENDPOINT.rawValue, bytes: socketAddress(endpoint))
        }
        if let seconds = peer.keepAlive {
            payload.attribute(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL.rawValue, value: seconds)
        }
        guard !peer.allowedIPs.isEmpty || !peer.removedAllowedIPs.isEmpty else { return }
        payload.nested(WGPEER_A_ALLOWEDIPS.rawValue) { list in
            for cidr in peer.allowedIPs { list.nested(0) { encode(cidr, flags: 0, into: &$0) } }
            for cidr in peer.removedAllowedIPs { list.nested(0) { encode(cidr, flags: removeMe, into: &$0) } }
        }
    }

    private static func encode(_ cidr: CIDR, flags: UInt32, into entry: inout NetlinkPayload) {
        entry.attribute(WGALLOWEDIP_A_FAMILY.rawValue, value: UInt16(cidr.family.socketFamily))
        entry.attribute(WGALLOWEDIP_A_IPADDR.rawValue, bytes: cidr.address.bytes)
        entry.attribute(WGALLOWEDIP_A_CIDR_MASK.rawValue, value: UInt8(cidr.prefixLength))
        if flags != 0 { entry.attribute(allowedIPFlags, value: flags) }
    }

    /// Adds one message of a dump; a peer may go on in the next message.
    static func merge(_ attributes: NetlinkAttributes, into state: inout DeviceState) {
        for attribute in attributes {
            switch UInt32(attribute.type) {
            case WGDEVICE_A_IFINDEX.rawValue: state.interface = attribute.integer() ?? 0
            case WGDEVICE_A_PUBLIC_KEY.rawValue: state.publicKey = PublicKey(bytes: attribute.payload)
            case WGDEVICE_A_LISTEN_PORT.rawValue: state.listeningPort = attribute.integer() ?? 0
            case WGDEVICE_A_FWMARK.rawValue: state.firewallMark = attribute.integer() ?? 0
            case WGDEVICE_A_PEERS.rawValue:
                for entry in attribute.nested { mergePeer(entry.nested, into: &state) }
            default: break
            }
        }
    }

    private static func mergePeer(_ attributes: NetlinkAttributes, into state: inout DeviceState) {
        guard
            let key = attributes.first(where: { $0.type == Int(WGPEER_A_PUBLIC_KEY.rawValue) })
                .flatMap({ PublicKey(bytes: $0.payload) })
        else { return }
        var peer = state.peers[key] ?? PeerState(allowedIPs: [], keepAlive: 0, receivedBytes: 0, sentBytes: 0)
        for attribute in attributes {
            switch UInt32(attribute.type) {
            case WGPEER_A_ENDPOINT.rawValue: peer.endpoint = endpoint(attribute.payload)
            case WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL.rawValue: peer.keepAlive = attribute.integer() ?? 0
            case WGPEER_A_LAST_HANDSHAKE_TIME.rawValue:
                let seconds: Int64 = attribute.integer() ?? 0
                peer.lastHandshake = seconds == 0 ? nil : seconds
            case WGPEER_A_RX_BYTES.rawValue: peer.receivedBytes = attribute.integer() ?? 0
            case WGPEER_A_TX_BYTES.rawValue: peer.sentBytes = attribute.integer() ?? 0
            case WGPEER_A_ALLOWEDIPS.rawValue:
                for entry in attribute.nested {
                    if let cidr = allowedIP(entry.nested) { peer.allowedIPs.insert(cidr) }
                }
            default: break
            }
        }
        state.peers[key] = peer
    }

    private static func allowedIP(_ attributes: NetlinkAttributes) -> CIDR? {
        var address: IPAddress?
        var length: UInt8?
        for attribute in attributes {
            switch UInt32(attribute.type) {
            case WGALLOWEDIP_A_IPADDR.rawValue: address = IPAddress(bytes: attribute.payload)
            case WGALLOWEDIP_A_CIDR_MASK.rawValue: length = attribute.integer()
            default: break
            }
        }
        guard let address, let length else { return nil }
        return CIDR(masking: address, prefixLength: Int(length))
    }

    /// `struct sockaddr_in` or `sockaddr_in6`: family in host order, port and address in network order.
    static func socketAddress(_ endpoint: Endpoint) -> [UInt8] {
        var payload = NetlinkPayload()
        payload.append(UInt16(endpoint.address.family.socketFamily))
        payload.append(endpoint.port.bigEndian)
        if endpoint.address.family == .ipv6 { payload.append(UInt32(0)) }
        let head = payload.bytes + endpoint.address.bytes
        return head + [UInt8](repeating: 0, count: endpoint.address.family == .ipv4 ? 8 : 4)
    }

    static func endpoint(_ bytes: ArraySlice<UInt8>) -> Endpoint? {
        guard let family: UInt16 = bytes.value(), let port: UInt16 = bytes.dropFirst(2).value() else { return nil }
        let address: IPAddress?
        switch Int32(family) {
        case AF_INET: address = IPAddress(bytes: bytes.dropFirst(4).prefix(4))
        case AF_INET6: address = IPAddress(bytes: bytes.dropFirst(8).prefix(16))
        default: return nil
        }
        return address.map { Endpoint(address: $0, port: UInt16(bigEndian: port)) }
    }
}
