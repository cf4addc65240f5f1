// SPDX-License-Identifier: Apache-2.0

internal import Model

/// ICMP's echo messages, headers above IP (RFC 792, RFC 4443).
public enum EchoMessage {
    /// The kernel fills in ICMPv6's checksum.
    public static func request(_ identifier: UInt16, _ payload: [UInt8], isIPv6: Bool) -> [UInt8] {
        var packet: [UInt8] = [isIPv6 ? 128 : 8, 0, 0, 0, UInt8(identifier >> 8), UInt8(identifier & 0xff), 0, 1]
        packet += payload
        if !isIPv6 {
            let sum = internetChecksum(packet)
            packet[2] = UInt8(sum >> 8)
            packet[3] = UInt8(sum & 0xff)
        }
        return packet
    }

    /// What a raw socket has received: of IPv4 with the IP header.
    public static func isReply(_ bytes: [UInt8], _ identifier: UInt16, isIPv6: Bool) -> Bool {
        let start = isIPv6 ? 0 : Int((bytes.first ?? 0) & 0x0f) * 4
        guard bytes.count >= start + 8 else { return false }
        return bytes[start] == (isIPv6 ? 129 : 0) && bytes[start + 4] == UInt8(identifier >> 8)
            && bytes[start + 5] == UInt8(identifier & 0xff)
    }
}
