// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import SystemDescriptors

/// Builds the payload of one netlink message: a fixed header, then attributes
/// (`<linux/netlink.h>`). Multi-byte integers are in host byte order unless an
/// attribute says otherwise.
public struct NetlinkPayload: Sendable {
    public private(set) var bytes: [UInt8] = []
    /// What is written over zeros at an offset, in the message that is sent and nowhere else.
    private(set) var secrets: [(offset: Int, secret: GuardedBytes)] = []

    public init() {}

    /// Starts with a family's fixed header, padded to 4 bytes.
    public init<Header: BitwiseCopyable>(_ header: Header) {
        append(header)
        align()
    }

    /// Appends the memory of a value.
    public mutating func append<Value: BitwiseCopyable>(_ value: Value) {
        unsafe withUnsafeBytes(of: value) { unsafe bytes.append(contentsOf: $0) }
    }

    public mutating func attribute(_ type: some BinaryInteger, bytes payload: [UInt8]) {
        append(nlattr(nla_len: UInt16(4 + payload.count), nla_type: UInt16(type)))
        bytes += payload
        align()
    }

    public mutating func attribute<Value: BitwiseCopyable>(_ type: some BinaryInteger, value: Value) {
        append(nlattr(nla_len: UInt16(4 + MemoryLayout<Value>.size), nla_type: UInt16(type)))
        append(value)
        align()
    }

    /// A secret, of which no copy is made but in the message, which is wiped when it has been sent. Not within `nested`.
    public mutating func attribute(_ type: some BinaryInteger, secret: GuardedBytes) {
        secrets.append((bytes.count + 4, secret))
        attribute(type, bytes: [UInt8](repeating: 0, count: secret.count))
    }

    /// A zero-terminated text.
    public mutating func attribute(_ type: some BinaryInteger, text: String) {
        attribute(type, bytes: Array(text.utf8) + [0])
    }

    /// An attribute that holds attributes.
    public mutating func nested(_ type: some BinaryInteger, _ body: (inout NetlinkPayload) -> Void) {
        var inner = NetlinkPayload()
        body(&inner)
        attribute(UInt16(type) | UInt16(NLA_F_NESTED), bytes: inner.bytes)
    }

    private mutating func align() {
        while bytes.count % 4 != 0 { bytes.append(0) }
    }
}

/// One attribute as it was read.
public struct NetlinkAttribute: Sendable {
    /// Without the nested and byte-order flags.
    public var type: Int
    public var payload: ArraySlice<UInt8>

    /// An integer in host byte order; nil when the payload is shorter.
    public func integer<Value: FixedWidthInteger & BitwiseCopyable>(_ type: Value.Type = Value.self) -> Value? {
        payload.value()
    }

    /// Text up to the first zero byte.
    public var text: String { String(decoding: payload.prefix { $0 != 0 }, as: UTF8.self) }

    /// The attributes inside.
    public var nested: NetlinkAttributes { NetlinkAttributes(payload) }
}

/// Attributes in a run of bytes. Whatever does not fit its stated length ends the
/// run: hostile input is read short, never past its end.
public struct NetlinkAttributes: Sequence, IteratorProtocol, Sendable {
    private var rest: ArraySlice<UInt8>

    public init(_ bytes: ArraySlice<UInt8>) { rest = bytes }

    public mutating func next() -> NetlinkAttribute? {
        guard let header: nlattr = rest.value(), header.nla_len >= 4, Int(header.nla_len) <= rest.count else {
            return nil
        }
        let payload = rest.dropFirst(4).prefix(Int(header.nla_len) - 4)
        rest = rest.dropFirst((Int(header.nla_len) + 3) & ~3)
        return NetlinkAttribute(type: Int(header.nla_type) & Int(attributeTypeMask), payload: payload)
    }
}

/// Bits of `nla_type` that are the type (`NLA_TYPE_MASK`, whose macro does not import).
let attributeTypeMask: UInt16 = 0x3fff

extension ArraySlice<UInt8> {
    /// Reads a value from the first bytes; nil when there are too few.
    public func value<Value: BitwiseCopyable>(_ type: Value.Type = Value.self) -> Value? {
        guard count >= MemoryLayout<Value>.size else { return nil }
        return unsafe withUnsafeBytes { unsafe $0.loadUnaligned(as: Value.self) }
    }
}

/// An attribute of the first level of messages that holds a secret: it is taken into guarded memory, and overwritten
/// where it was received.
public final class HiddenAttribute {
    let type: Int
    /// Of the family's fixed header, bytes.
    let headerSize: Int
    /// Of the message that had it last.
    public private(set) var secret: GuardedBytes?

    init(_ type: Int, headerSize: Int) {
        self.type = type
        self.headerSize = (headerSize + 3) & ~3
    }

    /// Hides it in a datagram of messages.
    func hide(in datagram: UnsafeMutableRawBufferPointer) {
        var start = 0
        while start + 16 <= datagram.count {
            let length = unsafe Int(datagram.loadUnaligned(fromByteOffset: start, as: UInt32.self))
            guard length >= 16, start + length <= datagram.count else { return }
            var offset = start + 16 + headerSize
            while offset + 4 <= start + length {
                let size = unsafe Int(datagram.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
                let type = unsafe datagram.loadUnaligned(fromByteOffset: offset + 2, as: UInt16.self)
                guard size >= 4, offset + size <= start + length else { break }
                if Int(type & attributeTypeMask) == self.type {
                    secret = unsafe GuardedBytes(
                        wiping: UnsafeMutableRawBufferPointer(rebasing: datagram[offset + 4..<offset + size]))
                }
                offset += (size + 3) & ~3
            }
            start += (length + 3) & ~3
        }
    }
}

/// A message as the kernel sent it.
public struct NetlinkMessage: Sendable {
    /// `nlmsg_type`.
    public var type: UInt16
    public var payload: ArraySlice<UInt8>

    /// The fixed header of the family, and the attributes behind it.
    public func parse<Header: BitwiseCopyable>(_ header: Header.Type) -> (Header, NetlinkAttributes)? {
        guard let value: Header = payload.value() else { return nil }
        return (value, NetlinkAttributes(payload.dropFirst((MemoryLayout<Header>.size + 3) & ~3)))
    }
}

/// What the kernel, or the socket, refused.
public enum NetlinkError: Error, CustomStringConvertible, Sendable {
    /// The kernel answered with an error; the text is its extended acknowledgement, if any.
    case refused(operation: String, errno: Int32, message: String)
    /// A system call on the socket failed.
    case socket(operation: String, errno: Int32)
    /// An answer could not be understood.
    case malformed(operation: String)
    /// The kernel has no such generic netlink family.
    case noFamily(String)

    public var errno: Int32 {
        switch self {
        case .refused(_, let errno, _), .socket(_, let errno): errno
        case .malformed: 0
        case .noFamily: ENOENT
        }
    }

    public var description: String {
        switch self {
        case .refused(let operation, let errno, let message):
            "\(operation): \(Self.text(errno))" + (message.isEmpty ? "" : " (\(message))")
        case .socket(let operation, let errno): "\(operation): \(Self.text(errno))"
        case .malformed(let operation): "\(operation): the kernel's answer is malformed"
        case .noFamily(let name): "generic netlink family \"\(name)\": the kernel has none"
        }
    }
}
