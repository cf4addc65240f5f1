// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
public import Flows
internal import Foundation
internal import Model
internal import SystemDescriptors
internal import WireGuard

/// The metrics of a node: Felix's four families by their names and labels, and ours (`wgplane_…`).
///
/// Labels are nodes, devices, hooks, reasons, maps: none of them grows with traffic.
public struct NodeMetrics: Sendable {
    private let view: NodeView
    /// Of the running agent; nil: asked from outside.
    private let agent: AgentStatistics?

    public init(_ view: NodeView, agent: AgentStatistics? = nil) {
        self.view = view
        self.agent = agent
    }

    public func families() -> [MetricFamily] {
        var result: [MetricFamily] = []
        let report = try? view.report()
        if let report {
            result += felix(report) + state(report) + peers(report)
        }
        if let maps = try? view.maps() { result += packets(maps) + tables(maps) }
        result += programs()
        if let agent { result += agent.families() }
        return result
    }

    // MARK: Felix's

    private func felix(_ report: StatusReport) -> [MetricFamily] {
        guard report.settings.first(where: { $0.name == "prometheusWireGuardMetricsEnabled" })?.value != "false" else {
            return []
        }
        var meta = MetricFamily(
            "wireguard_meta", .gauge, "Device / interface information for a felix/calico node, values are in labels")
        var received = MetricFamily(
            "wireguard_bytes_rcvd", .counter,
            "Current bytes received from a peer identified by a peer public key and endpoint")
        var sent = MetricFamily(
            "wireguard_bytes_sent", .counter,
            "Current bytes sent to a peer identified by a peer public key and endpoint")
        var handshake = MetricFamily(
            "wireguard_latest_handshake_seconds", .gauge, "Last handshake with a peer, unix timestamp in seconds.")
        for family in AddressFamily.allCases {
            guard let told = report[family], let (_, state) = try? view.device(told.device) else { continue }
            let own = state.publicKey?.description ?? ""
            meta.add(
                1,
                [
                    "hostname": report.node, "iface": told.device, "listen_port": "\(state.listeningPort)",
                    "public_key": own,
                ])
            for (key, peer) in state.peers.sorted(by: { $0.key < $1.key }) {
                let labels: KeyValuePairs<String, String> = [
                    "hostname": report.node, "peer_endpoint": peer.endpoint?.description ?? "",
                    "peer_key": key.description, "public_key": own,
                ]
                received.add(peer.receivedBytes, labels)
                sent.add(peer.sentBytes, labels)
                handshake.add(peer.lastHandshake ?? 0, labels)
            }
        }
        return [meta, received, sent, handshake]
    }

    // MARK: Ours

    private func state(_ report: StatusReport) -> [MetricFamily] {
        var mode = MetricFamily("wgplane_mode", .gauge, "1 for the mode that the node is in.")
        for name in DataplaneMode.allCases.map(\.rawValue) { mode.add(report.mode == name ? 1 : 0, ["mode": name]) }
        var strict = MetricFamily("wgplane_strict_mode", .gauge, "1: what cannot be encrypted is dropped.")
        strict.add(report.strictMode ? 1 : 0)
        var running = MetricFamily("wgplane_agent_running", .gauge, "1: an agent runs; the data plane goes on without.")
        running.add(view.isAgentRunning ? 1 : 0)
        var datastore = MetricFamily("wgplane_datastore_state", .gauge, "1 for the state that the datastore is in.")
        for name in ["ready", "waiting", "unavailable", "stale"] {
            datastore.add(report.datastoreState == name ? 1 : 0, ["state": name])
        }
        var problems = MetricFamily("wgplane_problems", .gauge, "Problems that the agent tells of, by severity.")
        for severity in [Problem.Severity.error, .warning] {
            problems.add(report.problems.count { $0.severity == severity }, ["severity": severity.rawValue])
        }
        return [mode, strict, running, datastore, problems]
    }

