// SPDX-License-Identifier: Apache-2.0

/// A WireGuard public key: a Curve25519 point of 32 bytes (RFC 7748), base64 in text.
public struct PublicKey: Sendable, Hashable, Comparable, LosslessStringConvertible, Codable {
    /// Big-endian words, so that keys are compared as their bytes are, and none is an allocation of its own.
    private let first: UInt64
    private let second: UInt64
    private let third: UInt64
    private let fourth: UInt64

    /// 32 bytes.
    public var bytes: [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(32)
        for word in words {
            for shift in stride(from: UInt64(56), through: 0, by: -8) {
                result.append(UInt8(truncatingIfNeeded: word >> shift))
            }
        }
        return result
    }

    /// Nil unless there are 32 bytes and they are not one of the points of small
    /// order, with which every secret would be known (RFC 7748, section 6.1).
    public init?(bytes: some Sequence<UInt8>) {
        let array = Array(bytes)
        guard array.count == 32 else { return nil }
        // The highest bit is none of the point's (RFC 7748, section 5).
        guard !Self.smallOrder.contains(array.dropLast() + [array[31] & 0x7f]) else { return nil }
        func word(_ index: Int) -> UInt64 { array[8 * index..<8 * index + 8].reduce(0) { $0 << 8 | UInt64($1) } }
        (first, second, third, fourth) = (word(0), word(1), word(2), word(3))
    }

    private var words: [UInt64] { [first, second, third, fourth] }

    /// 44 characters of base64; nil for anything else, white space included.
    public init?(_ text: String) {
        guard text.utf8.count == 44, let bytes = Base64.decode(text) else { return nil }
        self.init(bytes: bytes)
    }

    public var description: String { Base64.encode(bytes) }

    public static func < (a: Self, b: Self) -> Bool {
        (a.first, a.second, a.third, a.fourth) < (b.first, b.second, b.third, b.fourth)
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        guard let key = PublicKey(try container.decode(String.self)) else {
            throw DecodingError.dataCorruptedError(in: container, debugDescription: "not a WireGuard public key")
        }
        self = key
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }

    private static let smallOrder: Set<[UInt8]> = {
        func hex(_ text: String) -> [UInt8] {
            var bytes: [UInt8] = []
            var rest = text[...]
            while !rest.isEmpty {
                bytes.append(UInt8(rest.prefix(2), radix: 16) ?? 0)
                rest = rest.dropFirst(2)
            }
            return bytes
        }
        let ones = String(repeating: "ff", count: 30)
        return [
            [UInt8](repeating: 0, count: 32), [1] + [UInt8](repeating: 0, count: 31),
            hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            hex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
            hex("ec\(ones)7f"), hex("ed\(ones)7f"), hex("ee\(ones)7f"),
        ]
    }()
}

/// Base64 with padding (RFC 4648, section 4), strict in both directions.
public enum Base64 {
    private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    private static let values: [UInt8] = {
        var table = [UInt8](repeating: 255, count: 256)
        for (value, character) in alphabet.enumerated() { table[Int(character)] = UInt8(value) }
        return table
    }()

    public static func encode(_ bytes: [UInt8]) -> String {
        var text: [UInt8] = []
        text.reserveCapacity((bytes.count + 2) / 3 * 4)
        for start in stride(from: 0, to: bytes.count, by: 3) {
            let chunk = bytes[start..<min(start + 3, bytes.count)]
            let group = chunk.reduce(UInt32(0)) { $0 << 8 | UInt32($1) } << UInt32(8 * (3 - chunk.count))
            for position in 0..<4 {
                text.append(
                    position <= chunk.count ? alphabet[Int(group >> UInt32(18 - 6 * position) & 63)] : UInt8(ascii: "=")
                )
            }
        }
        return String(decoding: text, as: UTF8.self)
    }

    /// Nil for a length that is no multiple of 4, a foreign character, or bits left over.
    public static func decode(_ text: String) -> [UInt8]? { decode(Array(text.utf8)) }

    public static func decode(_ text: [UInt8]) -> [UInt8]? {
        guard text.count % 4 == 0 else { return nil }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(text.count / 4 * 3)
        for start in stride(from: 0, to: text.count, by: 4) {
            var group: UInt32 = 0
            var padding = 0
            for index in start..<start + 4 {
                let character = text[index]
                if character == UInt8(ascii: "="), start + 4 == text.count, index >= start + 2 {
                    padding += 1
                    group <<= 6
                    continue
                }
                let value = values[Int(character)]
                guard value != 255, padding == 0 else { return nil }
                group = group << 6 | UInt32(value)
            }
            guard group & (padding == 0 ? 0 : padding == 1 ? 0xff : 0xffff) == 0 else { return nil }
            for position in 0..<3 - padding {
                bytes.append(UInt8(truncatingIfNeeded: group >> UInt32(16 - 8 * position)))
            }
        }
        return bytes
    }
}
