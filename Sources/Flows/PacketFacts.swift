// SPDX-License-Identifier: Apache-2.0

public import Model

/// What decides a packet's way, read from its bytes: the counterpart of `bpf/lib/parse.h`,
/// written from the RFCs and not from it.
public struct PacketFacts: Sendable, Hashable {
    /// Whether transport headers are here.
    public enum Fragment: Sendable, Hashable {
        case whole
        case first
        case later
    }

    public var source: IPAddress
    public var destination: IPAddress
    /// IP protocol number, behind extension headers.
    public var transport: UInt8
    public var fragment = Fragment.whole
    /// Host byte order; the identifier of ICMP echo in the source's place.
    public var sourcePort: UInt16 = 0
    public var destinationPort: UInt16 = 0
    public var tcpFlags: UInt8 = 0
    public var icmpType: UInt8 = 0
    public var icmpCode: UInt8 = 0
    public var isEcho = false
    /// Of a fragment, in network byte order.
    public var identification: UInt32 = 0
    /// TTL.
    public var hopLimit: UInt8 = 0
    /// IPv4 without DF.
    public var maySplit = false
    /// From the IP header on, in bytes: where the transport header begins, and where it ends.
    public var transportOffset = 0
    public var payloadOffset = 0

    /// An ICMP message that quotes another packet.
    public var isError: Bool {
        guard isICMP, fragment == .whole else { return false }
        return source.family == .ipv6 ? (1...4).contains(icmpType) : [3, 4, 5, 11, 12].contains(icmpType)
    }
    /// Told apart by ports, or by the identifier of an echo.
    public var hasPort: Bool { fragment != .later && (transport == 6 || transport == 17 || isEcho) }

    public var isICMP: Bool { transport == (source.family == .ipv4 ? 1 : 58) }
    public var isEchoRequest: Bool { isICMP && isEcho && icmpType == (source.family == .ipv4 ? 8 : 128) }
    /// A TCP segment that opens a connection.
    public var startsConnection: Bool { tcpFlags & 0x12 == 0x02 }
}

/// What became of reading a packet.
public enum ParsedPacket: Sendable, Hashable {
    case facts(PacketFacts)
    /// ARP and the like.
    case notIP
    /// A frame of a VLAN that the kernel has not unwrapped yet.
    case wrapped
    /// Too short for what its headers say, or too deep.
    case malformed

    /// Extension headers that are walked (`WGP_MAX_EXTENSION_HEADERS`).
    static let maximumExtensionHeaders = 6

    /// Reads a frame that begins with an Ethernet header, or a packet that begins with IP.
    public init(_ bytes: [UInt8], hasEthernet: Bool) {
        var packet = bytes[...]
        if hasEthernet {
            guard packet.count >= 14 else {
                self = .notIP
                return
            }
            let type = UInt16(packet[12]) << 8 | UInt16(packet[13])
            packet = packet.dropFirst(14)
            switch type {
            case 0x0800: self = Self.ipv4(packet)
            case 0x86dd: self = Self.ipv6(packet)
            case 0x8100, 0x88a8: self = .wrapped
            default: self = .notIP
            }
            return
        }
        guard let version = packet.first.map({ $0 >> 4 }) else {
            self = .malformed
            return
        }
        self = version == 4 ? Self.ipv4(packet) : version == 6 ? Self.ipv6(packet) : .notIP
    }

    private static func ipv4(_ packet: ArraySlice<UInt8>) -> ParsedPacket {
        let header = Array(packet.prefix(20))
        guard header.count == 20, header[0] & 15 >= 5, let source = IPAddress(bytes: header[12..<16]),
            let destination = IPAddress(bytes: header[16..<20])
        else { return .malformed }
        var facts = PacketFacts(source: source, destination: destination, transport: header[9])
        let field = UInt16(header[6]) << 8 | UInt16(header[7])
        facts.fragment = field & 0x1fff != 0 ? .later : field & 0x2000 != 0 ? .first : .whole
        facts.identification = UInt32(header[4]) << 8 | UInt32(header[5])
        facts.hopLimit = header[8]
        facts.maySplit = field & 0x4000 == 0
        facts.transportOffset = Int(header[0] & 15) * 4
        return transport(facts, packet.dropFirst(Int(header[0] & 15) * 4))
    }

    private static func ipv6(_ packet: ArraySlice<UInt8>) -> ParsedPacket {
        let header = Array(packet.prefix(40))
        guard header.count == 40, let source = IPAddress(bytes: header[8..<24]),
            let destination = IPAddress(bytes: header[24..<40])
        else { return .malformed }
        var facts = PacketFacts(source: source, destination: destination, transport: header[6])
        facts.hopLimit = header[7]
        facts.transportOffset = 40
        var rest = packet.dropFirst(40)
        let extensions: Set<UInt8> = [0, 43, 44, 60]
        var walked = 0
        while extensions.contains(facts.transport), facts.fragment != .later {
            if walked == maximumExtensionHeaders { return .malformed }
            walked += 1
            let extensionHeader = Array(rest.prefix(8))
            guard extensionHeader.count == 8 else { return .malformed }
            if facts.transport == 44 {
                let field = UInt16(extensionHeader[2]) << 8 | UInt16(extensionHeader[3])
                if field & 0xfff8 != 0 { facts.fragment = .later } else if field & 1 != 0 { facts.fragment = .first }
                facts.identification = extensionHeader[4..<8].reduce(0) { $0 << 8 | UInt32($1) }
                rest = rest.dropFirst(8)
                facts.transportOffset += 8
            } else {
                let length = (Int(extensionHeader[1]) + 1) * 8
                rest = rest.dropFirst(length)
                facts.transportOffset += length
            }
            facts.transport = extensionHeader[0]
        }
        return transport(facts, rest)
    }

    private static func transport(_ facts: PacketFacts, _ segment: ArraySlice<UInt8>) -> ParsedPacket {
        var facts = facts
        facts.payloadOffset = facts.transportOffset
        guard facts.fragment != .later else { return .facts(facts) }
        let needed = facts.transport == 6 ? 20 : [17, 1, 58].contains(facts.transport) ? 8 : 0
        let header = Array(segment.prefix(needed))
        guard header.count == needed else { return .malformed }
        func word(_ offset: Int) -> UInt16 { UInt16(header[offset]) << 8 | UInt16(header[offset + 1]) }
        switch facts.transport {
        case 6, 17:
            facts.sourcePort = word(0)
            facts.destinationPort = word(2)
            facts.payloadOffset += facts.transport == 6 ? Int(header[12] >> 4) * 4 : 8
            if facts.transport == 6 { facts.tcpFlags = header[13] }
        case 1, 58:
            facts.icmpType = header[0]
            facts.icmpCode = header[1]
            let echo: Set<UInt8> = facts.source.family == .ipv4 ? [8, 0] : [128, 129]
            if echo.contains(facts.icmpType) {
                facts.isEcho = true
                facts.sourcePort = word(4)
            }
        default: break
        }
        return .facts(facts)
    }
}
