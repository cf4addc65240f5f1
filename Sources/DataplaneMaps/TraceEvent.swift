// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model

/// A packet as it leaves a hook (`struct wgp_trace`).
public struct TraceEvent: Sendable, Hashable {
    public enum Verdict: UInt8, Sendable, Hashable, Codable {
        /// Goes on as the stack or another program says.
        case pass = 0
        case drop = 1
        /// Into another device.
        case redirect = 2

        public var name: String { "\(self)" }
    }

    /// The packet as it came; `key.interface` is the hook's device.
    public var event: DataplaneEvent
    /// Bytes, from the link header on.
    public var length: Int
    /// Of the destination, where the hook looks at it.
    public var slot: Int
    /// Packets that it is made into; 1 without GSO.
    public var segments: Int
    public var verdict: Verdict
    /// `data` begins with an Ethernet header, else with IP's.
    public var isEthernet: Bool
    /// At most `WGP_TRACE_BYTES`.
    public var data: [UInt8]

    init?(_ raw: wgp_trace) {
        guard let event = DataplaneEvent(raw.event), event.kind == .trace, let verdict = Verdict(rawValue: raw.verdict)
        else { return nil }
        self.event = event
        self.verdict = verdict
        length = Int(raw.length)
        slot = Int(raw.slot)
        segments = Int(raw.segments)
        isEthernet = raw.is_ethernet != 0
        data = Array(memory(of: raw.data).prefix(Int(raw.captured)))
    }
}

/// Which packets are traced, in either direction.
public struct TraceFilter: Sendable, Hashable {
    /// Nil: any, as with all that follows.
    public var source: CIDR?
    public var destination: CIDR?
    public var family: AddressFamily?
    /// IP protocol number.
    public var transport: UInt8?
    public var sourcePort: UInt16?
    public var destinationPort: UInt16?

    public init(
        source: CIDR? = nil, destination: CIDR? = nil, transport: UInt8? = nil, sourcePort: UInt16? = nil,
        destinationPort: UInt16? = nil
    ) {
        self.source = source
        self.destination = destination
        self.transport = transport
        self.sourcePort = sourcePort
        self.destinationPort = destinationPort
        family = (source ?? destination)?.family
    }

    var raw: wgp_trace_filter {
        func words(_ prefix: CIDR?, mask: Bool) -> [UInt8] {
            guard let prefix else { return [UInt8](repeating: 0, count: 16) }
            let width = prefix.family == .ipv4 ? 4 : 16
            let bytes = (0..<width).map { index -> UInt8 in
                let bits = max(0, min(8, prefix.prefixLength - index * 8))
                let kept = UInt8(truncatingIfNeeded: 0xff00 >> bits)
                return mask ? kept : prefix.address.bytes[index] & kept
            }
            return bytes + [UInt8](repeating: 0, count: 16 - width)
        }
        let bytes =
            words(source, mask: false) + words(source, mask: true) + words(destination, mask: false)
            + words(destination, mask: true) + memory(of: (sourcePort ?? 0).bigEndian)
            + memory(of: (destinationPort ?? 0).bigEndian) + [family?.rawValue ?? 0, transport ?? 0, 0, 0]
        return value(bytes)
    }
}

extension EventTable {
    /// Packets that match are traced until a time of CLOCK_MONOTONIC.
    public func trace(_ filter: TraceFilter, until: UInt64) throws(BPFError) {
        var value = try control.lookup(0) ?? wgp_event_control()
        value.filter = filter.raw
        value.traces_until_ns = until
        try control.update(0, value)
    }
}
