// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
public import Flows
internal import Foundation
internal import Logging
internal import Model
internal import Netlink
internal import Synchronization
internal import SystemDescriptors
internal import WireGuard

/// Looks at what an audit compares, on a node.
public struct NodeAudit: Sendable {
    private let view: NodeView

    public init(_ view: NodeView) { self.view = view }

    /// One look. Throws in another mode than eBPF, which has no such counters.
    public func sample() throws -> TunnelAudit.Sample { try look().sample }

    /// The same, with the devices that it was made of.
    func look() throws -> (sample: TunnelAudit.Sample, states: [AddressFamily: DeviceState]) {
        var states: [AddressFamily: DeviceState] = [:]
        let maps = try view.maps()
        let report = try view.report()
        let steered = try maps.counters.total(.tunnelled)
        var before: [TunnelAudit.Way: TunnelCount] = [:]
        var after: [TunnelAudit.Way: TunnelCount] = [:]
        var transfers: [AddressFamily: [PublicKey: TunnelAudit.Transfer]] = [:]
        var devices: [AddressFamily: TunnelAudit.Device] = [:]
        let route = try? RouteSession()
        for family in AddressFamily.allCases {
            guard let name = report[family]?.device, let look = try look(name, family, maps) else { continue }
            let (backend, state) = look.device
            states[family] = state
            before.merge(look.before) { $1 }
            after.merge(look.after) { $1 }
            transfers[family] = state.peers.mapValues {
                TunnelAudit.Transfer(
                    received: $0.receivedBytes, sent: $0.sentBytes, handshake: Int64($0.lastHandshake ?? 0))
            }
            // After WireGuard's own counters: what is dropped in between is a packet too much, not one too few.
            if let unsent = try? route?.unsent(named: name), let link = try? route?.link(named: name) {
                devices[family] = TunnelAudit.Device(
                    isUserspace: backend != .kernel, mtu: link.mtu, dropped: unsent.dropped, errors: unsent.errors)
            }
        }
        let sample = TunnelAudit.Sample(
            time: view.monotonic, before: before, after: after, transfers: transfers, devices: devices,
            wall: Int64(view.date.timeIntervalSince1970), steered: steered,
            steeredAfter: try maps.counters.total(.tunnelled))
        return (sample, states)
    }

    private typealias Counts = [TunnelAudit.Way: TunnelCount]

    private struct Look {
        var before: Counts
        var after: Counts
        var device: (backend: BackendKind, state: DeviceState)

        /// Bytes that passed meanwhile, of which nothing can be told.
        var unsure: UInt64 {
            before.reduce(0) { $0 + ((after[$1.key]?.messageBytes ?? $1.value.messageBytes) &- $1.value.messageBytes) }
        }
    }

    /// WireGuard's counters between two readings of ours, as near as can be: a busy processor may come in between, so
    /// the nearest of some is taken.
    private func look(_ name: String, _ family: AddressFamily, _ maps: NodeMaps) throws -> Look? {
        var nearest: Look?
        for _ in 1...8 {
            let before = try counts(maps, family)
            guard let device = try view.device(name) else { return nil }
            let look = Look(before: before, after: try counts(maps, family), device: device)
            if look.unsure < nearest?.unsure ?? .max { nearest = look }
            if look.unsure < 16_384 { break }
        }
        return nearest
    }

    private func counts(_ maps: NodeMaps, _ family: AddressFamily) throws -> Counts {
        try maps.tunnel.readAll().filter { $0.family == family }
            .reduce(into: [:]) { $0[.init($1.direction, $1.family)] = $1.count }
    }
}

