// SPDX-License-Identifier: Apache-2.0

internal import Glibc
public import SystemPackage

/// The sole owner of a file descriptor: closes it when it goes out of scope.
public struct OwnedDescriptor: ~Copyable, Sendable {
    /// The descriptor's number, for system calls while the owner lives.
    public let rawValue: Int32

    /// Takes ownership of an open descriptor.
    public init(owning rawValue: Int32) {
        precondition(rawValue >= 0, "a descriptor is never negative")
        self.rawValue = rawValue
    }

    deinit {
        _ = Glibc.close(rawValue)
    }

    /// Closes now and reports what `close(2)` says.
    public consuming func close() throws(Errno) {
        let number = rawValue
        discard self
        guard Glibc.close(number) == 0 else { throw .current }
    }

    /// Gives the descriptor up without closing it.
    public consuming func release() -> Int32 {
        let number = rawValue
        discard self
        return number
    }
}

/// A descriptor that several values share; closed when the last of them goes.
public final class SharedDescriptor: Sendable {
    private let descriptor: OwnedDescriptor

    /// Takes over an owned descriptor.
    public init(_ descriptor: consuming OwnedDescriptor) {
        self.descriptor = descriptor
    }

    /// The descriptor's number.
    public var rawValue: Int32 { descriptor.rawValue }
}

extension Errno {
    /// `errno` of the calling thread, right after a failed call.
    public static var current: Errno { Errno(rawValue: errno) }
}

/// Calls until the result is not `EINTR`; a negative result becomes an `Errno`.
@discardableResult
public func retryingInterrupts<Result: SignedInteger>(_ body: () -> Result) throws(Errno) -> Result {
    while true {
        let result = body()
        if result >= 0 { return result }
        let error = Errno.current
        if error != .interrupted { throw error }
    }
}