    private func peers(_ report: StatusReport) -> [MetricFamily] {
        var states = MetricFamily("wgplane_peers", .gauge, "Peers by family and state.")
        var info = MetricFamily(
            "wgplane_peer_info", .gauge, "1: which node a peer's key is of, to join Felix's families by peer_key.")
        var clear = MetricFamily("wgplane_unencrypted_nodes", .gauge, "Nodes with pods that packets go to in clear.")
        for family in AddressFamily.allCases {
            guard let told = report[family] else { continue }
            for state in PeerTable.Readiness.allCases.map(\.rawValue) {
                states.add(
                    told.peers.count { $0.state == state }, ["family": family.description, "state": state])
            }
            for peer in told.peers {
                info.add(
                    1,
                    ["family": family.description, "node": peer.node, "peer_key": peer.publicKey.description])
            }
            clear.add(told.unencryptedNodes.count, ["family": family.description])
        }
        return [states, info, clear]
    }

    private func packets(_ maps: NodeMaps) -> [MetricFamily] {
        var packets = MetricFamily("wgplane_packets_total", .counter, "Packets by hook and the way that they went.")
        var bytes = MetricFamily("wgplane_bytes_total", .counter, "Bytes of IP by hook and the way that they went.")
        var dropped = MetricFamily("wgplane_dropped_packets_total", .counter, "Packets dropped, by hook and reason.")
        var droppedBytes = MetricFamily(
            "wgplane_dropped_bytes_total", .counter, "Bytes of IP dropped, by hook and reason.")
        for counter in (try? maps.counters.readAll()) ?? [] {
            let hook = counter.hook.name
            if counter.reason.isDrop {
                dropped.add(counter.value.packets, ["hook": hook, "reason": counter.reason.name])
                droppedBytes.add(counter.value.bytes, ["hook": hook, "reason": counter.reason.name])
            } else {
                packets.add(counter.value.packets, ["hook": hook, "way": counter.reason.name])
                bytes.add(counter.value.bytes, ["hook": hook, "way": counter.reason.name])
            }
        }
        return [packets, bytes, dropped, droppedBytes]
    }

    private func tables(_ maps: NodeMaps) -> [MetricFamily] {
        var entries = MetricFamily(
            "wgplane_map_entries", .gauge, "Entries of a BPF map; of an array those that are not zero.")
        var capacity = MetricFamily("wgplane_map_capacity", .gauge, "Entries that a BPF map has room for.")
        var memory = MetricFamily("wgplane_map_memory_bytes", .gauge, "Kernel memory of a BPF map.")
        var flows = MetricFamily("wgplane_flows", .gauge, "Flows in the table, each direction by itself.")
        var mappings = MetricFamily("wgplane_masquerade_mappings", .gauge, "Mappings of the masquerade.")
        for (name, information, count) in (try? maps.list()) ?? [] {
            let family = name.hasSuffix("6") ? AddressFamily.ipv6.description : AddressFamily.ipv4.description
            if name == "flows4" || name == "flows6" { flows.add(count, ["family": family]) }
            // Each has two halves.
            if name == "masquerade4" || name == "masquerade6" { mappings.add(count / 2, ["family": family]) }
            entries.add(count, ["map": name])
            capacity.add(information.maximumEntries, ["map": name])
            if let bytes = information.memory { memory.add(bytes, ["map": name]) }
        }
        return [entries, capacity, memory, flows, mappings]
    }

    private func programs() -> [MetricFamily] {
        var runs = MetricFamily(
            "wgplane_program_runs_total", .counter, "Runs of a hook's program while kernel.bpf_stats_enabled is 1.")
        var seconds = MetricFamily(
            "wgplane_program_run_seconds_total", .counter,
            "Time in a hook's program while kernel.bpf_stats_enabled is 1.")
        for (hook, use) in view.programUse() {
            runs.add(use.runs, ["hook": hook])
            seconds.add(Double(use.nanoseconds) / 1e9, ["hook": hook])
        }
        return [runs, seconds]
    }
}
