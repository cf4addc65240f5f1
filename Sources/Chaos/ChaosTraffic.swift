// SPDX-License-Identifier: Apache-2.0

internal import Agent
internal import Foundation
internal import Lab
internal import Model
internal import SystemDescriptors
internal import WireGuard

/// What goes on while things go wrong: datagrams from each node to the next, a thousand times a second from the first one,
/// connections between all pods of different nodes, and a control that nobody's programs touch.
final class ChaosTraffic: Sendable {
    private let servers: [EchoServer]
    let probes: [(name: String, probe: LossProbe)]
    /// From a pod to itself: where it has a gap, the machine had no time for anybody.
    private let control: LossProbe
    private let tunnel: ControlTunnel
    private let streams: [(name: String, probe: StreamProbe)]

    private init(
        servers: [EchoServer], probes: [(String, LossProbe)], control: LossProbe, tunnel: ControlTunnel,
        streams: [(String, StreamProbe)]
    ) {
        self.servers = servers
        self.probes = probes.map { (name: $0.0, probe: $0.1) }
        self.control = control
        self.tunnel = tunnel
        self.streams = streams.map { (name: $0.0, probe: $0.1) }
    }

    /// Each node has two pods at least. Blocks for as long as connecting takes.
    static func start(_ lab: Lab, _ pods: [LabPod], connections: Int) throws -> ChaosTraffic {
        let servers = try pods.map {
            try EchoServer(in: lab.place($0.name), port: Prober.port, isIPv6: lab.spec.families.map { $0 == .ipv6 })
        }
        func probe(_ from: LabPod, _ to: LabPod, _ family: AddressFamily, _ interval: UInt32) throws -> LossProbe {
            let address = to.addresses.first { $0.family == family } ?? to.addresses[0]
            return try LossProbe(
                in: lab.place(from.name), to: address.bytes, interval: interval * UInt32(Lab.patience))
        }
        // Each node sends to the next; the first a thousand times a second in each family, the others less often.
        let first = (1...lab.spec.nodes).compactMap { number in pods.first { $0.node == number } }
        var probes: [(String, LossProbe)] = []
        for family in lab.spec.families {
            for (index, from) in first.enumerated() {
                let to = first[(index + 1) % first.count]
                probes.append(
                    (
                        "\(from.name) to \(to.name), \(family)",
                        try probe(from, to, family, index == 0 && family == lab.spec.families[0] ? 1000 : 20_000)
                    ))
            }
        }
        // Within one pod: no program of anybody's sees it.
        let control = try probe(pods[0], pods[0], lab.spec.families[0], 1000)
        let tunnel = try ControlTunnel(
            lab, backend: lab.status("node1")?.backend == BackendKind.kernel.rawValue ? .kernel : .userspace)
        let pairs = pods.flatMap { from in
            pods.filter { $0.node != from.node }.flatMap { to in to.addresses.map { (from, to, $0) } }
        }
        var streams: [(String, StreamProbe)] = []
        for number in 0..<connections {
            let (from, to, address) = pairs[number % pairs.count]
            streams.append(
                (
                    "\(from.name) to \(to.name), \(address.family)",
                    try StreamProbe(
                        in: lab.place(from.name), to: address.bytes, interval: 250_000 * UInt32(Lab.patience), size: 256
                    )
                ))
        }
        return ChaosTraffic(servers: servers, probes: probes, control: control, tunnel: tunnel, streams: streams)
    }

    /// Gaps of more than so many milliseconds that have begun since, but those in which the machine had no time for a
    /// control either.
    func gaps(since start: UInt64, over milliseconds: Double) -> [(name: String, gap: LossGap)] {
        // Longer ones are of another kind: a handshake that was lost.
        let excuses = (control.gaps + tunnel.gaps).filter { $0.milliseconds < 1000 }
        return probes.flatMap { name, probe in
            probe.gaps.filter { gap in
                gap.end > start && gap.milliseconds > milliseconds
                    && gap.milliseconds - Self.excused(gap, excuses) > milliseconds
            }.map { (name, $0) }
        }
    }

    /// Milliseconds of a gap in which a control had one too.
    private static func excused(_ gap: LossGap, _ excuses: [LossGap]) -> Double {
        var (covered, time) = (gap.start, 0.0)
        for excuse in excuses.filter({ $0.overlaps(gap) }).sorted(by: { $0.start < $1.start }) {
            let (start, end) = (max(covered, excuse.start), min(excuse.end, gap.end))
            guard end > start else { continue }
            time += LossGap(start: start, end: end).milliseconds
            covered = end
        }
        return time
    }

    /// Of the controls, in milliseconds: what this machine adds.
    var longestStall: Double { (control.gaps + tunnel.gaps).map(\.milliseconds).max() ?? 0 }

    /// Whether all that are judged have been answered a moment ago.
    var flows: Bool {
        let now = monotonicNanoseconds()
        return probes.allSatisfy { $0.probe.lastAnswer + 100_000_000 * UInt64(Lab.patience) > now }
    }

    /// Connections that have ended, or have carried a wrong byte.
    var broken: [String] {
        streams.compactMap { name, probe in
            let report = probe.report
            if let place = report.wrongAt { return "\(name): wrong byte at \(place)" }
            return report.failure.isEmpty ? nil : "\(name): \(report.failure)"
        }
    }

    /// Waits for what is under way, and returns the connections' and datagrams' sums.
    func stop() -> (sent: Int, lost: Int, bytes: Int, bytesLost: Int) {
        let datagrams = probes.map { $0.probe.stop() }
        _ = control.stop()
        tunnel.stop()
        let carried = streams.map { $0.probe.stop() }
        for server in servers { server.stop() }
        return (
            datagrams.reduce(0) { $0 + $1.sent }, datagrams.reduce(0) { $0 + $1.lost },
            carried.reduce(0) { $0 + $1.returned }, carried.reduce(0) { $0 + $1.lost }
        )
    }
}
