// SPDX-License-Identifier: Apache-2.0

internal import CDataplaneABI
internal import Model

/// From C memory to Swift's values and back: addresses stand in network byte order.

/// The bytes of any plain C value.
func memory<Value: BitwiseCopyable>(of value: Value) -> [UInt8] {
    unsafe withUnsafeBytes(of: value) { unsafe Array($0) }
}

/// A C value from exactly its bytes.
func value<Value: BitwiseCopyable>(_ bytes: [UInt8], as type: Value.Type = Value.self) -> Value {
    precondition(bytes.count == MemoryLayout<Value>.size)
    return unsafe bytes.withUnsafeBytes { unsafe $0.loadUnaligned(as: Value.self) }
}

extension IPAddress {
    /// The `__be32` of an IPv4 address.
    var networkOrder32: UInt32 { UInt32(truncatingIfNeeded: bits).bigEndian }

    init(networkOrder32 value: UInt32) { self.init(family: .ipv4, bits: UInt128(UInt32(bigEndian: value))) }

    /// An address from an array field of 16 bytes, the first 4 for IPv4.
    init<Field: BitwiseCopyable>(_ family: AddressFamily, field: Field) {
        precondition(MemoryLayout<Field>.size >= 16)
        let (first, second) = unsafe withUnsafeBytes(of: field) {
            unsafe (
                UInt64(bigEndian: $0.loadUnaligned(as: UInt64.self)),
                UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
            )
        }
        self.init(
            family: family,
            bits: family == .ipv4 ? UInt128(first >> 32) : UInt128(first) << 64 | UInt128(second))
    }
}

extension wgp_address4 {
    init(_ address: IPAddress) { self.init(address: address.networkOrder32) }
    var model: IPAddress { IPAddress(networkOrder32: address) }
}

extension wgp_address6 {
    init(_ address: IPAddress) { self = value(address.bytes) }
    var model: IPAddress { IPAddress(.ipv6, field: address) }
}

extension wgp_prefix4 {
    init(_ cidr: CIDR) {
        self.init(prefix_length: UInt32(cidr.prefixLength), address: cidr.address.networkOrder32)
    }
    var model: CIDR? {
        CIDR(masking: IPAddress(networkOrder32: address), prefixLength: Int(prefix_length))
    }
}

extension wgp_prefix6 {
    init(_ cidr: CIDR) {
        self = value(memory(of: UInt32(cidr.prefixLength)) + cidr.address.bytes)
    }
    var model: CIDR? { CIDR(masking: IPAddress(.ipv6, field: address), prefixLength: Int(prefix_length)) }
}
