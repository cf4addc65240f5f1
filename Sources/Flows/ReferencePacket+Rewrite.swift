// SPDX-License-Identifier: Apache-2.0

import Model

/// Rewriting of addresses and ports, with checksums mended as they are changed: one that was
/// wrong before is as wrong afterwards.
extension ReferencePacket {
    /// The packet inside an ICMP error, with offsets into this one.
    struct Quote {
        var source: IPAddress
        var destination: IPAddress
        var transport: UInt8
        var isICMP: Bool
        var hasPort = false
        var sourcePort: UInt16 = 0
        var destinationPort: UInt16 = 0
        var networkOffset: Int
        var transportOffset: Int
    }

    /// Words of an address.
    private static func words(_ address: IPAddress) -> [UInt16] {
        stride(from: 0, to: address.bytes.count, by: 2).map {
            UInt16(address.bytes[$0]) << 8 | UInt16(address.bytes[$0 + 1])
        }
    }

    private mutating func put(_ address: IPAddress, at offset: Int) {
        bytes.replaceSubrange(offset..<offset + address.bytes.count, with: address.bytes)
    }

    /// Mends a checksum field after words have changed. `isUDP`: 0 means none, and is never made.
    private mutating func mend(_ offset: Int, from old: [UInt16], to new: [UInt16], isUDP: Bool = false) {
        var sum = word(offset)
        if isUDP, sum == 0 { return }
        for (a, b) in zip(old, new) { sum = Self.updated(sum, from: a, to: b) }
        set(offset, isUDP && sum == 0 ? 0xffff : sum)
    }

    /// Writes another source or destination, and its port where the packet has one.
    mutating func rewrite(isSource: Bool, _ address: IPAddress, port: UInt16?) {
        let isIPv4 = address.family == .ipv4
        let old = isSource ? facts.source : facts.destination
        let transport = linkLength + facts.transportOffset
        let isUDP = facts.transport == 17
        var checksum: Int?
        var portAt: Int?
        if facts.fragment != .later {
            switch facts.transport {
            case 6: (checksum, portAt) = (transport + 16, transport + (isSource ? 0 : 2))
            case 17: (checksum, portAt) = (transport + 6, transport + (isSource ? 0 : 2))
            default:
                if facts.isICMP { (checksum, portAt) = (transport + 2, facts.isEcho ? transport + 4 : nil) }
            }
        }
        if let port, let checksum, let portAt {
            let oldPort = word(portAt)
            if port != oldPort {
                mend(checksum, from: [oldPort], to: [port], isUDP: isUDP)
                set(portAt, port)
            }
        }
        guard old != address else { return }
        let (before, after) = (Self.words(old), Self.words(address))
        if let checksum, !(isIPv4 && facts.isICMP) { mend(checksum, from: before, to: after, isUDP: isUDP) }
        if isIPv4 { mend(linkLength + 10, from: before, to: after) }
        put(address, at: linkLength + (isIPv4 ? (isSource ? 12 : 16) : (isSource ? 8 : 24)))
    }

    /// What this error quotes; nil when it is too short to tell.
    var quote: Quote? {
        let offset = linkLength + facts.transportOffset + 8
        func address(_ at: Int, _ count: Int) -> IPAddress? {
            at + count <= bytes.count ? IPAddress(bytes: bytes[at..<at + count]) : nil
        }
        var quote: Quote
        var isLater = false
        if facts.source.family == .ipv4 {
            guard offset + 20 <= bytes.count, bytes[offset] >> 4 == 4, bytes[offset] & 15 >= 5,
                let source = address(offset + 12, 4), let destination = address(offset + 16, 4)
            else { return nil }
            quote = Quote(
                source: source, destination: destination, transport: bytes[offset + 9], isICMP: bytes[offset + 9] == 1,
                networkOffset: offset, transportOffset: offset + Int(bytes[offset] & 15) * 4)
            isLater = word(offset + 6) & 0x1fff != 0
        } else {
            guard offset + 40 <= bytes.count, bytes[offset] >> 4 == 6, let source = address(offset + 8, 16),
                let destination = address(offset + 24, 16)
            else { return nil }
            quote = Quote(
                source: source, destination: destination, transport: bytes[offset + 6], isICMP: false,
                networkOffset: offset, transportOffset: offset + 40)
            if quote.transport == 44 {
                guard quote.transportOffset + 8 <= bytes.count else { return nil }
                quote.transport = bytes[quote.transportOffset]
                isLater = word(quote.transportOffset + 2) & 0xfff8 != 0
                quote.transportOffset += 8
            }
            quote.isICMP = quote.transport == 58
        }
        guard !isLater, quote.transport == 6 || quote.transport == 17 || quote.isICMP else { return quote }
        guard quote.transportOffset + 8 <= bytes.count else { return nil }
        quote.hasPort = true
        if quote.isICMP {
            quote.sourcePort = word(quote.transportOffset + 4)
        } else {
            quote.sourcePort = word(quote.transportOffset)
            quote.destinationPort = word(quote.transportOffset + 2)
        }
        return quote
    }

    /// Writes one side of the quoted packet, and mends its checksums and the error's.
    mutating func rewriteQuote(_ quote: Quote, isSource: Bool, _ address: IPAddress, port: UInt16) {
        let isIPv4 = address.family == .ipv4
        let error = linkLength + facts.transportOffset + 2
        let before = Self.words(isSource ? quote.source : quote.destination)
        let after = Self.words(address)
        // What the error's own checksum covers, before and after.
        func covered() -> [UInt16] {
            let all = Array(bytes[quote.networkOffset...])
            return stride(from: 0, to: all.count - all.count % 2, by: 2).map {
                UInt16(all[$0]) << 8 | UInt16(all[$0 + 1])
            }
        }
        let old = covered()
        put(address, at: quote.networkOffset + (isIPv4 ? (isSource ? 12 : 16) : (isSource ? 8 : 24)))
        if isIPv4 { mend(quote.networkOffset + 10, from: before, to: after) }
        if quote.hasPort {
            let portAt = quote.isICMP ? quote.transportOffset + 4 : quote.transportOffset + (isSource ? 0 : 2)
            let oldPort = word(portAt)
            set(portAt, port)
            let checksum =
                quote.transportOffset + (quote.isICMP ? 2 : quote.transport == 6 ? 16 : 6)
            if checksum + 2 <= bytes.count, quote.transport != 17 || word(checksum) != 0 {
                let covers = !(quote.isICMP && isIPv4)
                mend(checksum, from: (covers ? before : []) + [oldPort], to: (covers ? after : []) + [port])
            }
        }
        mend(error, from: old, to: covered())
    }
}
