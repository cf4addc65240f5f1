// SPDX-License-Identifier: Apache-2.0

public import DataplaneMaps
internal import Flows
public import Foundation
public import Model
internal import SystemDescriptors

/// Packets of a flow at each hook, as they come. Nothing is sent, and nothing changes for them.
public struct PacketTracer: Sendable {
    /// A packet as it leaves a hook (`schema` 1).
    public struct Packet: Sendable, Encodable {
        public var schema = 1
        public var time: Date
        public var hook: String
        public var device: String
        /// `pass`, `drop`, `redirect`.
        public var verdict: String
        /// What it was counted under last: `tunnelled`, `decrypted`, the reason of a drop; nil: nothing.
        public var reason: String?
        public var transport: String
        /// As it came to the hook, before the hook changed anything.
        public var source: IPAddress
        public var sourcePort: UInt16
        public var sourceName: String?
        public var destination: IPAddress
        public var destinationPort: UInt16
        public var destinationName: String?
        /// Node that it is for, where the hook looks at that.
        public var peer: String?
        /// Of the network layer.
        public var bytes: UInt32
        /// Packets that it is made into.
        public var segments: Int

        /// `redirect into the tunnel to node2 (tunnelled)`.
        public var decision: String {
            let words =
                switch verdict {
                case "redirect": peer.map { "redirected to \($0)" } ?? "redirected"
                case "drop": "dropped"
                default: "goes on"
                }
            return reason.map { "\(words), \($0)" } ?? words
        }
    }

    private let view: NodeView
    private let filter: TraceFilter
    private let names: [IPAddress: String]

    public init(_ view: NodeView, filter: TraceFilter, names: [IPAddress: String]) {
        self.view = view
        self.filter = filter
        self.names = names
    }

    /// Hands over packets until `body` answers false, or for so many seconds (0: for ever). Blocks. Only one reader at a
    /// time, with `wgplane drops --follow` and its like.
    public func run(seconds: Int, _ body: (TraceEvent, Packet) throws -> Bool) throws {
        try session { reader, names in
            let started = monotonicNanoseconds()
            while seconds <= 0 || Double(monotonicNanoseconds() - started) / 1e9 < Double(seconds) {
                for trace in try reader(200) where try !body(trace, names(trace)) { return }
            }
        }
    }

    /// Runs with tracing on; `read` waits for packets, at most so many milliseconds.
    func session(
        _ body: (_ read: (Int32) throws -> [TraceEvent], _ describe: (TraceEvent) -> Packet) throws -> Void
    ) throws {
        let maps = try view.maps()
        let lock = try view.followEvents()
        var reader = try maps.events.reader()
        let devices = view.interfaceNames()
        let owners = try maps.destinations.slotOwners()
        defer { try? maps.events.trace(filter, until: 0) }
        _ = try reader.nextTraces(withinMilliseconds: 0)
        func read(_ limit: Int32) throws -> [TraceEvent] {
            // Renewed while somebody looks: killed, it leaves nothing on for long.
            try maps.events.trace(filter, until: monotonicNanoseconds() + 3_000_000_000)
            return try reader.nextTraces(withinMilliseconds: limit)
        }
        _ = try read(0)
        try body(read) { describe($0, devices, owners) }
        lock.release()
    }

    private func describe(_ trace: TraceEvent, _ devices: [UInt32: String], _ owners: [Int: SlotOwner]) -> Packet {
        let event = trace.event
        let age = Double(Int64(monotonicNanoseconds()) - Int64(event.time)) / 1e9
        let isSteering = event.hook == .fromPod || event.hook == .toUplink
        return Packet(
            time: Date(timeIntervalSinceNow: -age), hook: event.hook.name,
            device: devices[event.key.interface] ?? "\(event.key.interface)", verdict: trace.verdict.name,
            reason: event.reason?.name, transport: FlowReader.transportName(event.key.transport),
            source: event.key.source, sourcePort: event.key.sourcePort, sourceName: names[event.key.source],
            destination: event.key.destination, destinationPort: event.key.destinationPort,
            destinationName: names[event.key.destination], peer: isSteering ? owners[trace.slot]?.node : nil,
            bytes: event.bytes, segments: trace.segments)
    }
}
