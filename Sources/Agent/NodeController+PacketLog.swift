// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Flows
internal import Logging
internal import Model
internal import Netlink
internal import Steering
internal import SystemDescriptors

/// Packets in the agent's log, as `bpfLogLevel` says: drops, and flows as they begin.
extension NodeController {
    /// At most so many lines a second; the counters tell all.
    static let packetLogLines = 20

    /// Call it once a second. Reads what the programs have told since, unless a command follows: then that
    /// one has it.
    func logPackets() {
        let level = inForce?.packetLog ?? .off
        guard level != .off, mode.mode == .ebpf, let events = steering?.maps.events,
            let lock = try? takeFileLock(options.eventsLock, withinMilliseconds: 0)
        else { return }
        logPackets(events, withFlows: level == .debug)
        lock.release()
    }

    private func logPackets(_ events: EventTable, withFlows: Bool) {
        do {
            let until = monotonicNanoseconds() + 3_000_000_000
            try events.listen(to: .drop, until: until)
            try events.listen(to: .flow, until: withFlows ? until : 0)
            var reader = try events.reader()
            let told = try reader.next(withinMilliseconds: 0)
            let links = told.isEmpty ? [] : (try? session().links()) ?? []
            for event in told.prefix(Self.packetLogLines) {
                let device = links.first { $0.index == event.key.interface }?.name ?? "\(event.key.interface)"
                logger.info(
                    event.kind == .drop ? "packet is dropped" : "flow begins",
                    metadata: [
                        "reason": "\(event.reason?.name ?? "")", "hook": "\(event.hook.name)", "device": "\(device)",
                        "transport": "\(FlowReader.transportName(event.key.transport))",
                        "source": "\(event.key.source)", "sourcePort": "\(event.key.sourcePort)",
                        "destination": "\(event.key.destination)", "destinationPort": "\(event.key.destinationPort)",
                        "bytes": "\(event.bytes)",
                    ])
            }
            if told.count > Self.packetLogLines {
                logger.info("packets are not all told", metadata: ["more": "\(told.count - Self.packetLogLines)"])
            }
        } catch {
            logger.warning("packets cannot be followed", metadata: ["error": "\(error)"])
        }
    }
}
