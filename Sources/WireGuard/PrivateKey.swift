// SPDX-License-Identifier: Apache-2.0

public import Addresses
internal import SystemDescriptors

/// A WireGuard private key in libsodium's guarded memory: not swapped, not dumped,
/// wiped when it goes. It never becomes text except where a device is told.
public final class PrivateKey: Sendable, CustomStringConvertible, CustomDebugStringConvertible {
    /// 32 bytes.
    let memory: GuardedBytes

    /// Makes a key: 32 random bytes, clamped as Curve25519 wants (RFC 7748, section 5).
    public static func generate() -> PrivateKey {
        let memory = GuardedBytes(count: 32)
        memory.fillRandomly()
        memory.modify { bytes in
            bytes[0] = bytes[0] & 248
            bytes[31] = bytes[31] & 127 | 64
        }
        return PrivateKey(memory: memory)
    }

    /// Takes over 32 bytes and wipes the source; nil for another count or zeros.
    public init?(wiping bytes: inout [UInt8]) {
        memory = GuardedBytes(wiping: &bytes)
        guard memory.count == 32, !memory.isZero else { return nil }
    }

    /// The same of what is guarded already.
    init?(_ memory: GuardedBytes) {
        guard memory.count == 32, !memory.isZero else { return nil }
        self.memory = memory
    }

    private init(memory: GuardedBytes) { self.memory = memory }

    /// The public half: scalar multiplication of the base point.
    public var publicKey: PublicKey? { PublicKey(bytes: memory.scalarMultiplyBase()) }

    /// Hands the 32 bytes to `body`, which must not keep them.
    func withBytes<Result, Failure: Error>(
        _ body: ([UInt8]) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        var copy = memory.copy()
        defer { GuardedBytes.wipe(&copy) }
        return try body(copy)
    }

    public var description: String { "(hidden)" }
    public var debugDescription: String { "(hidden)" }
}
