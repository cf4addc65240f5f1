// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Model

/// What the programs do to packets, done to plain bytes: the model's hands.
struct ReferencePacket {
    var bytes: [UInt8]
    let facts: PacketFacts
    /// Bytes before the IP header.
    let linkLength: Int

    private var isIPv4: Bool { facts.source.family == .ipv4 }

    init(_ bytes: [UInt8], _ facts: PacketFacts, hasEthernet: Bool) {
        self.bytes = bytes
        self.facts = facts
        linkLength = hasEthernet ? 14 : 0
    }

    func word(_ offset: Int) -> UInt16 { UInt16(bytes[offset]) << 8 | UInt16(bytes[offset + 1]) }

    mutating func set(_ offset: Int, _ value: UInt16) {
        bytes[offset] = UInt8(value >> 8)
        bytes[offset + 1] = UInt8(value & 255)
    }

    /// Ones' complement addition of 16-bit words (RFC 1071).
    private static func add(_ a: UInt16, _ b: UInt16) -> UInt16 {
        let (sum, carry) = a.addingReportingOverflow(b)
        return carry ? sum &+ 1 : sum
    }

    /// A checksum field after one word of what it covers has changed (RFC 1624, equation 3).
    static func updated(_ checksum: UInt16, from old: UInt16, to new: UInt16) -> UInt16 {
        ~add(add(~checksum, ~old), new)
    }

    /// One hop less to live.
    mutating func hop() {
        if isIPv4 {
            let checksum = word(linkLength + 10)
            let old = UInt16(bytes[linkLength + 8]) << 8
            set(linkLength + 10, Self.updated(checksum, from: old, to: old &- 0x100))
            bytes[linkLength + 8] &-= 1
        } else {
            bytes[linkLength + 7] &-= 1
        }
    }

    /// Lowers the segment size that a SYN offers.
    mutating func clampSegment(_ limit: UInt16) {
        guard limit != 0, facts.transport == 6, facts.fragment == .whole, facts.tcpFlags & 2 != 0 else { return }
        let header = linkLength + facts.transportOffset
        let end = linkLength + facts.payloadOffset
        var offset = header + 20
        for _ in 0..<12 {
            guard offset + 4 <= end, offset + 4 <= bytes.count else { return }
            switch bytes[offset] {
            case 0: return
            case 1: offset += 1
            case 2 where bytes[offset + 1] == 4:
                let old = word(offset + 2)
                guard old > limit else { return }
                set(offset + 2, limit)
                // A word that begins at an odd offset spans two of the sum's words.
                let isOdd = (offset - header) % 2 != 0
                set(
                    header + 16,
                    Self.updated(
                        word(header + 16), from: isOdd ? old.byteSwapped : old, to: isOdd ? limit.byteSwapped : limit))
                return
            default:
                guard bytes[offset + 1] >= 2 else { return }
                offset += Int(bytes[offset + 1])
            }
        }
    }

    /// The size that counts against an MTU: the packet's, or that of each of its segments.
    func size(segment: UInt32) -> Int {
        segment == 0 ? bytes.count - linkLength : facts.payloadOffset + Int(segment)
    }

    /// The answer that this packet is too big; nil when none may be given.
    func tooBig(mtu: UInt16, from own: IPAddress?) -> [UInt8]? {
        guard facts.fragment != .later else { return nil }
        let quoted = isIPv4 ? 80 : 128
        if isIPv4 {
            if facts.transport == 1, !facts.isEcho { return nil }
            if facts.destination.bytes[0] & 0xf0 == 0xe0 || facts.source.isUnspecified { return nil }
        } else {
            if facts.transport == 58, facts.icmpType < 128 { return nil }
            if facts.destination.bytes[0] == 0xff { return nil }
        }
        guard bytes.count >= linkLength + quoted else { return nil }
        let quote = Array(bytes[linkLength..<linkLength + quoted])
        let source = (own ?? facts.destination).bytes
        let size = [UInt8(mtu >> 8), UInt8(mtu & 255)]
        var message = (isIPv4 ? [3, 4] : [2, 0]) + [0, 0, 0, 0] + size + quote
        var header: [UInt8]
        let length = UInt16(message.count)
        if isIPv4 {
            header = [0x45, 0, UInt8((length + 20) >> 8), UInt8((length + 20) & 255), 0, 0, 0, 0, 64, 1, 0, 0]
            header += source + facts.source.bytes
            let sum = internetChecksum(header)
            header[10] = UInt8(sum >> 8)
            header[11] = UInt8(sum & 255)
        } else {
            header = [0x60, 0, 0, 0, UInt8(length >> 8), UInt8(length & 255), 58, 64] + source + facts.source.bytes
        }
        let pseudo =
            isIPv4 ? [] : source + facts.source.bytes + [0, 0, UInt8(length >> 8), UInt8(length & 255), 0, 0, 0, 58]
        let sum = internetChecksum(pseudo + message)
        message[2] = UInt8(sum >> 8)
        message[3] = UInt8(sum & 255)
        let link = linkLength == 0 ? [] : Array(bytes[6..<12] + bytes[0..<6] + bytes[12..<14])
        return link + header + message
    }

    /// Source and destination of the packet inside a VXLAN or IP-in-IP one.
    func inner(vxlanPorts: [UInt16]) -> (IPAddress, IPAddress)? {
        guard facts.fragment != .later else { return nil }
        var offset = linkLength + facts.transportOffset
        if facts.transport == 17 {
            guard vxlanPorts.contains(facts.destinationPort) else { return nil }
            offset += 8 + 8 + 14
            guard offset <= bytes.count, [0x0800, 0x86dd].contains(word(offset - 2)) else { return nil }
        } else if ![4, 41].contains(facts.transport) {
            return nil
        }
        guard offset + 20 <= bytes.count else { return nil }
        switch bytes[offset] >> 4 {
        case 4:
            guard let source = IPAddress(bytes: bytes[offset + 12..<offset + 16]),
                let destination = IPAddress(bytes: bytes[offset + 16..<offset + 20])
            else { return nil }
            return (source, destination)
        case 6:
            guard offset + 40 <= bytes.count, let source = IPAddress(bytes: bytes[offset + 8..<offset + 24]),
                let destination = IPAddress(bytes: bytes[offset + 24..<offset + 40])
            else { return nil }
            return (source, destination)
        default: return nil
        }
    }
}
