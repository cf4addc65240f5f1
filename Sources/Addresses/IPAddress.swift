// SPDX-License-Identifier: Apache-2.0

/// An address family, by the version number in the IP header.
public enum AddressFamily: UInt8, Sendable, Hashable, Codable, CaseIterable, Comparable, CustomStringConvertible {
    case ipv4 = 4
    case ipv6 = 6

    /// Bits of an address: 32 or 128.
    public var bitWidth: Int { self == .ipv4 ? 32 : 128 }
    /// Bytes of an address: 4 or 16.
    public var byteCount: Int { bitWidth / 8 }
    public var description: String { self == .ipv4 ? "IPv4" : "IPv6" }
    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// An IPv4 or IPv6 address.
public struct IPAddress: Sendable, Hashable, Comparable {
    public let family: AddressFamily
    // Two words rather than one UInt128: with Swift 6.3, an async closure that captures a
    // value of 16-byte alignment across an await jumps into the void.
    private let high: UInt64
    private let low: UInt64

    /// The address as a number, most significant byte first in the text; IPv4 in the low 32 bits.
    public var bits: UInt128 { UInt128(high) << 64 | UInt128(low) }

    public init(family: AddressFamily, bits: UInt128) {
        self.family = family
        high = family == .ipv4 ? 0 : UInt64(truncatingIfNeeded: bits >> 64)
        low = UInt64(truncatingIfNeeded: family == .ipv4 ? bits & 0xffff_ffff : bits)
    }

    /// 127.0.0.1, ::1.
    public static func loopback(_ family: AddressFamily) -> IPAddress {
        IPAddress(family: family, bits: family == .ipv4 ? 0x7f00_0001 : 1)
    }

    /// From 4 or 16 bytes in network byte order; nil for any other count.
    public init?(bytes: some Collection<UInt8>) {
        let family: AddressFamily
        switch bytes.count {
        case 4: family = .ipv4
        case 16: family = .ipv6
        default: return nil
        }
        self.init(family: family, bits: bytes.reduce(0) { $0 << 8 | UInt128($1) })
    }

    /// 4 or 16 bytes in network byte order.
    public var bytes: [UInt8] {
        (0..<family.byteCount).map { UInt8(truncatingIfNeeded: bits >> UInt128(8 * (family.byteCount - 1 - $0))) }
    }

    /// Appends them.
    public func append(to bytes: inout [UInt8]) {
        if family == .ipv6 {
            for shift in stride(from: UInt64(56), through: 0, by: -8) {
                bytes.append(UInt8(truncatingIfNeeded: high >> shift))
            }
        }
        for shift in stride(from: UInt64(family == .ipv6 ? 56 : 24), through: 0, by: -8) {
            bytes.append(UInt8(truncatingIfNeeded: low >> shift))
        }
    }

    /// Equal addresses have equal words; the families' differ seldom enough.
    public func hash(into hasher: inout Hasher) {
        hasher.combine(high)
        hasher.combine(low)
    }

    public static func < (a: Self, b: Self) -> Bool { (a.family, a.high, a.low) < (b.family, b.high, b.low) }

    public static let anyIPv4 = IPAddress(family: .ipv4, bits: 0)
    public static let anyIPv6 = IPAddress(family: .ipv6, bits: 0)

    /// 127.0.0.0/8 or ::1.
    public var isLoopback: Bool { family == .ipv4 ? bits >> 24 == 127 : bits == 1 }
    /// 224.0.0.0/4 or ff00::/8.
    public var isMulticast: Bool { family == .ipv4 ? bits >> 28 == 0xe : bits >> 120 == 0xff }
    /// 169.254.0.0/16 or fe80::/10.
    public var isLinkLocal: Bool { family == .ipv4 ? bits >> 16 == 0xa9fe : bits >> 118 == 0x3fa }
    /// 0.0.0.0 or ::.
    public var isUnspecified: Bool { bits == 0 }
}

extension IPAddress: LosslessStringConvertible {
    /// Dotted decimal without leading zeros, or RFC 4291 text; nil for anything else.
    public init?(_ text: String) { self.init(ascii: Array(text.utf8)[...]) }

    /// The same from its bytes.
    public init?(ascii: ArraySlice<UInt8>) {
        if ascii.contains(UInt8(ascii: ":")) {
            guard let bits = Self.parseIPv6(ascii) else { return nil }
            self.init(family: .ipv6, bits: bits)
        } else {
            guard let bits = Self.parseIPv4(ascii) else { return nil }
            self.init(family: .ipv4, bits: UInt128(bits))
        }
    }

