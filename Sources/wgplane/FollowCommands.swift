// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DataplaneMaps
import Datastore
import Flows
import Foundation
import Model
import SystemDescriptors

struct DropsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "drops", abstract: "Shows what was dropped on this node and why; --follow, packet by packet.",
        usage: "wgplane drops [options]",
        discussion: """
            Without --follow: the counters of every reason, since WireGuard was switched on. With it:
            each drop as it happens, or one in --sample. One command at a time can follow.
            """)

    @OptionGroup var source: ViewOptions
    @OptionGroup var datastore: DatastoreOptions
    @OptionGroup var output: OutputOptions
    @Flag(help: "Tell each drop as it happens, until interrupted.") var follow = false
    @Option(help: "Tell one of so many drops.") var sample: UInt32 = 1
    @Option(help: "End after so many seconds of following; 0: never.") var seconds = 0

    struct Row: Encodable {
        var reason: String
        var hook: String
        var packets: UInt64
        var bytes: UInt64
        var meaning: String
    }

    func run() async throws {
        if follow {
            let view = try source.liveView("--follow")
            let follower = EventFollower(
                view: view, kind: .drop, sample: max(1, sample), seconds: seconds, format: output.format,
                names: await view.names(try datastore.open()))
            return try await Task.detachedThread { try follower.run() }
        }
        let rows = try source.view().maps().counters.readAll().filter(\.reason.isDrop).map {
            Row(
                reason: $0.reason.name, hook: $0.hook.name, packets: $0.value.packets, bytes: $0.value.bytes,
                meaning: $0.reason.text)
        }
        if try Output.structured(rows, output.format) { return }
        Output.table(
            ["REASON", "HOOK", "PACKETS", "BYTES", "MEANING"],
            rows.map { [$0.reason, $0.hook, "\($0.packets)", "\($0.bytes)", $0.meaning] }, empty: "No drops.")
    }
}

/// Prints events as they come, until interrupted.
struct EventFollower: Sendable {
    var view: NodeView
    var kind: DataplaneEvent.Kind
    var sample: UInt32 = 1
    var seconds: Int
    var format: OutputFormat
    var names: [IPAddress: String]

    /// The JSON form, a line each; `schema` 1.
    struct Line: Encodable {
        var schema = 1
        var event: String
        var time: Date
        var transport: String
        var source: IPAddress
        var sourcePort: UInt16
        var sourceName: String?
        var destination: IPAddress
        var destinationPort: UInt16
        var destinationName: String?
        var device: String
        var hook: String
        var bytes: UInt32
        var reason: String?
    }

    func run() throws {
        let events = try view.maps().events
        let lock = try view.followEvents()
        var reader = try events.reader()
        let devices = view.interfaceNames()
        let started = monotonicNanoseconds()
        defer { try? events.listen(to: kind, until: 0, sample: 1) }
        // What is left of another's listening is not told.
        _ = try reader.next(withinMilliseconds: 0)
        while seconds == 0 || monotonicNanoseconds() - started < UInt64(seconds) * 1_000_000_000 {
            // Renewed while somebody listens: killed, it leaves nothing on for long.
            try events.listen(to: kind, until: monotonicNanoseconds() + 3_000_000_000, sample: sample)
            for event in try reader.next(withinMilliseconds: 500) where event.kind == kind {
                try print(line(event, devices))
            }
        }
        lock.release()
    }

    private func line(_ event: DataplaneEvent, _ devices: [UInt32: String]) -> Line {
        let age = Double(Int64(monotonicNanoseconds()) - Int64(event.time)) / 1e9
        return Line(
            event: "\(event.kind)", time: Date(timeIntervalSinceNow: -age),
            transport: FlowReader.transportName(event.key.transport), source: event.key.source,
            sourcePort: event.key.sourcePort, sourceName: names[event.key.source],
            destination: event.key.destination, destinationPort: event.key.destinationPort,
            destinationName: names[event.key.destination],
            device: event.key.interface == 0 ? "" : devices[event.key.interface] ?? "\(event.key.interface)",
            hook: event.hook.name, bytes: event.bytes, reason: event.reason?.name)
    }

    private func print(_ line: Line) throws {
        if format != .table {
            try Output.line(line)
            return
        }
        let time = Output.clock(line.time)
        let source = Output.side(line.sourceName, line.source, line.sourcePort)
        let destination = Output.side(line.destinationName, line.destination, line.destinationPort)
        let device = line.device.isEmpty ? "the node" : line.device
        Swift.print(
            "\(time) \(line.reason ?? "new flow") at \(line.hook): \(line.transport) \(source) > \(destination), \(line.bytes) bytes, from \(device)"
        )
    }
}
