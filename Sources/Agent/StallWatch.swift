// SPDX-License-Identifier: Apache-2.0

internal import Flows
internal import Model
internal import WireGuard

/// Finds peers that do not answer: bytes out rising, bytes in flat, and no handshake that counts.
struct StallWatch: Sendable {
    struct Peer: Sendable {
        var family: AddressFamily
        var key: PublicKey
        var node: String
        var transfer: TunnelAudit.Transfer
        /// Seconds; nil: there was none.
        var handshakeAge: Int64?
    }

    struct Stall: Sendable, Hashable {
        var family: AddressFamily
        var node: String
        /// Since it has answered last, or since that has been looked at.
        var seconds: Int
        var handshakeAge: Int64?
    }

    private struct Name: Hashable {
        var family: AddressFamily
        var key: PublicKey
    }

    private struct Silence {
        var transfer: TunnelAudit.Transfer
        /// CLOCK_MONOTONIC of the look at which it had answered last.
        var since: UInt64
        var isSentTo = false
    }

    private var silences: [Name: Silence] = [:]

    /// Bytes between two looks that keep-alives may make; a handshake that is asked for makes more (148 each).
    static let keepAlives: UInt64 = 96
    /// How long a stalled peer must have been silent, in seconds.
    static let patience = 30.0

    /// `now`: CLOCK_MONOTONIC in nanoseconds.
    mutating func look(_ peers: [Peer], now: UInt64) -> [Stall] {
        var stalls: [Stall] = []
        var next: [Name: Silence] = [:]
        for peer in peers {
            let name = Name(family: peer.family, key: peer.key)
            var silence = silences[name] ?? Silence(transfer: peer.transfer, since: now)
            if peer.transfer.received != silence.transfer.received {
                silence = Silence(transfer: peer.transfer, since: now)
            } else if peer.transfer.sent != silence.transfer.sent {
                // The keep-alive that answers the last data is answered by nobody.
                let grown = peer.transfer.sent - min(silence.transfer.sent, peer.transfer.sent)
                if grown > Self.keepAlives { silence.isSentTo = true }
                silence.transfer = peer.transfer
            }
            next[name] = silence
            let seconds = Double(now - min(now, silence.since)) / 1e9
            // A handshake of the future is none: the clock went back.
            let age = peer.handshakeAge.map { $0 < -DeviceState.harmlessLead ? .max : $0 } ?? .max
            if silence.isSentTo, seconds >= Self.patience, age > TunnelAudit.handshakeLife {
                stalls.append(
                    Stall(
                        family: peer.family, node: peer.node, seconds: Int(seconds),
                        handshakeAge: age == .max ? nil : age))
            }
        }
        silences = next
        return stalls.sorted { ($0.family, $0.node) < ($1.family, $1.node) }
    }
}
