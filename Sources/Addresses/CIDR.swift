// SPDX-License-Identifier: Apache-2.0

/// A prefix: an address whose host bits are zero, and a length in bits.
public struct CIDR: Sendable, Hashable, Comparable {
    public let address: IPAddress
    public let prefixLength: Int

    /// Clears the host bits; nil when the length does not fit the family.
    public init?(masking address: IPAddress, prefixLength: Int) {
        guard (0...address.family.bitWidth).contains(prefixLength) else { return nil }
        self.address = IPAddress(
            family: address.family, bits: address.bits & Self.mask(address.family, prefixLength))
        self.prefixLength = prefixLength
    }

    /// The prefix that is just this address: /32 or /128.
    public init(host address: IPAddress) {
        self.address = address
        prefixLength = address.family.bitWidth
    }

    public var family: AddressFamily { address.family }
    public var isHost: Bool { prefixLength == family.bitWidth }

    public func contains(_ other: IPAddress) -> Bool {
        other.family == family && other.bits & Self.mask(family, prefixLength) == address.bits
    }

    public func contains(_ other: CIDR) -> Bool {
        other.prefixLength >= prefixLength && contains(other.address)
    }

    public func overlaps(_ other: CIDR) -> Bool { contains(other) || other.contains(self) }

    /// The address at an offset from the first; nil past the end.
    public func address(at offset: UInt64) -> IPAddress? {
        let hostBits = family.bitWidth - prefixLength
        guard hostBits >= 64 || offset >> UInt64(hostBits) == 0 else { return nil }
        return IPAddress(family: family, bits: address.bits + UInt128(offset))
    }

    /// The offset of an address from the first; nil when it is not inside, or beyond 64 bits.
    public func offset(of other: IPAddress) -> UInt64? {
        contains(other) ? UInt64(exactly: other.bits - address.bits) : nil
    }

    public static func < (a: Self, b: Self) -> Bool { (a.address, a.prefixLength) < (b.address, b.prefixLength) }

    private static func mask(_ family: AddressFamily, _ length: Int) -> UInt128 {
        length == 0 ? 0 : UInt128.max << UInt128(family.bitWidth - length)
    }
}

extension CIDR: LosslessStringConvertible, Codable {
    /// `ADDRESS/LENGTH` with host bits zero; nil for anything else.
    public init?(_ text: String) { self.init(ascii: Array(text.utf8)[...]) }

    /// The same from its bytes.
    public init?(ascii: ArraySlice<UInt8>) {
        guard let slash = ascii.firstIndex(of: UInt8(ascii: "/")), let address = IPAddress(ascii: ascii[..<slash])
        else { return nil }
        let length = ascii[(slash + 1)...]
        guard (1...3).contains(length.count), length.allSatisfy({ (48...57).contains($0) }) else { return nil }
        let number = length.reduce(0) { $0 * 10 + Int($1 - 48) }
        guard let result = CIDR(masking: address, prefixLength: number), result.address == address else { return nil }
        self = result
    }

    public var description: String { "\(address)/\(prefixLength)" }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        let text = try container.decode(String.self)
        guard let value = CIDR(text) else {
            throw DecodingError.dataCorruptedError(in: container, debugDescription: "\"\(text)\" is no CIDR")
        }
        self = value
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}

/// An address and a UDP port.
public struct Endpoint: Sendable, Hashable, LosslessStringConvertible, Codable {
    public var address: IPAddress
    /// Host byte order.
    public var port: UInt16

    public init(address: IPAddress, port: UInt16) {
        self.address = address
        self.port = port
    }

    /// Reads `10.0.0.1:51820`, `[fd00::1]:51820`.
    public init?(_ text: String) {
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]) else {
            return nil
        }
        var host = text[..<colon]
        let isBracketed = host.hasPrefix("[") && host.hasSuffix("]")
        if isBracketed { host = host.dropFirst().dropLast() }
        guard let address = IPAddress(String(host)), isBracketed == (address.family == .ipv6) else { return nil }
        self.init(address: address, port: port)
    }

    /// `10.0.0.1:51820`, `[fd00::1]:51820`.
    public var description: String {
        address.family == .ipv4 ? "\(address):\(port)" : "[\(address)]:\(port)"
    }
}
