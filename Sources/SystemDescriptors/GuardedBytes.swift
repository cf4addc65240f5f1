// SPDX-License-Identifier: Apache-2.0

internal import CSodium

/// Bytes of a secret in libsodium's guarded memory (`sodium_malloc`): locked, left
/// out of dumps, between guard pages, and wiped when it goes.
@safe
public final class GuardedBytes: @unchecked Sendable {
    // Written only while the one who made it fills it; after that read only.
    private let pointer: UnsafeMutablePointer<UInt8>
    public let count: Int

    /// Zeroed. Traps when the system has no memory to lock.
    public init(count: Int) {
        precondition(sodium_init() >= 0, "libsodium does not start")
        guard let memory = unsafe sodium_malloc(count) else {
            preconditionFailure("no memory for a secret")
        }
        unsafe pointer = memory.bindMemory(to: UInt8.self, capacity: count)
        self.count = count
        unsafe sodium_memzero(pointer, count)
    }

    /// Takes bytes over and overwrites them where they were.
    public convenience init(wiping bytes: inout [UInt8]) {
        self.init(count: bytes.count)
        unsafe bytes.withUnsafeBytes { unsafe take($0) }
        Self.wipe(&bytes)
    }

    /// Takes over what is in memory, and overwrites it there.
    public convenience init(wiping bytes: UnsafeMutableRawBufferPointer) {
        self.init(count: bytes.count)
        unsafe take(UnsafeRawBufferPointer(bytes))
        if let base = bytes.baseAddress { unsafe sodium_memzero(base, bytes.count) }
    }

    private func take(_ bytes: UnsafeRawBufferPointer) {
        if let base = bytes.baseAddress {
            unsafe pointer.update(from: base.assumingMemoryBound(to: UInt8.self), count: count)
        }
    }

    /// Writes the bytes over a part of an array, which the caller wipes.
    public func write(to bytes: inout [UInt8], at offset: Int) {
        precondition(offset >= 0 && offset + count <= bytes.count)
        unsafe bytes.withUnsafeMutableBytes { buffer in
            unsafe buffer.baseAddress?.advanced(by: offset).copyMemory(from: pointer, byteCount: count)
        }
    }

    /// Whether all are zero, in a time that does not tell which is not.
    public var isZero: Bool { unsafe sodium_is_zero(pointer, count) == 1 }

    deinit { unsafe sodium_free(pointer) }

    public func fillRandomly() { unsafe randombytes_buf(pointer, count) }

    /// Changes single bytes.
    public func modify(_ body: (GuardedView) -> Void) { body(GuardedView(self)) }

    /// A copy, which the caller wipes.
    public func copy() -> [UInt8] { (0..<count).map { unsafe pointer[$0] } }

    /// The Curve25519 base point times these 32 bytes (RFC 7748).
    public func scalarMultiplyBase() -> [UInt8] {
        precondition(count == 32)
        var result = [UInt8](repeating: 0, count: 32)
        _ = unsafe crypto_scalarmult_base(&result, pointer)
        return result
    }

    /// Overwrites an array so that the compiler cannot leave it out.
    public static func wipe(_ bytes: inout [UInt8]) {
        unsafe bytes.withUnsafeMutableBytes { buffer in
            if let base = buffer.baseAddress { unsafe sodium_memzero(base, buffer.count) }
        }
        bytes.removeAll()
    }

    /// Access to single bytes while they are filled.
    public struct GuardedView {
        private let owner: GuardedBytes
        fileprivate init(_ owner: GuardedBytes) { self.owner = owner }
        public subscript(index: Int) -> UInt8 {
            get {
                precondition((0..<owner.count).contains(index))
                return unsafe owner.pointer[index]
            }
            nonmutating set {
                precondition((0..<owner.count).contains(index))
                unsafe owner.pointer[index] = newValue
            }
        }
    }
}
