// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model

/// A drop, or a flow that begins (`struct wgp_event`).
public struct DataplaneEvent: Sendable, Hashable {
    public enum Kind: UInt8, Sendable, Hashable, Codable {
        case drop = 1
        case flow = 2
        /// A packet at a hook; see `TraceEvent`.
        case trace = 3
    }

    public var kind: Kind
    /// CLOCK_MONOTONIC, nanoseconds.
    public var time: UInt64
    public var key: FlowKey
    public var bytes: UInt32
    public var hook: Hook
    /// Of a drop; of a trace what the packet was counted under last.
    public var reason: Reason?
}

/// Events for who listens (maps `events` and `event_control`).
public struct EventTable: Sendable {
    let control: BPFMap<UInt32, wgp_event_control>
    let ring: BPFRingMap

    init(_ source: some MapSource) throws(BPFError) {
        control = try source.open("event_control")
        ring = try source.openRing("events")
    }

    /// Events of a kind are made until a time of CLOCK_MONOTONIC; of drops one in `sample`.
    public func listen(to kind: DataplaneEvent.Kind, until: UInt64, sample: UInt32 = 1) throws(BPFError) {
        var value = try control.lookup(0) ?? wgp_event_control()
        switch kind {
        case .drop: (value.drops_until_ns, value.sample) = (until, sample)
        case .flow: value.flows_until_ns = until
        case .trace: value.traces_until_ns = until
        }
        try control.update(0, value)
    }

    /// Until when events of a kind are made; 0: they are not.
    public func listening(to kind: DataplaneEvent.Kind) throws(BPFError) -> UInt64 {
        let value = try control.lookup(0) ?? wgp_event_control()
        return switch kind {
        case .drop: value.drops_until_ns
        case .flow: value.flows_until_ns
        case .trace: value.traces_until_ns
        }
    }

    /// A reader of all events; there can be one at a time.
    public func reader() throws(BPFError) -> EventReader { try EventReader(ring) }
}

/// Reads events as they come.
public struct EventReader: ~Copyable {
    private var reader: BPFRingReader

    init(_ ring: BPFRingMap) throws(BPFError) { reader = try BPFRingReader(ring) }

    /// Waits for events, at most so long; returns those that are there.
    public mutating func next(withinMilliseconds limit: Int32) throws(BPFError) -> [DataplaneEvent] {
        try reader.poll(withinMilliseconds: limit).compactMap { bytes in
            guard bytes.count >= MemoryLayout<wgp_event>.size else { return nil }
            return DataplaneEvent(value(Array(bytes.prefix(MemoryLayout<wgp_event>.size))))
        }
    }
}

extension DataplaneEvent {
    init?(_ raw: wgp_event) {
        guard let kind = Kind(rawValue: raw.kind), let family = AddressFamily(rawValue: raw.family) else { return nil }
        self.init(
            kind: kind, time: raw.time_ns,
            key: FlowKey(
                source: IPAddress(family, field: raw.source), destination: IPAddress(family, field: raw.destination),
                sourcePort: UInt16(bigEndian: raw.source_port),
                destinationPort: UInt16(bigEndian: raw.destination_port), transport: raw.protocol,
                interface: raw.ifindex),
            bytes: raw.bytes, hook: Hook(rawValue: UInt32(raw.hook)),
            reason: raw.reason == 0 ? nil : Reason(rawValue: UInt32(raw.reason)))
    }
}

extension EventReader {
    /// The same for traces; other events are passed over.
    public mutating func nextTraces(withinMilliseconds limit: Int32) throws(BPFError) -> [TraceEvent] {
        try reader.poll(withinMilliseconds: limit).compactMap { bytes in
            guard bytes.count >= MemoryLayout<wgp_trace>.size else { return nil }
            return TraceEvent(value(Array(bytes.prefix(MemoryLayout<wgp_trace>.size))))
        }
    }
}

/// Where the later fragments of a reply go (maps `fragments4/6`).
public struct FragmentTable: Sendable {
    let ipv4: BPFMap<wgp_fragment_key4, wgp_fragment_value>
    let ipv6: BPFMap<wgp_fragment_key6, wgp_fragment_value>

    init(_ source: some MapSource) throws(BPFError) {
        ipv4 = try source.open("fragments4")
        ipv6 = try source.open("fragments6")
    }

    /// Source, destination, identification as it stands in the header, and the node's own address.
    public func entries() throws(BPFError) -> [(
        source: IPAddress, destination: IPAddress, identification: UInt32, address: IPAddress
    )] {
        try ipv4.entries().map {
            (
                IPAddress(networkOrder32: $0.key.source), IPAddress(networkOrder32: $0.key.destination),
                $0.key.identification, IPAddress(.ipv4, field: $0.value.address)
            )
        }
            + ipv6.entries().map {
                (
                    IPAddress(.ipv6, field: $0.key.source), IPAddress(.ipv6, field: $0.key.destination),
                    $0.key.identification, IPAddress(.ipv6, field: $0.value.address)
                )
            }
    }
}
