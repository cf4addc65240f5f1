// SPDX-License-Identifier: Apache-2.0

@unsafe @preconcurrency internal import Dispatch
internal import Synchronization

/// The executor of actors that make blocking system calls: a serial queue of its
/// own, so that the cooperative pool never blocks.
public final class KernelQueue: SerialExecutor {
    private let queue: DispatchQueue

    /// Makes a queue; the label shows in debuggers.
    public init(label: String) {
        queue = DispatchQueue(label: label)
    }

    public func enqueue(_ job: consuming ExecutorJob) {
        let unowned = UnownedJob(job)
        queue.async {
            unsafe unowned.runSynchronously(on: self.asUnownedSerialExecutor())
        }
    }

    public func asUnownedSerialExecutor() -> UnownedSerialExecutor {
        unsafe UnownedSerialExecutor(ordinary: self)
    }
}

/// Tells that a descriptor has become readable; ticks that pile up are one tick.
///
/// The consumer drains the descriptor itself, so nothing is lost when it is late, and says then that it has:
/// until it does there is no other tick, nor anything that looks whether there is something to read still.
public final class ReadinessEvents: Sendable {
    // DispatchSource may be suspended, resumed and cancelled from any thread (dispatch_source_create(3)).
    private let source: any DispatchSourceRead
    /// Suspended, which a source must not be when it is let go.
    private let isWaiting = Mutex(false)
    /// One element at first, and whenever there may be something to read.
    public let ticks: AsyncStream<Void>

    /// Watches a non-blocking descriptor, which is kept open as long as this lives.
    public init(_ descriptor: SharedDescriptor, label: String) {
        let (stream, continuation) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        ticks = stream
        continuation.yield()
        source = DispatchSource.makeReadSource(
            fileDescriptor: descriptor.rawValue, queue: DispatchQueue(label: label))
        source.setEventHandler { [weak self] in
            self?.wait()
            continuation.yield()
        }
        source.setCancelHandler {
            withExtendedLifetime(descriptor) {}
            continuation.finish()
        }
        source.activate()
    }

    private func wait() {
        isWaiting.withLock { isWaiting in
            if !isWaiting { source.suspend() }
            isWaiting = true
        }
    }

    /// What there was is read: the next tick tells of more.
    public func drained() {
        isWaiting.withLock { isWaiting in
            if isWaiting { source.resume() }
            isWaiting = false
        }
    }

    deinit {
        drained()
        source.cancel()
    }
}

/// An alarm that can be set anew: one at a time, the last setting holds.
public final class Alarm: Sendable {
    private let source: any DispatchSourceTimer

    /// `ring` is called on a queue of the alarm's own.
    public init(label: String, ring: @escaping @Sendable () -> Void) {
        source = DispatchSource.makeTimerSource(queue: DispatchQueue(label: label))
        source.setEventHandler(handler: ring)
        source.activate()
    }

    deinit { source.cancel() }

    /// Rings once after a time from now.
    public func set(after duration: Duration) {
        let parts = duration.components
        let nanoseconds = parts.seconds * 1_000_000_000 + parts.attoseconds / 1_000_000_000
        source.schedule(deadline: .now() + .nanoseconds(Int(max(0, nanoseconds))))
    }
}
