// SPDX-License-Identifier: Apache-2.0

import Addresses
import SystemDescriptors

/// The text of WireGuard's cross-platform userspace protocol: `key=value` lines,
/// keys in lower-case hex (https://www.wireguard.com/xplatform/).
enum UserspaceProtocol {
    /// The body of a `set=1` request as bytes, since it may hold the private key; the caller wipes it.
    static func encode(_ change: DeviceChange) -> [UInt8] {
        var request: [UInt8] = []
        encode(change) { request += $0 }
        return request
    }

    /// The same in pieces, so that the other side works on one while the next is made. What is handed over is wiped.
    static func encode<Failure>(
        _ change: DeviceChange, _ take: ([UInt8]) throws(Failure) -> Void
    ) throws(Failure) {
        var piece: [UInt8] = []
        let size = 1 << 15
        piece.reserveCapacity(size + 1024)
        defer { GuardedBytes.wipe(&piece) }
        func flush() throws(Failure) {
            try take(piece)
            GuardedBytes.wipe(&piece)
            piece.reserveCapacity(size + 1024)
        }
        func line(_ text: StaticString, _ value: some StringProtocol) {
            piece += "\(text)".utf8
            piece += value.utf8
            piece.append(10)
        }
        func hex(_ text: StaticString, _ bytes: some Sequence<UInt8>) {
            piece += "\(text)".utf8
            for byte in bytes {
                piece.append(hexDigit(byte >> 4))
                piece.append(hexDigit(byte & 15))
            }
            piece.append(10)
        }
        piece += "set=1\n".utf8
        if let key = change.privateKey {
            key.withBytes { hex("private_key=", $0) }
            // A piece that grew would leave copies of the key behind.
            try flush()
        }
        if let port = change.listeningPort { line("listen_port=", "\(port)") }
        if let mark = change.firewallMark { line("fwmark=", "\(mark)") }
        for peer in change.peers {
            hex("public_key=", peer.publicKey.bytes)
            if peer.remove {
                line("remove=", "true")
            } else {
                if peer.updateOnly { line("update_only=", "true") }
                if let endpoint = peer.endpoint { line("endpoint=", "\(endpoint)") }
                if let seconds = peer.keepAlive { line("persistent_keepalive_interval=", "\(seconds)") }
                if peer.replaceAllowedIPs { line("replace_allowed_ips=", "true") }
                for cidr in peer.allowedIPs {
                    piece += "allowed_ip=".utf8
                    cidr.address.appendText(to: &piece)
                    line("/", "\(cidr.prefixLength)")
                }
            }
            if piece.count >= size { try flush() }
        }
        piece.append(10)
        try take(piece)
    }

    /// The answer to `get=1`. The private key is taken out of the text and wiped at once.
    static func decode(_ answer: inout [UInt8], device: String) throws(WireGuardError) -> DeviceState {
        var key: PrivateKey?
        return try decode(&answer, device: device, key: &key)
    }

    /// The same, and the private key.
    static func decode(
        _ answer: inout [UInt8], device: String, key: inout PrivateKey?
    ) throws(WireGuardError) -> DeviceState {
        var state = DeviceState(name: device, interface: 0, listeningPort: 0, firewallMark: 0, peers: [:])
        var peer: (key: PublicKey, state: PeerState)?
        func finish() { if let peer { state.peers[peer.key] = peer.state } }
        var isWhole = false
        var start = 0
        // By index, so that no slice shares the buffer when the key in it is overwritten.
        while start < answer.count {
            let end = answer[start...].firstIndex(of: 10) ?? answer.count
            defer { start = end + 1 }
            guard let equals = answer[start..<end].firstIndex(of: UInt8(ascii: "=")) else { continue }
            let range = equals + 1..<end
            // The one that there may be a hundred thousand of first.
            if isAllowedIP(answer, start..<equals) {
                if let cidr = CIDR(ascii: answer[range]) { peer?.state.allowedIPs.insert(cidr) }
                continue
            }
            let name = String(decoding: answer[start..<equals], as: UTF8.self)
            if name == "private_key" {
                var bytes = unhex(answer[range]) ?? []
                for index in range { answer[index] = 0 }
                key = PrivateKey(wiping: &bytes)
                state.publicKey = key?.publicKey
                continue
            }
            let value = String(decoding: answer[range], as: UTF8.self)
            switch name {
            case "errno":
                if value != "0" { throw .userspace(device: device, "answered errno \(value)") }
                isWhole = true
            case "listen_port": state.listeningPort = UInt16(value) ?? 0
            case "fwmark": state.firewallMark = UInt32(value) ?? 0
            case "public_key":
                finish()
                peer = unhex(answer[range]).flatMap { PublicKey(bytes: $0) }.map {
                    ($0, PeerState(allowedIPs: [], keepAlive: 0, receivedBytes: 0, sentBytes: 0))
                }
            case "endpoint": peer?.state.endpoint = endpoint(value)
            case "persistent_keepalive_interval": peer?.state.keepAlive = UInt16(value) ?? 0
            case "last_handshake_time_sec":
                if let seconds = Int64(value), seconds != 0 { peer?.state.lastHandshake = seconds }
            case "rx_bytes": peer?.state.receivedBytes = UInt64(value) ?? 0
            case "tx_bytes": peer?.state.sentBytes = UInt64(value) ?? 0
            default: break
            }
        }
        finish()
        guard isWhole else { throw .userspace(device: device, "answered in part only") }
        return state
    }

    private static let allowedIP = Array("allowed_ip".utf8)

    private static func isAllowedIP(_ answer: [UInt8], _ range: Range<Int>) -> Bool {
        range.count == allowedIP.count && answer[range.lowerBound] == allowedIP[0]
            && answer[range].elementsEqual(allowedIP)
    }

    static func endpoint(_ text: String) -> Endpoint? {
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]) else {
            return nil
        }
        let address = text[..<colon].trimmingPrefix("[").replacing("]", with: "")
        return IPAddress(String(address)).map { Endpoint(address: $0, port: port) }
    }

    static func hex(_ bytes: [UInt8]) -> String {
        String(decoding: bytes.flatMap { [hexDigit($0 >> 4), hexDigit($0 & 15)] }, as: UTF8.self)
    }

    private static func hexDigit(_ value: UInt8) -> UInt8 { value < 10 ? 48 + value : 87 + value }

    static func unhex(_ text: ArraySlice<UInt8>) -> [UInt8]? {
        guard text.count % 2 == 0 else { return nil }
        func digit(_ character: UInt8) -> UInt8? {
            switch character {
            case 48...57: character - 48
            case 97...102: character - 87
            case 65...70: character - 55
            default: nil
            }
        }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(text.count / 2)
        var index = text.startIndex
        while index < text.endIndex {
            guard let high = digit(text[index]), let low = digit(text[index + 1]) else { return nil }
            bytes.append(high << 4 | low)
            index += 2
        }
        return bytes
    }
}