/// The agent's own audit: WireGuard's counters over the last minute, and peers that do not answer.
actor AuditKeeper {
    private let options: AgentOptions
    private let logger: Logger
    private let queue = KernelQueue(label: "audit")
    private var history = TunnelAudit.History(seconds: 65)
    private var watch = StallWatch()
    private var pace: Pace
    private let holder = Mutex(Result())

    struct Result: Sendable {
        var findings: [TunnelAudit.Finding] = []
        var stalls: [StallWatch.Stall] = []
    }

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }
    nonisolated var result: Result { holder.withLock { $0 } }

    init(_ options: AgentOptions, logger: Logger) {
        self.options = options
        self.logger = logger
        pace = Pace(.seconds(9), factor: 1000, longest: options.longestPeriod)
    }

    /// Call it every ten seconds or so, with the agent's report.
    func look(_ report: StatusReport?) {
        guard let report, pace.isDue else { return }
        let mark = pace.begin()
        defer { pace.end(mark) }
        let view = NodeView(options, told: report)
        guard let (sample, states) = try? NodeAudit(view).look() else {
            history.forget()
            holder.withLock { $0.findings = [] }
            // Other modes have peers too.
            let devices = AddressFamily.allCases.compactMap { family in
                report[family].flatMap { try? view.device($0.device)?.1 }.map { (family, $0) }
            }
            findStalls(view, report, Dictionary(uniqueKeysWithValues: devices))
            return
        }
        let findings = history.add(sample)
        let old = holder.withLock { state in
            defer { state.findings = findings }
            return state.findings
        }
        for finding in findings where Self.isAlarm(finding) && !old.contains(where: { Self.isSame($0, finding) }) {
            logger.error(
                "audit: WireGuard's counters and the programs' differ",
                metadata: [
                    "direction": "\(finding.direction.rawValue)", "family": "\(finding.family)",
                    "difference": "\(finding.difference)", "verdict": "\(finding.verdict.rawValue)",
                ])
        }
        findStalls(view, report, states)
    }

    static func isAlarm(_ finding: TunnelAudit.Finding) -> Bool {
        finding.verdict == .missing || finding.verdict == .surplus
    }

    private static func isSame(_ a: TunnelAudit.Finding, _ b: TunnelAudit.Finding) -> Bool {
        a.direction == b.direction && a.family == b.family && a.verdict == b.verdict
    }

    private func findStalls(_ view: NodeView, _ report: StatusReport, _ states: [AddressFamily: DeviceState]) {
        var peers: [StallWatch.Peer] = []
        for (family, state) in states {
            let nodes = Dictionary(
                (report[family]?.peers ?? []).map { ($0.publicKey, $0.node) }, uniquingKeysWith: { first, _ in first })
            let now = Int64(view.date.timeIntervalSince1970)
            for (key, peer) in state.peers {
                peers.append(
                    StallWatch.Peer(
                        family: family, key: key, node: nodes[key] ?? "\(key)",
                        transfer: .init(received: peer.receivedBytes, sent: peer.sentBytes),
                        handshakeAge: peer.lastHandshake.flatMap { $0 == 0 ? nil : now - Int64($0) }))
            }
        }
        let stalls = watch.look(peers, now: view.monotonic)
        holder.withLock { $0.stalls = stalls }
    }
}

extension AuditKeeper.Result {
    func families(_ report: StatusReport?) -> [MetricFamily] {
        var difference = MetricFamily(
            "wgplane_audit_difference_ratio", .gauge,
            "WireGuard's bytes less the programs' over about the last minute, of the programs'; 0 within what cannot be told."
        )
        var alarm = MetricFamily(
            "wgplane_audit_alarm", .gauge, "1: they differ by more than handshakes and keep-alives make.")
        for finding in findings {
            difference.add(
                finding.difference, ["direction": finding.direction.rawValue, "family": finding.family])
            alarm.add(
                AuditKeeper.isAlarm(finding) ? 1 : 0,
                ["direction": finding.direction.rawValue, "family": finding.family])
        }
        var stalled = MetricFamily(
            "wgplane_peer_stalled", .gauge, "1: the peer is sent to and does not answer, and its handshake is old.")
        for family in AddressFamily.allCases {
            let silent = Set(stalls.filter { $0.family == family }.map(\.node))
            for peer in report?[family]?.peers ?? [] where peer.state != PeerTable.Readiness.retiring.rawValue {
                stalled.add(silent.contains(peer.node) ? 1 : 0, ["family": family.description, "node": peer.node])
            }
        }
        return [difference, alarm, stalled]
    }

    var problems: [Problem] {
        findings.filter(AuditKeeper.isAlarm).map { finding in
            let isLoss = finding.verdict == .missing
            return Problem(
                resource: "Audit", field: "\(finding.family) \(finding.direction.rawValue)",
                value: "\((finding.difference * 10_000).rounded() / 100) %",
                message: isLoss
                    ? "packets are taken away between the programs and WireGuard"
                    : "WireGuard carries packets that the programs have not seen",
                remedy:
                    "look at filters, qdiscs and programs of the WireGuard device (`tc -s qdisc`, `tc filter show dev DEVICE egress`, `bpftool net`); see `wgplane audit`"
            )
        }
            + stalls.prefix(Self.stallLimit).map { stall in
                let age =
                    stall.handshakeAge.map { "its last handshake is more than \(Self.coarse($0)) old" }
                    ?? "there was no handshake that counts"
                return Problem(
                    .warning, resource: "Node/\(stall.node)", field: "\(stall.family) peer",
                    message: "is sent to and has not answered for more than \(Self.coarse(Int64(stall.seconds))), "
                        + "and \(age)",
                    remedy: "see `wgplane doctor --peer \(stall.node)`")
            } + furtherStalls
    }

    /// Peers that do not answer, told one by one; the others are counted.
    static let stallLimit = 20

    private var furtherStalls: [Problem] {
        guard stalls.count > Self.stallLimit else { return [] }
        return [
            Problem(
                .warning, resource: "Audit", field: "peers", value: "\(stalls.count)",
                message: "peers in all are sent to and do not answer",
                remedy: "is this node's uplink whole, and UDP let through? see `wgplane status` and `wgplane doctor`")
        ]
    }

    /// An age in steps, so that it is no news at every look.
    static func coarse(_ seconds: Int64) -> String {
        switch seconds {
        case ..<60: "30 s"
        case ..<300: "1 min"
        case ..<1800: "5 min"
        case ..<7200: "30 min"
        case ..<86400: "2 h"
        default: "a day"
        }
    }
}