    private static func parseIPv4(_ text: ArraySlice<UInt8>) -> UInt32? {
        var (result, part, digits, dots): (UInt32, UInt32, Int, Int) = (0, 0, 0, 0)
        for byte in text {
            switch byte {
            case 48...57:
                // No leading zeros, which some read as octal.
                if digits == 1, part == 0 { return nil }
                part = part * 10 + UInt32(byte - 48)
                digits += 1
                if part > 255 { return nil }
            case UInt8(ascii: "."):
                if digits == 0 || dots == 3 { return nil }
                result = result << 8 | part
                (part, digits, dots) = (0, 0, dots + 1)
            default: return nil
            }
        }
        return dots == 3 && digits > 0 ? result << 8 | part : nil
    }

    private static func parseIPv6(_ text: ArraySlice<UInt8>) -> UInt128? {
        let colon = UInt8(ascii: ":")
        let gap = text.indices.first { text[$0] == colon && $0 + 1 < text.endIndex && text[$0 + 1] == colon }
        let all: [UInt16]
        if let gap {
            guard let head = groups(text[..<gap]), let tail = groups(text[(gap + 2)...]), head.count + tail.count < 8
            else { return nil }
            all = head + Array(repeating: 0, count: 8 - head.count - tail.count) + tail
        } else {
            guard let whole = groups(text), whole.count == 8 else { return nil }
            all = whole
        }
        return all.reduce(0) { $0 << 16 | UInt128($1) }
    }

    /// Groups of four hexadecimal digits, the last perhaps in dotted decimal.
    private static func groups(_ text: ArraySlice<UInt8>) -> [UInt16]? {
        if text.isEmpty { return [] }
        var result: [UInt16] = []
        let parts = text.split(separator: UInt8(ascii: ":"), omittingEmptySubsequences: false)
        for (index, part) in parts.enumerated() {
            if index == parts.count - 1, part.contains(UInt8(ascii: ".")) {
                guard let low = parseIPv4(part) else { return nil }
                result += [UInt16(low >> 16), UInt16(truncatingIfNeeded: low)]
                continue
            }
            guard (1...4).contains(part.count) else { return nil }
            var group: UInt16 = 0
            for byte in part {
                switch byte {
                case 48...57: group = group << 4 | UInt16(byte - 48)
                case 97...102: group = group << 4 | UInt16(byte - 87)
                case 65...70: group = group << 4 | UInt16(byte - 55)
                default: return nil
                }
            }
            result.append(group)
        }
        return result
    }

    /// Dotted decimal, or the canonical text of RFC 5952.
    public var description: String {
        if family == .ipv4 {
            var text: [UInt8] = []
            appendText(to: &text)
            return String(decoding: text, as: UTF8.self)
        }
        let groups = (0..<8).map { UInt16(truncatingIfNeeded: bits >> UInt128(16 * (7 - $0))) }
        var best = 0..<0
        var start = 0
        while start < 8 {
            guard groups[start] == 0 else {
                start += 1
                continue
            }
            var end = start
            while end < 8, groups[end] == 0 { end += 1 }
            if end - start > max(best.count, 1) { best = start..<end }
            start = end
        }
        func text(_ part: ArraySlice<UInt16>) -> String {
            part.map { String($0, radix: 16) }.joined(separator: ":")
        }
        if best.isEmpty { return text(groups[...]) }
        return text(groups[..<best.lowerBound]) + "::" + text(groups[best.upperBound...])
    }
}

extension IPAddress {
    /// Appends the description as ASCII; for texts of very many.
    public func appendText(to text: inout [UInt8]) {
        guard family == .ipv4 else { return text += Array(description.utf8) }
        for shift in [24, 16, 8, 0] as [UInt32] {
            let byte = UInt8(truncatingIfNeeded: UInt32(truncatingIfNeeded: bits) >> shift)
            if byte >= 100 { text.append(48 + byte / 100) }
            if byte >= 10 { text.append(48 + byte / 10 % 10) }
            text.append(48 + byte % 10)
            if shift > 0 { text.append(0x2e) }
        }
    }
}

extension IPAddress: Codable {
    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        let text = try container.decode(String.self)
        guard let value = IPAddress(text) else {
            throw DecodingError.dataCorruptedError(in: container, debugDescription: "\"\(text)\" is no IP address")
        }
        self = value
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}
