// SPDX-License-Identifier: Apache-2.0

public import DataplaneMaps
public import Model

/// Holds what the programs counted into WireGuard's devices, and out of them, against WireGuard's own counters.
///
/// Between a hook and WireGuard is nothing but the device. Where the two differ by more than what is allowed, somebody
/// takes packets away there, or puts some in.
public struct TunnelAudit: Sendable {
    /// What WireGuard has counted of one peer.
    public struct Transfer: Sendable, Hashable, Codable {
        public var received: UInt64
        public var sent: UInt64

        public init(received: UInt64, sent: UInt64) {
            self.received = received
            self.sent = sent
        }
    }

    /// One look at both.
    public struct Sample: Sendable {
        /// CLOCK_MONOTONIC, nanoseconds.
        public var time: UInt64
        /// The programs' counters before WireGuard's were read, and after.
        public var before: [Way: TunnelCount]
        public var after: [Way: TunnelCount]
        public var transfers: [AddressFamily: [PublicKey: Transfer]]
        /// Packets and bytes that hooks have sent to the devices, both families.
        public var steered: CounterValue

        public init(
            time: UInt64, before: [Way: TunnelCount], after: [Way: TunnelCount],
            transfers: [AddressFamily: [PublicKey: Transfer]], steered: CounterValue
        ) {
            self.time = time
            self.before = before
            self.after = after
            self.transfers = transfers
            self.steered = steered
        }
    }

    public struct Way: Sendable, Hashable, Comparable {
        public var direction: TunnelDirection
        public var family: AddressFamily

        public init(_ direction: TunnelDirection, _ family: AddressFamily) {
            self.direction = direction
            self.family = family
        }

        public static func < (a: Self, b: Self) -> Bool {
            (a.family, a.direction.rawValue) < (b.family, b.direction.rawValue)
        }
    }

    public enum Verdict: String, Sendable, Hashable, Codable {
        case closed
        /// WireGuard has less than the programs (out), or the programs less than WireGuard (in).
        case missing
        /// The other way round.
        case surplus
        /// Peers came or went meanwhile, and took their counters along.
        case unknown
    }

    /// What two looks say of one way.
    public struct Finding: Sendable, Hashable, Codable {
        public var direction: TunnelDirection
        public var family: String
        public var packets: UInt64
        /// Of IP.
        public var bytes: UInt64
        /// Of messages, as the programs have counted them: from, to.
        public var expectedLow: UInt64
        public var expectedHigh: UInt64
        /// As WireGuard has.
        public var measured: UInt64
        /// Bytes that handshakes, keep-alives and what is on its way may make.
        public var allowance: UInt64
        /// Of the expected; negative: WireGuard has less. 0 within low and high.
        public var difference: Double
        public var verdict: Verdict
    }

    /// Share of the expected bytes that a difference may have.
    public static let tolerance = 0.001
    /// What may be between the counters at a look: so many bytes, and so many seconds' worth of the load.
    static let inFlight = (bytes: 16_384.0, seconds: 0.005)
    /// Of handshakes and keep-alives, per peer: at once, and each second.
    static let overhead = (once: 1024.0, perSecond: 64.0)

    public static func findings(from first: Sample, to second: Sample) -> [Finding] {
        let ways = Set(first.before.keys).intersection(second.before.keys).sorted()
        return ways.compactMap { finding($0, first, second) }
    }

    private static func finding(_ way: Way, _ first: Sample, _ second: Sample) -> Finding? {
        guard let firstBefore = first.before[way], let firstAfter = first.after[way],
            let secondBefore = second.before[way], let secondAfter = second.after[way],
            let old = first.transfers[way.family], let new = second.transfers[way.family]
        else { return nil }
        func count(_ transfer: Transfer) -> UInt64 { way.direction == .out ? transfer.sent : transfer.received }
        var measured: UInt64 = 0
        var isKnown = old.keys.allSatisfy { new[$0] != nil } && secondAfter.messageBytes >= firstBefore.messageBytes
        for (key, transfer) in new {
            let before = old[key].map(count) ?? 0
            if count(transfer) < before { isKnown = false }
            measured += count(transfer) - min(before, count(transfer))
        }
        func since(_ now: UInt64, _ then: UInt64) -> UInt64 { now - min(now, then) }
        let low = since(secondBefore.messageBytes, firstAfter.messageBytes)
        let high =
            since(secondAfter.messageBytes, firstBefore.messageBytes) + since(secondAfter.slack, firstBefore.slack)
        let seconds = Double(second.time - min(first.time, second.time)) / 1e9
        let expected = max(Double(low), 1)
        let overhead = Double(new.count) * (Self.overhead.once + seconds * Self.overhead.perSecond)
        let queued = inFlight.bytes + expected / max(seconds, 0.1) * inFlight.seconds
        let allowance = UInt64(queued + overhead)
        let difference =
            measured < low
            ? -Double(low - measured) / expected : measured > high ? Double(measured - high) / expected : 0
        let excess = max(0, abs(difference) * expected - Double(allowance))
        var verdict = Verdict.closed
        if !isKnown {
            verdict = .unknown
        } else if excess > expected * tolerance {
            verdict = (difference < 0) == (way.direction == .out) ? .missing : .surplus
        }
        return Finding(
            direction: way.direction, family: way.family.description,
            packets: since(secondBefore.packets, firstBefore.packets),
            bytes: since(secondBefore.bytes, firstBefore.bytes), expectedLow: low, expectedHigh: high,
            measured: measured, allowance: allowance, difference: difference, verdict: verdict)
    }

    /// Packets that hooks have sent to a device and that have not come there; negative: others send there, too.
    public static func lostBefore(from first: Sample, to second: Sample) -> Int64 {
        func packets(_ counts: [Way: TunnelCount]) -> Int64 {
            counts.filter { $0.key.direction == .out }.reduce(0) { $0 + Int64($1.value.packets) }
        }
        return Int64(second.steered.packets) - Int64(first.steered.packets)
            - (packets(second.after) - packets(first.before))
    }
}
