// SPDX-License-Identifier: Apache-2.0

public import Model

/// The first packet of a flow, as its sender would make it: what `explain` lets the hooks decide.
public struct SyntheticPacket: Sendable, Hashable {
    public var source: IPAddress
    public var destination: IPAddress
    /// IP protocol number: TCP (a SYN), UDP, ICMP (an echo request), others without a transport header.
    public var transport: UInt8
    public var sourcePort: UInt16
    public var destinationPort: UInt16

    public init(
        source: IPAddress, destination: IPAddress, transport: UInt8, sourcePort: UInt16 = 40000,
        destinationPort: UInt16 = 80
    ) {
        self.source = source
        self.destination = destination
        self.transport = transport
        self.sourcePort = sourcePort
        self.destinationPort = destinationPort
    }

    private var isIPv6: Bool { source.family == .ipv6 }

    private static func word(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 0xff)] }

    private var segment: (bytes: [UInt8], checksum: Int?) {
        switch transport {
        case 6:
            // Sequence 1, five words long, SYN, window 8192.
            (
                Self.word(sourcePort) + Self.word(destinationPort)
                    + [0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0], 16
            )
        case 17: (Self.word(sourcePort) + Self.word(destinationPort) + [0, 8, 0, 0], 6)
        case 1 where !isIPv6: ([8, 0, 0, 0] + Self.word(sourcePort) + [0, 1], 2)
        case 58 where isIPv6: ([128, 0, 0, 0] + Self.word(sourcePort) + [0, 1], 2)
        default: ([], nil)
        }
    }

    /// In network byte order, checksums included (RFC 791, 8200, 9293, 768, 792, 4443).
    public func bytes(ethernet: Bool) -> [UInt8] {
        var (segment, offset) = segment
        if let offset {
            var pseudo: [UInt8] = []
            if !(transport == 1 && !isIPv6) {
                pseudo = source.bytes + destination.bytes + [0, 0] + Self.word(UInt16(segment.count))
                pseudo += [0, 0, 0, transport]
            }
            var sum = internetChecksum(pseudo + segment)
            if sum == 0, transport == 17 { sum = 0xffff }
            segment.replaceSubrange(offset..<offset + 2, with: Self.word(sum))
        }
        var header: [UInt8]
        if isIPv6 {
            header = [0x60, 0, 0, 0] + Self.word(UInt16(segment.count)) + [transport, 64]
            header += source.bytes + destination.bytes
        } else {
            // Don't fragment, TTL 64.
            header = [0x45, 0] + Self.word(UInt16(20 + segment.count)) + [0, 1, 0x40, 0, 64, transport, 0, 0]
            header += source.bytes + destination.bytes
            header.replaceSubrange(10..<12, with: Self.word(internetChecksum(header)))
        }
        let link: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2] + (isIPv6 ? [0x86, 0xdd] : [0x08, 0x00])
        return (ethernet ? link : []) + header + segment
    }
}
