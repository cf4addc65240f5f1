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
        // Of the peer: made a set at once, for there may be a hundred thousand.
        var allowedIPs: [CIDR] = []
        func finish() {
            guard case (let key, var found)? = peer.take() else { return }
            found.allowedIPs = Set(allowedIPs)
            allowedIPs.removeAll(keepingCapacity: true)
            state.peers[key] = found
        }
        var isWhole = false
        var start = 0
        // By index, so that no slice shares the buffer when the key in it is overwritten.
        while start < answer.count {
            var (end, equals) = (start, -1)
            while end < answer.count, answer[end] != 10 {
                if equals < 0, answer[end] == UInt8(ascii: "=") { equals = end }
                end += 1
            }
            let line = start
            start = end + 1
            guard equals >= 0, let field = Field.named(answer[line..<equals]) else { continue }
            let range = equals + 1..<end
            if field == .privateKey {
                var bytes = unhex(answer[range]) ?? []
                for index in range { answer[index] = 0 }
                key = PrivateKey(wiping: &bytes)
                state.publicKey = key?.publicKey
                continue
            }
            let value = answer[range]
            switch field {
            case .allowedIP: if peer != nil, let cidr = CIDR(ascii: value) { allowedIPs.append(cidr) }
            case .errno:
                guard number(value) == UInt64(0) else {
                    throw .userspace(device: device, "answered errno \(String(decoding: value, as: UTF8.self))")
                }
                isWhole = true
            case .listenPort: state.listeningPort = number(value) ?? 0
            case .firewallMark: state.firewallMark = number(value) ?? 0
            case .publicKey:
                finish()
                peer = unhex(value).flatMap { PublicKey(bytes: $0) }.map {
                    ($0, PeerState(allowedIPs: [], keepAlive: 0, receivedBytes: 0, sentBytes: 0))
                }
            case .endpoint: peer?.state.endpoint = endpoint(value)
            case .keepAlive: peer?.state.keepAlive = number(value) ?? 0
            case .lastHandshake:
                if let seconds: Int64 = number(value), seconds != 0 { peer?.state.lastHandshake = seconds }
            case .received: peer?.state.receivedBytes = number(value) ?? 0
            case .sent: peer?.state.sentBytes = number(value) ?? 0
            case .privateKey: break
            }
        }
        finish()
        guard isWhole else { throw .userspace(device: device, "answered in part only") }
        return state
    }

    /// Lines of an answer that say something here.
    private enum Field: String, CaseIterable {
        // The most frequent first.
        case allowedIP = "allowed_ip"
        case publicKey = "public_key"
        case endpoint
        case keepAlive = "persistent_keepalive_interval"
        case lastHandshake = "last_handshake_time_sec"
        case received = "rx_bytes"
        case sent = "tx_bytes"
        case privateKey = "private_key"
        case errno
        case listenPort = "listen_port"
        case firewallMark = "fwmark"

        private static let names = allCases.map { (field: $0, name: Array($0.rawValue.utf8)) }

        static func named(_ text: ArraySlice<UInt8>) -> Field? {
            for (field, name) in names where name.count == text.count {
                if name.indices.allSatisfy({ name[$0] == text[text.startIndex + $0] }) { return field }
            }
            return nil
        }
    }

    /// In decimal digits; nil where there is another character, or more than the type holds.
    private static func number<Value: FixedWidthInteger>(_ text: ArraySlice<UInt8>) -> Value? {
        var value = Value(0)
        for byte in text {
            guard 48...57 ~= byte else { return nil }
            let (tens, isTooLarge) = value.multipliedReportingOverflow(by: 10)
            let (sum, overflows) = tens.addingReportingOverflow(Value(byte - 48))
            guard !isTooLarge, !overflows else { return nil }
            value = sum
        }
        return text.isEmpty ? nil : value
    }

    /// `192.0.2.1:51820` or `[2001:db8::1]:51820`.
    static func endpoint(_ text: ArraySlice<UInt8>) -> Endpoint? {
        guard let colon = text.lastIndex(of: UInt8(ascii: ":")),
            let port: UInt16 = number(text[text.index(after: colon)...])
        else { return nil }
        var address = text[..<colon]
        if address.first == UInt8(ascii: "["), address.last == UInt8(ascii: "]") {
            address = address.dropFirst().dropLast()
        }
        return IPAddress(ascii: address).map { Endpoint(address: $0, port: port) }
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
