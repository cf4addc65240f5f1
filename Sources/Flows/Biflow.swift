// SPDX-License-Identifier: Apache-2.0

public import Model

/// Both directions of a flow as one record (a biflow, RFC 5103).
public struct Biflow: Sendable, Hashable, Codable {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or the number.
    public var transport: String
    /// IP protocol number.
    public var protocolNumber: UInt8
    /// The side that spoke first.
    public var source: IPAddress
    /// Of ICMP echo the identifier.
    public var sourcePort: UInt16
    public var destination: IPAddress
    /// Of ICMP type << 8 | code, as in NetFlow.
    public var destinationPort: UInt16
    public var packets: UInt64
    /// Of the network layer: IP header and up.
    public var bytes: UInt64
    public var reversePackets: UInt64
    public var reverseBytes: UInt64
    /// Nanoseconds of CLOCK_MONOTONIC.
    public var first: UInt64
    public var last: UInt64
    /// `tunnel`, `clear`, `mixed` (some packets in clear), `local`, `outside`.
    public var way: String
    /// Both directions went through WireGuard only.
    public var isEncrypted: Bool
    public var sourceName: String?
    public var destinationName: String?
    /// Node at either end; nil: unknown, or outside.
    public var sourceNode: String?
    public var destinationNode: String?
    /// Node at the other end.
    public var peer: String?
    /// Its key; nil: the flow does not go through WireGuard.
    public var peerKey: PublicKey?
    /// WireGuard device that carries it.
    public var lane: String?
    /// What a masquerade writes as the source, `address:port`.
    public var translation: String?
    /// Of TCP: `opening`, `established`, `closing`, `closed`, `reset`.
    public var state: String?
    /// All TCP flags seen, or'ed, of each direction (RFC 9293).
    public var tcpFlags: UInt8
    public var reverseTCPFlags: UInt8
    /// `tunnel`, `clear`, `stack`, `drop` and so on: what is done with its packets now.
    public var verdict: String
    /// Why the last of its packets that were dropped was.
    public var dropReason: String?
    /// Device that the source's packets come in by; empty: the node itself.
    public var device: String

    /// What tells it from others, from one look to the next.
    public struct Name: Sendable, Hashable {
        public var source: Endpoint
        public var destination: Endpoint
        public var protocolNumber: UInt8
        public var device: String
    }

    public var name: Name {
        Name(
            source: Endpoint(address: source, port: sourcePort),
            destination: Endpoint(address: destination, port: destinationPort), protocolNumber: protocolNumber,
            device: device)
    }

    /// Seconds since it began, at a time of CLOCK_MONOTONIC.
    public func age(at now: UInt64) -> Double { now > first ? Double(now - first) / 1e9 : 0 }

    /// Bits a second over its whole life, both directions.
    public var rate: Double {
        let life = max(Double(last - min(first, last)) / 1e9, 1)
        return Double(bytes + reverseBytes) * 8 / life
    }
}

/// How a TCP connection stands, by all flags that each side has sent.
func connectionState(_ flags: UInt8, _ reverse: UInt8) -> String {
    let (fin, syn, rst, ack): (UInt8, UInt8, UInt8, UInt8) = (0x01, 0x02, 0x04, 0x10)
    if (flags | reverse) & rst != 0 { return "reset" }
    if flags & fin != 0, reverse & fin != 0 { return "closed" }
    if (flags | reverse) & fin != 0 { return "closing" }
    // One seen in the middle has no SYN.
    if flags & ack != 0, reverse & ack != 0 || flags & syn == 0 { return "established" }
    return "opening"
}
