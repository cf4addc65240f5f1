// SPDX-License-Identifier: Apache-2.0

internal import CLibbpf

/// A map's content at one moment: what an archive keeps of it.
///
/// Keys and values are the memory of the C structs that the map holds. Of arrays, elements that are all zero are
/// left out. Values of per-CPU maps stand one behind the other, each padded to 8 bytes.
public struct MapImage: Sendable, Hashable, Codable {
    public struct Entry: Sendable, Hashable, Codable {
        public var key: HexBytes
        public var value: HexBytes

        public init(key: HexBytes, value: HexBytes) {
            self.key = key
            self.value = value
        }
    }

    public var name: String
    public var information: BPFMapInformation
    public var entries: [Entry]

    public init(name: String, information: BPFMapInformation, entries: [Entry]) {
        self.name = name
        self.information = information
        self.entries = entries
    }
}

/// Bytes that are text of hexadecimal digits in JSON.
public struct HexBytes: Sendable, Hashable, Codable {
    public var bytes: [UInt8]

    public init(_ bytes: [UInt8]) { self.bytes = bytes }

    /// Two lower-case digits a byte, without separators.
    public var text: String {
        String(decoding: bytes.flatMap { [Self.digit($0 >> 4), Self.digit($0 & 15)] }, as: UTF8.self)
    }

    /// Nil when it is not pairs of hexadecimal digits.
    public init?(text: some StringProtocol) {
        let digits = Array(text.utf8)
        guard digits.count % 2 == 0 else { return nil }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(digits.count / 2)
        for index in stride(from: 0, to: digits.count, by: 2) {
            guard let high = Self.value(digits[index]), let low = Self.value(digits[index + 1]) else { return nil }
            bytes.append(high << 4 | low)
        }
        self.bytes = bytes
    }

    public init(from decoder: any Decoder) throws {
        let text = try decoder.singleValueContainer().decode(String.self)
        guard let value = Self(text: text) else {
            throw DecodingError.dataCorrupted(
                .init(codingPath: decoder.codingPath, debugDescription: "\"\(text.prefix(20))\" is no hexadecimal text")
            )
        }
        self = value
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(text)
    }

    private static func digit(_ value: UInt8) -> UInt8 { value < 10 ? 0x30 + value : 0x57 + value }

    private static func value(_ digit: UInt8) -> UInt8? {
        switch digit {
        case 0x30...0x39: digit - 0x30
        case 0x61...0x66: digit - 0x57
        case 0x41...0x46: digit - 0x37
        default: nil
        }
    }
}

/// Where maps are opened by name: a node's pins, or an archive.
public protocol MapSource: Sendable {
    /// Throws when there is no such map, or one of another layout.
    func open<Key, Value>(_ name: String) throws(BPFError) -> BPFMap<Key, Value>
    func openRing(_ name: String) throws(BPFError) -> BPFRingMap
}

/// A map, whatever its types.
public protocol AnyMap: Sendable {
    var name: String { get }
    var information: BPFMapInformation { get }
    /// Number of entries; of an array those that are not zero.
    func count() throws(BPFError) -> Int
    func image() throws(BPFError) -> MapImage
    /// Gives it a pin where there is none.
    func pin(at path: String) throws(BPFError)
}

extension BPFMap: AnyMap {
    public func pin(at path: String) throws(BPFError) { try descriptor.pin(at: path) }

    public func count() throws(BPFError) -> Int {
        if information.typeName.hasSuffix("array") { return try image().entries.count }
        // Batches are far cheaper than a call for each key.
        return information.isPerCPU ? try keys().count : try entries().count
    }
}

/// An image that answers as the kernel does.
final class ImageIndex: Sendable {
    let image: MapImage
    private let values: [[UInt8]: [UInt8]]

    init(_ image: MapImage) {
        self.image = image
        values = Dictionary(
            image.entries.map { ($0.key.bytes, $0.value.bytes) }, uniquingKeysWith: { first, _ in first })
    }

    var keys: [[UInt8]] { image.entries.map(\.key.bytes) }

    func lookup(_ key: [UInt8]) -> [UInt8]? {
        switch bpf_map_type(rawValue: image.information.type) {
        case BPF_MAP_TYPE_LPM_TRIE: longestPrefix(key)
        case BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY: values[key] ?? element(key)
        default: values[key]
        }
    }

    /// An element that was left out is all zero.
    private func element(_ key: [UInt8]) -> [UInt8]? {
        let index = unsafe key.withUnsafeBytes { unsafe $0.loadUnaligned(as: UInt32.self) }
        guard index < image.information.maximumEntries else { return nil }
        return [UInt8](repeating: 0, count: image.information.valueSize)
    }

    /// `struct bpf_lpm_trie_key`: the length in bits, host order, and the prefix.
    private func longestPrefix(_ key: [UInt8]) -> [UInt8]? {
        let length = unsafe key.withUnsafeBytes { unsafe $0.loadUnaligned(as: UInt32.self) }
        guard Int(length) <= (key.count - 4) * 8 else { return nil }
        for bits in (0...length).reversed() {
            var masked = unsafe withUnsafeBytes(of: bits) { unsafe Array($0) } + key.dropFirst(4)
            for index in 4..<masked.count {
                let kept = Int(bits) - (index - 4) * 8
                masked[index] &= kept >= 8 ? 0xff : kept <= 0 ? 0 : ~(0xff >> UInt8(kept))
            }
            if let value = values[masked] { return value }
        }
        return nil
    }
}
