// SPDX-License-Identifier: Apache-2.0

import Model

/// Builds packets byte by byte for test runs, with right checksums.
struct PacketBuilder {
    var source: IPAddress
    var destination: IPAddress
    var transport: UInt8 = 17
    /// Transport header and payload, checksum field zero.
    var segment: [UInt8] = []
    var checksumOffset: Int?
    var hasEthernet = true
    /// Of 8-byte units and the more-fragments bit (IPv4 field).
    var fragment: UInt16 = 0
    /// IPv4 options, a multiple of four bytes.
    var options: [UInt8] = []
    /// Ethernet types of VLAN tags, outermost first.
    var tags: [UInt16] = []
    /// TTL.
    var hopLimit: UInt8 = 64
    /// IPv6 extension headers, each without its next-header byte's value.
    var extensions: [(number: UInt8, bytes: [UInt8])] = []

    init(_ source: String, _ destination: String) {
        guard let source = IPAddress(source), let destination = IPAddress(destination) else {
            preconditionFailure("test addresses are well formed")
        }
        self.source = source
        self.destination = destination
    }

    static func word(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 0xff)] }

    func udp(_ from: UInt16, _ to: UInt16, payload: [UInt8] = Array("wgplane test payload".utf8)) -> Self {
        var copy = self
        copy.transport = 17
        copy.segment = Self.word(from) + Self.word(to) + Self.word(UInt16(8 + payload.count)) + [0, 0] + payload
        copy.checksumOffset = 6
        return copy
    }

    /// `flags`: byte 13 of the TCP header; 2 SYN, 16 ACK, 18 both.
    /// `options` are a multiple of four bytes.
    func tcp(
        _ from: UInt16, _ to: UInt16, flags: UInt8 = 2, options: [UInt8] = [],
        payload: [UInt8] = Array("tcp payload".utf8)
    ) -> Self {
        var copy = self
        copy.transport = 6
        let length = (UInt8(20 + options.count) / 4) << 4
        copy.segment = Self.word(from) + Self.word(to) + [0, 0, 0, 1, 0, 0, 0, 0, length, flags, 0x20, 0, 0, 0, 0, 0]
        copy.segment += options + payload
        copy.checksumOffset = 16
        return copy
    }

    func echo(_ identifier: UInt16, reply: Bool = false, payload: [UInt8] = Array("ping payload".utf8)) -> Self {
        var copy = self
        let isIPv6 = source.family == .ipv6
        copy.transport = isIPv6 ? 58 : 1
        let type: UInt8 = isIPv6 ? (reply ? 129 : 128) : (reply ? 0 : 8)
        copy.segment = [type, 0, 0, 0] + Self.word(identifier) + [0, 1] + payload
        copy.checksumOffset = 2
        return copy
    }

    func icmp(type: UInt8, code: UInt8, payload: [UInt8]) -> Self {
        var copy = self
        copy.transport = source.family == .ipv6 ? 58 : 1
        copy.segment = [type, code, 0, 0, 0, 0, 0, 0] + payload
        copy.checksumOffset = 2
        return copy
    }

    func fragmented(_ field: UInt16) -> Self {
        var copy = self
        copy.fragment = field
        return copy
    }

    func hops(_ limit: UInt8) -> Self {
        var copy = self
        copy.hopLimit = limit
        return copy
    }

    func layer3() -> Self {
        var copy = self
        copy.hasEthernet = false
        return copy
    }

    /// The whole packet, from the link header where it has one.
    var bytes: [UInt8] {
        var segment = segment
        if let offset = checksumOffset, fragment & 0x1fff == 0 {
            let needsPseudo = !(source.family == .ipv4 && transport == 1)
            let length = UInt32(segment.count)
            var pseudo: [UInt8] = []
            if needsPseudo {
                pseudo = source.bytes + destination.bytes
                pseudo += [
                    UInt8(length >> 24), UInt8(length >> 16 & 255), UInt8(length >> 8 & 255), UInt8(length & 255),
                ]
                pseudo += [0, 0, 0, transport]
            }
            var sum = internetChecksum(pseudo + segment)
            if sum == 0 && transport == 17 { sum = 0xffff }
            segment.replaceSubrange(offset..<offset + 2, with: Self.word(sum))
        }
        var network: [UInt8]
        if source.family == .ipv4 {
            let length = 20 + options.count
            network = [0x40 | UInt8(length / 4), 0] + Self.word(UInt16(length + segment.count)) + [0, 1]
            network += Self.word(fragment) + [hopLimit, transport, 0, 0] + source.bytes + destination.bytes + options
            network.replaceSubrange(10..<12, with: Self.word(internetChecksum(network)))
        } else {
            let chain = extensions.map(\.number) + [transport]
            var headers: [UInt8] = []
            for (index, header) in extensions.enumerated() { headers += [chain[index + 1]] + header.bytes }
            network = [0x60, 0, 0, 0] + Self.word(UInt16(headers.count + segment.count)) + [chain[0], hopLimit]
            network += source.bytes + destination.bytes + headers
        }
        let type: [UInt8] = source.family == .ipv4 ? [0x08, 0x00] : [0x86, 0xdd]
        let ethernet: [UInt8] =
            hasEthernet ? [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2] + tags.flatMap { Self.word($0) + [0, 5] } + type : []
        return ethernet + network + segment
    }
}
