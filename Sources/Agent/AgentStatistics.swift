// SPDX-License-Identifier: Apache-2.0

internal import Flows
internal import SystemDescriptors
internal import Synchronization

/// What a running agent counts of its own work; for its metrics.
public final class AgentStatistics: Sendable {
    private struct State {
        var passes: UInt64 = 0
        var failedPasses: UInt64 = 0
        var workloadChanges = 0
        var seconds = 0.0
        /// Passes that took at most so long, by `bounds`.
        var buckets = [UInt64](repeating: 0, count: AgentStatistics.bounds.count)
        var endedFlows: UInt64 = 0
        var endedMappings: UInt64 = 0
        var flowCycles: UInt64 = 0
        var flowCycleSeconds = 0.0
        var lastFlowCycle = 0.0
        /// CLOCK_MONOTONIC; 0: never.
        var lastHeard: UInt64 = 0
        var answers: UInt64 = 0
        var netlinkChanges = 0
        var mapWrites = 0
        var peerChanges = 0
    }

    private let state = Mutex(State())
    private let started = monotonicNanoseconds()

    static let bounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5]

    public init() {}

    func notePass(nanoseconds: UInt64, failed: Bool, work: StatusReport.Work) {
        let seconds = Double(nanoseconds) / 1e9
        state.withLock { state in
            state.passes += 1
            if failed { state.failedPasses += 1 }
            state.seconds += seconds
            for (index, bound) in Self.bounds.enumerated() where seconds <= bound { state.buckets[index] += 1 }
            (state.netlinkChanges, state.mapWrites) = (work.netlinkChanges, work.mapWrites)
            state.peerChanges = work.peerChanges
        }
    }

    func noteDatastore() {
        state.withLock { state in
            state.lastHeard = monotonicNanoseconds()
            state.answers += 1
        }
    }

    func noteEnded(flows: Int, mappings: Int) {
        state.withLock { state in
            state.endedFlows += UInt64(flows)
            state.endedMappings += UInt64(mappings)
        }
    }

    /// Pods' addresses whose routes were changed without a pass.
    func noteWorkloads(addresses: Int) { state.withLock { $0.workloadChanges += addresses } }

    func noteFlowCycle(nanoseconds: UInt64) {
        state.withLock { state in
            state.flowCycles += 1
            state.lastFlowCycle = Double(nanoseconds) / 1e9
            state.flowCycleSeconds += state.lastFlowCycle
        }
    }

    func families() -> [MetricFamily] {
        let state = state.withLock { $0 }
        let now = monotonicNanoseconds()
        func counter(_ name: String, _ help: String, _ value: some BinaryInteger) -> MetricFamily {
            var family = MetricFamily(name, .counter, help)
            family.add(value)
            return family
        }
        var passes = MetricFamily(
            "wgplane_reconcile_duration_seconds", .histogram, "Time that a pass over everything took.")
        passes.add(
            buckets: zip(Self.bounds, state.buckets).map { (bound: $0, count: $1) }, sum: state.seconds,
            count: state.passes)
        var age = MetricFamily(
            "wgplane_datastore_age_seconds", .gauge,
            "Since the datastore was last seen to answer: its lag, when it is away.")
        if state.lastHeard != 0 { age.add(Double(now - state.lastHeard) / 1e9) }
        var cycle = MetricFamily(
            "wgplane_flow_cycle_seconds", .gauge, "Time that the last look at the flow table took, with its export.")
        if state.flowCycles > 0 { cycle.add(state.lastFlowCycle) }
        var uptime = MetricFamily("wgplane_agent_uptime_seconds", .gauge, "Since the agent's start.")
        uptime.add(Double(now - started) / 1e9)
        return [
            passes, age, cycle, uptime,
            counter("wgplane_reconcile_failures_total", "Passes that could not do all.", state.failedPasses),
            counter(
                "wgplane_workload_changes_total", "Pods' addresses that were routed otherwise without a pass.",
                state.workloadChanges),
            counter("wgplane_datastore_answers_total", "Times that the datastore was seen to answer.", state.answers),
            counter("wgplane_flow_cycles_total", "Looks at the flow table.", state.flowCycles),
            counter(
                "wgplane_flows_ended_total", "Flows taken out of the table after they had ended.", state.endedFlows),
            counter("wgplane_masquerade_ended_total", "Masquerade mappings taken out.", state.endedMappings),
            counter("wgplane_netlink_changes_total", "Changes asked for by netlink.", state.netlinkChanges),
            counter("wgplane_map_writes_total", "Entries written to or taken from BPF maps.", state.mapWrites),
            counter(
                "wgplane_peer_changes_total", "Peers of WireGuard devices made, changed or removed.", state.peerChanges),
        ]
    }
}
