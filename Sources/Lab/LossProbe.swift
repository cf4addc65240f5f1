// SPDX-License-Identifier: Apache-2.0

internal import Synchronization
public import SystemDescriptors

/// What a probe has measured.
public struct LossReport: Sendable, Codable, Equatable {
    public var sent = 0
    public var answered = 0
    /// Longest time between two answers, in milliseconds.
    public var longestGap = 0.0
    /// Numbers of the packets that had no answer, in runs: "12-14 300".
    public var missing = ""

    public var lost: Int { sent - answered }
}

/// A time without answers, in nanoseconds of CLOCK_MONOTONIC.
public struct LossGap: Sendable, Hashable {
    public var start: UInt64
    public var end: UInt64
    public var milliseconds: Double { Double(end - start) / 1e6 }

    public init(start: UInt64, end: UInt64) {
        self.start = start
        self.end = end
    }

    public func overlaps(_ other: LossGap) -> Bool { start < other.end && other.start < end }
}

/// Numbered UDP packets at a steady rate to an echo server, until stopped.
public final class LossProbe: Sendable {
    private let stopped = StopFlag()
    private let sender: BackgroundThread
    private let receiver: BackgroundThread
    private let record: Record

    private final class Record: Sendable {
        let state = Mutex(State())
        struct State {
            var sent = 0
            var answered: Set<UInt32> = []
            var lastAnswer: UInt64 = 0
            var longestGap: UInt64 = 0
            var gaps: [LossGap] = []
        }
    }

    /// Gaps from this length on are kept, in nanoseconds.
    private static let shortestGap: UInt64 = 30_000_000

    /// Starts at once. `interval` in microseconds.
    public init(in place: NamespaceFiles, to address: [UInt8], interval: UInt32 = 1000) throws {
        let socket = try place.run {
            let socket = try InternetSocket(.udp, isIPv6: address.count == 16, timeoutMilliseconds: 300)
            try socket.setReceiveBuffer(8 << 20)
            try socket.connect(SocketAddress(address, port: Prober.port))
            return socket
        }
        let record = Record()
        let stopped = stopped
        self.record = record
        sender = BackgroundThread {
            var number: UInt32 = 0
            while !stopped.isRaised {
                let bytes = (0..<4).map { UInt8(truncatingIfNeeded: number >> (8 * UInt32($0))) }
                // A refusal (ICMP unreachable) is told to the next send, which is then tried again.
                if (try? socket.send(bytes)) == nil { _ = try? socket.send(bytes) }
                record.state.withLock { $0.sent += 1 }
                number += 1
                sleepMicroseconds(interval)
            }
        }
        receiver = BackgroundThread {
            while true {
                guard let (bytes, _) = try? socket.receive(), bytes.count == 4 else {
                    // What is under way gets the time-out to arrive.
                    if stopped.isRaised { return }
                    continue
                }
                let number = bytes.enumerated().reduce(UInt32(0)) { $0 | UInt32($1.element) << (8 * UInt32($1.offset)) }
                let now = monotonicNanoseconds()
                record.state.withLock { state in
                    state.answered.insert(number)
                    if state.lastAnswer != 0 {
                        state.longestGap = max(state.longestGap, now - state.lastAnswer)
                        if now - state.lastAnswer > Self.shortestGap {
                            state.gaps.append(LossGap(start: state.lastAnswer, end: now))
                        }
                    }
                    state.lastAnswer = now
                }
            }
        }
    }

    /// Times of 30 ms and more without an answer so far, the present one too.
    public var gaps: [LossGap] {
        record.state.withLock { state in
            let now = monotonicNanoseconds()
            guard state.lastAnswer != 0, now - state.lastAnswer > Self.shortestGap else { return state.gaps }
            return state.gaps + [LossGap(start: state.lastAnswer, end: now)]
        }
    }

    /// When the last answer came, in nanoseconds of CLOCK_MONOTONIC; 0: none has.
    public var lastAnswer: UInt64 { record.state.withLock(\.lastAnswer) }

    /// Packets sent so far.
    public var sent: Int { record.state.withLock { $0.sent } }

    public var report: LossReport {
        record.state.withLock { state in
            LossReport(
                sent: state.sent, answered: state.answered.count, longestGap: Double(state.longestGap) / 1e6,
                missing: Self.runs((0..<UInt32(state.sent)).filter { !state.answered.contains($0) }))
        }
    }

    private static func runs(_ numbers: [UInt32]) -> String {
        var runs: [ClosedRange<UInt32>] = []
        for number in numbers {
            if let last = runs.last, last.upperBound + 1 == number {
                runs[runs.count - 1] = last.lowerBound...number
            } else {
                runs.append(number...number)
            }
        }
        return runs.map { $0.count == 1 ? "\($0.lowerBound)" : "\($0.lowerBound)-\($0.upperBound)" }
            .joined(separator: " ")
    }

    /// Stops, waits for what is under way, and tells.
    public func stop() -> LossReport {
        stopped.raise()
        sender.join()
        receiver.join()
        return report
    }
}
