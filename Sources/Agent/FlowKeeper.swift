// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Datastore
internal import DesiredState
internal import FlowExport
internal import Flows
internal import Foundation
internal import Logging
internal import Model
internal import Netlink
internal import Steering
internal import SystemDescriptors

/// Sweeps the flow table, and has its flows exported. On a thread of its own, for a table can be large.
actor FlowKeeper {
    nonisolated let exporter: FlowExporter
    private let queue = KernelQueue(label: "flows")
    private let options: AgentOptions
    private let statistics: AgentStatistics
    private let logger: Logger
    private var cache: FlowCache?
    private var aggregator: FlowAggregator?
    private var lastAggregate = ContinuousClock.now
    /// Of cycles whose flows are exported nowhere, unless the table is filling.
    private var pace: Pace
    private var isFilling = false
    private var lastCycle: ContinuousClock.Instant?

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    init(options: AgentOptions, statistics: AgentStatistics, logger: Logger) {
        self.options = options
        self.statistics = statistics
        self.logger = logger
        pace = Pace(.seconds(5), factor: 1000, longest: options.longestPeriod)
        exporter = FlowExporter(
            node: options.node,
            reserved: [
                options.runDirectory, options.stateDirectory, options.layout.root, "/proc", "/sys", "/dev", "/etc",
                "/usr",
                "/boot",
            ], logger: logger)
    }

    /// Records of flows that stay, in a cycle: the others come with the next, so that many flows that began at once do not
    /// make a burst for ever.
    static let recordLimit = 25_000

    /// Seconds between two cycles: less than the time-outs, so that these are kept.
    private func period(_ settings: FlowExportSettings) -> Duration {
        guard settings.isOn else { return isFilling ? .seconds(5) : pace.period }
        return min(settings.activeTimeout, settings.idleTimeout) < 10 ? .seconds(1) : .seconds(5)
    }

    /// Settings are in force at once. Whether a cycle is due with them.
    func isDue(_ settings: FlowExportSettings) async -> Bool {
        // Before the exporter knows of another way: sums of pairs go out by the old one.
        if !settings.isOn || aggregator.map({ $0.level != settings.aggregation }) ?? false { await tellSums() }
        await exporter.configure(settings)
        return lastCycle.map { ContinuousClock.now - $0 >= period(settings) } ?? true
    }

    /// Looks at the table, and tells what is due. `isLast`: the maps go, and all is told.
    func cycle(
        _ maps: NodeMaps?, _ names: AddressNames, devices: [UInt32: String], _ settings: FlowExportSettings,
        isLast: Bool = false
    ) async {
        lastCycle = .now
        guard let maps else { return await forget() }
        let began = monotonicNanoseconds()
        let mark = pace.begin()
        defer { pace.end(mark) }
        do {
            let swept = try FlowSweeper(maps).sweep(now: began, withFlows: settings.isOn)
            isFilling = swept.entries > maps.flows.capacity / 2
            statistics.noteEnded(flows: swept.gone.count, mappings: swept.mappings)
            if swept.gone.count + swept.mappings > 0 {
                logger.debug(
                    "flows ended", metadata: ["flows": "\(swept.gone.count)", "mappings": "\(swept.mappings)"])
            }
            if settings.isOn {
                let readable = FlowNames(
                    names: names, interfaces: devices, node: options.node)
                try await export(swept, FlowReader(maps), readable, settings, isLast)
            } else {
                await forget()
            }
        } catch {
            logger.warning("flows cannot be swept", metadata: ["error": "\(error)"])
        }
        statistics.noteFlowCycle(nanoseconds: monotonicNanoseconds() - began)
    }

    /// The table is gone, or nobody is told of it: what was told of its flows means nothing for the next. An earlier
    /// agent's memory stays until the maps have been looked at.
    func forget() async {
        await tellSums()
        guard cache != nil else { return }
        cache = nil
        try? removeFile(options.flowMemory)
    }

    /// Before the exporter's own end.
    func finish() async {
        await tellSums()
        await exporter.finish()
    }

    private func tellSums() async {
        let sums = aggregator?.take() ?? []
        aggregator = nil
        lastAggregate = .now
        if !sums.isEmpty { await exporter.submit(sums) }
    }

    private func export(
        _ swept: FlowSweeper.Swept, _ reader: FlowReader, _ names: FlowNames,
        _ settings: FlowExportSettings, _ isLast: Bool
    ) async throws {
        let timeOuts = FlowCache.TimeOuts(
            active: .seconds(Int(settings.activeTimeout)), idle: .seconds(Int(settings.idleTimeout)))
        var cache = cache ?? remembered(timeOuts)
        cache.timeOuts = timeOuts
        let due = cache.records(
            swept.flows, gone: swept.gone, now: monotonicNanoseconds(),
            wall: UInt64(Date().timeIntervalSince1970 * 1000), isLast: isLast,
            limit: isLast ? .max : Self.recordLimit)
        let records = try reader.records(due, names)
        self.cache = cache
        if !records.isEmpty || !swept.gone.isEmpty { keep(cache) }
        guard settings.aggregation != .flow else {
            return await exporter.submit(records)
        }
        var sums = aggregator ?? FlowAggregator(settings.aggregation)
        sums.add(records, names: names.addresses)
        aggregator = sums
        if isLast || ContinuousClock.now - lastAggregate >= .seconds(Int(settings.activeTimeout)) { await tellSums() }
    }

    /// With what an earlier agent's records have told.
    private func remembered(_ timeOuts: FlowCache.TimeOuts) -> FlowCache {
        var cache = FlowCache(timeOuts)
        if let memory = try? readFile(options.flowMemory) { cache.remember(memory) }
        return cache
    }

    /// Before the records are handed over: a crash in between loses them, and tells nothing twice.
    private func keep(_ cache: FlowCache) {
        do {
            try replaceFile(options.flowMemory, with: cache.memory, mode: 0o600)
        } catch {
            logger.warning(
                "what flow records have told cannot be kept",
                metadata: ["file": "\(options.flowMemory)", "error": "\(error)"])
        }
    }
}

extension NodeController {
    /// Call it each second.
    func keepFlows() async {
        await keepFlows(isLast: false)
    }

    /// The flow table is about to go.
    func tellLastFlows() async {
        guard steering != nil else { return }
        await keepFlows(isLast: true)
    }

    private func keepFlows(isLast: Bool) async {
        let settings = inForce?.flowExport ?? FlowExportSettings()
        guard await flows.isDue(settings) || isLast else { return }
        await flows.cycle(
            steering?.maps, settings.isOn ? flowNames() : AddressNames(),
            devices: settings.isOn ? deviceIndices() : [:], settings, isLast: isLast)
    }

    private func deviceIndices() -> [UInt32: String] {
        let links = (try? session().links()) ?? []
        return Dictionary(links.map { ($0.index, $0.name) }, uniquingKeysWith: { first, _ in first })
    }

    func flowNames() -> AddressNames {
        // Of many pods those are named that are asked for.
        let pods = inventory.workloads?.owners
        let version = inventory.version + (pods == nil ? inventory.podVersion : 0)
        if lastNames?.version != version || lastNames?.isWhole != (pods == nil) {
            let names = NodeView.clusterNames(inventory.cluster, withPods: pods == nil)
            lastNames = (version, pods == nil, names)
        }
        var names = lastNames?.names ?? AddressNames()
        names.pods = pods ?? [:]
        return names
    }
}
