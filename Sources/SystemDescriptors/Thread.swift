// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Synchronization

/// A value that one thread hands to another once.
final class Gate<Value: Sendable>: Sendable {
    private let value = Mutex<Value?>(nil)
    private let semaphore = SemaphoreBox()

    func open(_ newValue: Value) {
        value.withLock { if $0 == nil { $0 = newValue } }
        semaphore.signal()
    }

    func wait() -> Value {
        while true {
            semaphore.wait()
            if let result = value.withLock({ $0 }) {
                // For whoever waits beside or after.
                semaphore.signal()
                return result
            }
        }
    }
}

/// A POSIX semaphore at a stable address.
@safe private final class SemaphoreBox: @unchecked Sendable {
    // sem_t is made to be shared between threads (sem_overview(7)).
    private let pointer = UnsafeMutablePointer<sem_t>.allocate(capacity: 1)

    init() { unsafe sem_init(pointer, 0, 0) }
    deinit {
        unsafe sem_destroy(pointer)
        unsafe pointer.deallocate()
    }
    func signal() { unsafe sem_post(pointer) }
    func wait() { while unsafe sem_wait(pointer) != 0 {} }
}

/// A thread of its own, for what changes the thread itself (namespaces).
struct Worker: ~Copyable, Sendable {
    private var thread = pthread_t()

    init(_ body: @escaping @Sendable () -> Void) {
        let box = unsafe Unmanaged.passRetained(Box(body))
        let error = unsafe pthread_create(
            &thread, nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                unsafe Unmanaged<Box>.fromOpaque(argument).takeRetainedValue().body()
                return nil
            }, box.toOpaque())
        precondition(error == 0, "the system refuses another thread")
    }

    borrowing func join() {
        _ = pthread_join(thread, nil)
    }

    borrowing func detach() {
        _ = pthread_detach(thread)
    }

    private final class Box: Sendable {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
}

/// A thread of its own that somebody waits for in the end: for blocking loops of tests and the lab.
public final class BackgroundThread: Sendable {
    private let ended = Gate<Void>()

    public init(_ body: @escaping @Sendable () -> Void) {
        let ended = ended
        let held = Held(body)
        let worker = Worker {
            held.run()
            ended.open(())
        }
        worker.detach()
    }

    /// Lets go of the body, and of the sockets that it holds, before anybody is told of its end.
    private final class Held: Sendable {
        private let body: Mutex<(@Sendable () -> Void)?>

        init(_ body: @escaping @Sendable () -> Void) { self.body = Mutex(body) }

        @inline(never) func run() {
            let body = body.withLock { held in
                defer { held = nil }
                return held
            }
            body?()
        }
    }

    /// Waits for its end.
    public func join() { ended.wait() }
}

/// Starts a thread that nobody waits for.
public func startThread(_ body: @escaping @Sendable () -> Void) {
    let worker = Worker(body)
    worker.detach()
}

/// Sleeps on the calling thread, which must not be one of the cooperative pool.
public func sleepMicroseconds(_ count: UInt32) { usleep(count) }

extension Task where Success == Never, Failure == Never {
    /// Runs blocking work on a thread of its own and suspends until it is done.
    public static func detachedThread<Value: Sendable>(
        _ body: @escaping @Sendable () throws -> Value
    ) async throws -> Value {
        let (results, continuation) = AsyncStream.makeStream(of: Result<Value, any Error>.self)
        startThread {
            continuation.yield(Result { try body() })
            continuation.finish()
        }
        for await result in results { return try result.get() }
        throw _Concurrency.CancellationError()
    }
}
