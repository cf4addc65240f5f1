// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
public import Dashboard
public import Flows
internal import FlowExport
internal import Foundation
internal import Model
internal import SystemDescriptors
internal import WireGuard

/// What a node's page and metrics tell. On a thread of its own: a flow table can be large.
public actor NodeDashboard: DashboardSource {
    public nonisolated let title: String
    private let queue = KernelQueue(label: "dashboard")
    private let view: NodeView
    /// Of the running agent; nil: looked at from outside.
    private let agent: Agent?

    /// Many who ask at once are told the same.
    private var lastMetrics: (at: ContinuousClock.Instant, families: [MetricFamily])?

    /// Flows that are looked at one by one.
    static let flowLimit = 5000

    /// What only the agent itself knows.
    struct Agent: Sendable {
        var statistics: AgentStatistics
        var exporter: FlowExporter
        var audit: AuditKeeper
        var names: @Sendable () async -> AddressNames
    }

    public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    init(_ view: NodeView, agent: Agent?) {
        title = view.node
        self.view = view
        self.agent = agent
    }

    public func metrics(_ format: MetricText, node: String?) async throws -> String? {
        guard node == nil || node == title else { return nil }
        let now = ContinuousClock.now
        if let lastMetrics, now - lastMetrics.at < .seconds(1) { return format.render(lastMetrics.families) }
        var families = NodeMetrics(view, agent: agent?.statistics).families()
        if let agent {
            families += agent.exporter.state.families() + agent.audit.result.families(try? view.report())
        }
        lastMetrics = (.now, families)
        return format.render(families)
    }

    public func state() async throws -> DashboardState {
        let names = await agent?.names() ?? AddressNames()
        let report = try? view.report()
        var node = DashboardState.Node(name: title, mode: report?.mode ?? "unknown")
        if let report {
            node.modeReason = report.modeReason
            node.backend = report.backend
            node.steeringPath = report.steeringPath
            node.strictMode = report.strictMode
            node.hostEncryption = report.hostEncryption
            node.datastoreState = report.datastoreState
            node.settings = report.settings
            node.problems = report.problems.map {
                DashboardState.Trouble(severity: $0.severity.rawValue, text: "\($0)")
            }
            node.peers = peers(report)
        }
        node.agentRunning = view.isAgentRunning
        if let export = agent?.exporter.state, export.state != "off" {
            node.export = export.reason.isEmpty ? export.state : "\(export.state): \(export.reason)"
        }
        var state = DashboardState(title: title, time: Date().timeIntervalSince1970, nodes: [node])
        guard let maps = try? view.maps() else { return state }
        let readable = FlowNames(names: names, interfaces: view.interfaceNames(), node: title)
        let reader = FlowReader(maps)
        let pairs = (try? reader.pairs()) ?? []
        // The busiest, and what is between nodes by them: with more flows, a second's look would be too dear.
        let shown = (try? reader.biflows(of: Array(pairs.prefix(Self.flowLimit)), readable)) ?? []
        state.show(shown, of: pairs.count, node: title, now: view.monotonic)
        state.drops = ((try? maps.counters.readAll()) ?? []).filter(\.reason.isDrop).map {
            DashboardState.Drop(
                node: title, reason: $0.reason.name, hook: $0.hook.name, packets: $0.value.packets,
                text: $0.reason.text)
        }
        return state
    }

    private func peers(_ report: StatusReport) -> [DashboardState.Peer] {
        AddressFamily.allCases.flatMap { family -> [DashboardState.Peer] in
            guard let told = report[family] else { return [] }
            let device = (try? view.device(told.device))??.1
            return told.peers.map { peer in
                let carrier = device?.peers[peer.carrier ?? peer.publicKey]
                return DashboardState.Peer(
                    node: peer.node, family: family.description, device: told.device,
                    publicKey: peer.publicKey.description,
                    endpoint: carrier?.endpoint?.description ?? peer.endpoint, state: peer.state, action: peer.action,
                    latestHandshake: carrier?.lastHandshake.flatMap { $0 == 0 ? nil : Int64($0) },
                    receivedBytes: carrier?.receivedBytes ?? 0, sentBytes: carrier?.sentBytes ?? 0)
            }
        }
    }
}

extension ExportState {
    /// Metrics of the export, from when there is one.
    func families() -> [MetricFamily] {
        guard state != "off" || statistics.records + statistics.lostRecords + fileRecords + fileLost > 0 else {
            return []
        }
        func family(_ name: String, _ kind: MetricFamily.Kind, _ help: String, _ value: some BinaryInteger)
            -> MetricFamily
        {
            var family = MetricFamily(name, kind, help)
            family.add(value)
            return family
        }
        var records = MetricFamily("wgplane_export_records_total", .counter, "Records of flows exported, by where to.")
        records.add(statistics.records, ["to": "collector"])
        records.add(fileRecords, ["to": "file"])
        var lost = MetricFamily(
            "wgplane_export_lost_records_total", .counter, "Records of flows that could not be exported.")
        lost.add(statistics.lostRecords, ["to": "collector"])
        lost.add(fileLost, ["to": "file"])
        return [
            records, lost,
            family("wgplane_export_connected", .gauge, "1: the collector takes records.", state == "connected" ? 1 : 0),
            family(
                "wgplane_export_unconfirmed_records_total", .counter,
                "Records sent within seconds of the collector's closing the connection.", unconfirmed),
            family("wgplane_export_queued_records", .gauge, "Records that wait for the collector.", queued),
            family("wgplane_export_messages_total", .counter, "IPFIX messages sent.", statistics.messages),
            family(
                "wgplane_export_lost_packets_total", .counter, "Packets that lost records would have told of.",
                statistics.lostPackets),
            family(
                "wgplane_export_lost_bytes_total", .counter, "Bytes that lost records would have told of.",
                statistics.lostBytes),
        ]
    }
}
