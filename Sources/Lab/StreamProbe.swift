// SPDX-License-Identifier: Apache-2.0

internal import Synchronization
public import SystemDescriptors
internal import SystemPackage

/// What a TCP stream has carried.
public struct StreamReport: Sendable, Codable, Equatable {
    /// Bytes given to the connection.
    public var sent = 0
    /// Of them those that came back, in order and right.
    public var returned = 0
    /// The first byte that was another than it should be; nil: all were right.
    public var wrongAt: Int?
    /// What ended the connection before its time; empty: nothing did.
    public var failure = ""

    /// Bytes that did not come back although the stream waited for them.
    public var lost: Int { sent - returned }
}

/// A TCP connection to an echo server that carries a numbered stream of bytes until stopped: each byte that
/// comes back is held against the one that was sent.
public final class StreamProbe: Sendable {
    private let stopped = StopFlag()
    private let sender: BackgroundThread
    private let receiver: BackgroundThread
    private let record: Record
    private let socket: InternetSocket

    private final class Record: Sendable {
        let state = Mutex(StreamReport())
    }

    /// Starts at once; connecting waits three seconds at most. `interval` between writes of `size` bytes, in
    /// microseconds.
    public init(
        in place: NamespaceFiles, to address: [UInt8], interval: UInt32 = 5000, size: Int = 512
    ) throws {
        let socket = try place.run {
            let socket = try InternetSocket(
                .tcp, isIPv6: address.count == 16, timeoutMilliseconds: 3000 * Lab.patience)
            try socket.connect(SocketAddress(address, port: Prober.port))
            try socket.setTimeout(milliseconds: 300)
            return socket
        }
        self.socket = socket
        let record = Record()
        let stopped = stopped
        self.record = record
        sender = BackgroundThread {
            var position = 0
            var pending: [UInt8] = []
            while !stopped.isRaised {
                if pending.isEmpty {
                    pending = (position..<position + size).map(Self.byte)
                    position += size
                }
                do {
                    let count = try socket.send(pending)
                    pending.removeFirst(count)
                    record.state.withLock { $0.sent += count }
                } catch {
                    // A full window: the far side is not reached now.
                    if error as? Errno != .wouldBlock {
                        record.state.withLock { if $0.failure.isEmpty { $0.failure = "send: \(error)" } }
                        return
                    }
                }
                sleepMicroseconds(interval)
            }
        }
        receiver = BackgroundThread {
            var end: UInt64?
            while true {
                // What is under way is waited for, as long as TCP may take to send it once more.
                if stopped.isRaised, end == nil {
                    end = monotonicNanoseconds() + UInt64(Lab.patience) * 15_000_000_000
                }
                let isWhole = record.state.withLock { $0.returned >= $0.sent }
                if let end, isWhole || monotonicNanoseconds() > end { return }
                do {
                    let (bytes, _) = try socket.receive()
                    if bytes.isEmpty {
                        record.state.withLock { if $0.failure.isEmpty { $0.failure = "closed by the far side" } }
                        return
                    }
                    record.state.withLock { state in
                        for byte in bytes {
                            if byte != Self.byte(state.returned), state.wrongAt == nil {
                                state.wrongAt = state.returned
                            }
                            state.returned += 1
                        }
                    }
                } catch {
                    if error as? Errno != .wouldBlock {
                        record.state.withLock { if $0.failure.isEmpty { $0.failure = "receive: \(error)" } }
                        return
                    }
                }
            }
        }
    }

    /// The byte at a place of the stream: no piece of it is like its neighbours.
    private static func byte(_ position: Int) -> UInt8 {
        UInt8(truncatingIfNeeded: position &* 2_654_435_761 >> 11 ^ position)
    }

    public var report: StreamReport { record.state.withLock { $0 } }

    /// Stops sending, waits for what is under way, and tells.
    public func stop() -> StreamReport {
        stopped.raise()
        sender.join()
        receiver.join()
        return report
    }
}
