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
        /// Unix time in seconds of the last handshake; 0: there was none.
        public var handshake: Int64

        public init(received: UInt64, sent: UInt64, handshake: Int64 = 0) {
            self.received = received
            self.sent = sent
            self.handshake = handshake
        }

        /// Whether it was asked for a handshake and had no session for a while up to `wall`: what was sent to it
        /// meanwhile has waited, or was dropped.
        func hasWaited(since before: Transfer, wall: Int64) -> Bool {
            guard sent != before.sent else { return false }
            let end = handshake == before.handshake ? wall : handshake
            return before.handshake == 0 || end - before.handshake > handshakeLife
        }
    }

    /// A WireGuard device at a look.
    public struct Device: Sendable, Hashable {
        public var isUserspace: Bool
        public var mtu: UInt32
        /// Packets that it has dropped, or had no peer or endpoint for.
        public var dropped: UInt64
        public var errors: UInt64

        public init(isUserspace: Bool, mtu: UInt32, dropped: UInt64, errors: UInt64) {
            self.isUserspace = isUserspace
            self.mtu = mtu
            self.dropped = dropped
            self.errors = errors
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
        /// As far as it could be looked at.
        public var devices: [AddressFamily: Device]
        /// Unix time in seconds.
        public var wall: Int64
        /// Packets and bytes that hooks have sent to the devices, both families: at the look's begin, and at its end.
        public var steered: CounterValue
        public var steeredAfter: CounterValue

        public init(
            time: UInt64, before: [Way: TunnelCount], after: [Way: TunnelCount],
            transfers: [AddressFamily: [PublicKey: Transfer]], devices: [AddressFamily: Device] = [:], wall: Int64 = 0,
            steered: CounterValue, steeredAfter: CounterValue
        ) {
            self.devices = devices
            self.wall = wall
            self.time = time
            self.before = before
            self.after = after
            self.transfers = transfers
            self.steered = steered
            self.steeredAfter = steeredAfter
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
        /// Peers went meanwhile, and took their counters along; or a device that tells less than the kernel's has
        /// dropped what was sent to a peer that did not answer.
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
        /// Bytes that handshakes, keep-alives, what is on its way and what the device tells of having dropped may make.
        public var allowance: UInt64
        /// Of the expected; negative: WireGuard has less. 0 within low and high.
        public var difference: Double
        public var verdict: Verdict
    }

    /// Share of the expected bytes that a difference may have.
    public static let tolerance = 0.001
    /// What may be between the counters at a look: so many bytes, and so many seconds' worth of the load.
    static let inFlight = (bytes: 16_384.0, seconds: 0.005)
    /// Packets that a TUN device holds for wireguard-go (its txqueuelen).
    static let userspaceQueue = 500.0
    /// Of handshakes and keep-alives, per peer: at once, and each second.
    static let overhead = (once: 1024.0, perSecond: 64.0)
    /// Seconds that a session lasts without another handshake (REJECT_AFTER_TIME; WireGuard, section 6.1).
    public static let handshakeLife: Int64 = 180
    /// Packets that may wait for a peer's handshake (MAX_STAGED_PACKETS), and bytes that one may have before it is cut
    /// into segments.
    static let staged = (packets: 128.0, bytes: 65_568.0)

    /// Looks at a node over its time: each is held against the oldest that is no older than a window or, where looks are
    /// farther apart than that, against the one before it.
    public struct History: Sendable {
        /// CLOCK_MONOTONIC, nanoseconds.
        private let window: UInt64
        private var samples: [Sample] = []

        /// - Parameter seconds: of the window.
        public init(seconds: UInt64) { window = seconds * 1_000_000_000 }

        public mutating func forget() { samples = [] }

        /// What is found since; empty at the first look, and where nothing can be told until the next one.
        public mutating func add(_ sample: Sample) -> [Finding] {
            samples.append(sample)
            while samples.count > 2, sample.time - min(samples[0].time, sample.time) > window { samples.removeFirst() }
            guard samples.count > 1 else { return [] }
            let findings = TunnelAudit.findings(from: samples[0], to: sample)
            // Counters that peers have taken along begin anew.
            if findings.contains(where: { $0.verdict == .unknown }) { samples = [sample] }
            return findings
        }
    }

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
        let unsent = way.direction == .out ? unsent(way.family, first, second) : (bytes: 0, isKnown: true)
        let allowance = UInt64(queued + overhead + unsent.bytes)
        let difference =
            measured < low
            ? -Double(low - measured) / expected : measured > high ? Double(measured - high) / expected : 0
        let excess = max(0, abs(difference) * expected - Double(allowance))
        var verdict = Verdict.closed
        if !isKnown {
            verdict = .unknown
        } else if excess > expected * tolerance {
            verdict = (difference < 0) == (way.direction == .out) ? .missing : .surplus
            if verdict == .missing, !unsent.isKnown { verdict = .unknown }
        }
        return Finding(
            direction: way.direction, family: way.family.description,
            packets: since(secondBefore.packets, firstBefore.packets),
            bytes: since(secondBefore.bytes, firstBefore.bytes), expectedLow: low, expectedHigh: high,
            measured: measured, allowance: allowance, difference: difference, verdict: verdict)
    }

    /// Bytes of what a device was given and has not sent, at most: it waits for handshakes, or was dropped there, and
    /// the device says so.
    private static func unsent(
        _ family: AddressFamily, _ first: Sample, _ second: Sample
    ) -> (bytes: Double, isKnown: Bool) {
        let waiting = (second.transfers[family] ?? [:]).filter { key, transfer in
            let before = first.transfers[family]?[key] ?? Transfer(received: 0, sent: 0)
            return transfer.hasWaited(since: before, wall: second.wall)
        }
        guard let device = second.devices[family], let before = first.devices[family] else {
            return (0, waiting.isEmpty)
        }
        let packet = Double(device.mtu) + 48
        let queued = device.isUserspace ? userspaceQueue * packet : 0
        let dropped = Double(device.dropped - min(before.dropped, device.dropped))
        let errors = Double(device.errors - min(before.errors, device.errors))
        return (
            queued + Double(waiting.count) * staged.packets * packet + dropped
                * (device.isUserspace ? staged.bytes : packet)
                + errors * staged.bytes, waiting.isEmpty || !device.isUserspace
        )
    }

    /// Packets that hooks have sent to a device and that have not come there; negative: others send there, too.
    public static func lostBefore(from first: Sample, to second: Sample) -> Int64 {
        func packets(_ counts: [Way: TunnelCount]) -> Int64 {
            counts.filter { $0.key.direction == .out }.reduce(0) { $0 + Int64($1.value.packets) }
        }
        return Int64(second.steered.packets) - Int64(first.steeredAfter.packets)
            - (packets(second.after) - packets(first.before))
    }
}
