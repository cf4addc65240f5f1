// SPDX-License-Identifier: Apache-2.0

internal import Agent
internal import BPF
internal import DataplaneMaps
internal import Foundation
public import Lab
internal import Model
internal import Netlink
internal import OrderedCollections
internal import SystemDescriptors

/// How long, and what may happen.
public struct ChaosOptions: Sendable {
    /// Repeats the choice and the places of faults; not what the machine's clock adds.
    public var seed: UInt64
    public var duration: Duration
    /// Names of faults; empty: all.
    public var faults: Set<String> = []
    public var connections = 50
    /// A probe's time without answers that is a failure, where nothing may be interrupted; milliseconds.
    public var longestGap = 100.0

    public init(seed: UInt64, duration: Duration) {
        self.seed = seed
        self.duration = duration
    }
}

/// What has happened.
public struct ChaosReport: Sendable, Codable {
    public var seed: UInt64
    public var faults = 0
    /// Packets with a pod's address that were readable on the underlay.
    public var clearPackets = 0
    /// Connections that broke, gaps where there may be none, faults that were not mended in time.
    public var failures = 0
    /// What holds more than before.
    public var growth: [String] = []
    /// What makes the two counts worthless: a capture that has lost frames, or would not see a leak.
    public var doubts: [String] = []
    public var byFault: [String: Int] = [:]
    /// Milliseconds until all was as before, the longest of each fault.
    public var mended: [String: Int] = [:]
    /// Milliseconds in which the machine had no time even for two hosts joined by hand.
    public var longestStall = 0
    public var datagrams = 0
    public var datagramsLost = 0
    public var bytes = 0

    public var isGood: Bool { faults > 0 && clearPackets == 0 && failures == 0 && growth.isEmpty && doubts.isEmpty }
}

/// Faults at random points of a lab's life, under traffic, with every packet of the underlay looked at: no packet in clear,
/// no connection that breaks, and nothing that grows.
///
/// The lab is up with WireGuard switched off, three nodes and two pods each.
public struct Chaos {
    /// What an agent takes to see what nobody tells of, and to mend it.
    static let mendTime = Duration.seconds(45)

    private let site: FaultSite
    private let options: ChaosOptions
    private let say: @Sendable (String) -> Void
    private let began = ContinuousClock.now
    private var random: SeededGenerator
    private var report: ChaosReport
    private var bag: [Fault] = []
    /// CLOCK_MONOTONIC, nanoseconds; and how many connections had broken by then.
    private var lastJudged = monotonicNanoseconds()
    private var brokenCounted = 0
    /// CLOCK_MONOTONIC, nanoseconds: gaps that have begun before are what a fault may make.
    private var toleratedUntil: UInt64 = 0

    public init(_ lab: Lab, _ options: ChaosOptions, say: @escaping @Sendable (String) -> Void) {
        site = FaultSite(lab: lab)
        self.options = options
        self.say = say
        random = SeededGenerator(seed: options.seed)
        report = ChaosReport(seed: options.seed)
    }

    public mutating func run() async throws -> ChaosReport {
        let lab = site.lab
        try await proveCapture()
        let precedence = Task { [site] in await Precedence.keep(site.lab, others: ControlTunnel.ends(site.lab)) }
        defer { precedence.cancel() }
        // Who asks and answers is in this process.
        try? writeExistingFile("/proc/self/autogroup", Precedence.nice)
        defer { try? writeExistingFile("/proc/self/autogroup", "0") }
        try await switchOn()
        let pods = await lab.state.pods
        let connections = options.connections
        let traffic = try await Task.detachedThread { try ChaosTraffic.start(lab, pods, connections: connections) }
        do {
            let before = try await ResourceLedger.read(site)
            let capture = try UnderlayCapture(
                underlay: lab.place("underlay"), pools: lab.spec.families.map(LabAddresses.pool))
            try await lab.wait("datagrams are answered") { traffic.flows }
            let end = ContinuousClock.now + options.duration
            while ContinuousClock.now < end, try await one(nextFault(), traffic, capture) {}
            try await restore()
            try await compare(before)
            judge(traffic, mayInterrupt: true)
            let sums = try await Task.detachedThread { traffic.stop() }
            (report.datagrams, report.datagramsLost, report.bytes) = (sums.sent, sums.lost, sums.bytes)
            report.longestStall = Int(traffic.longestStall)
            if sums.bytesLost > 0 {
                report.failures += 1
                say("\(sums.bytesLost) bytes of connections did not come back")
            }
            for name in options.faults where report.byFault[name] == nil {
                report.doubts.append("fault \(name) could not be made here")
            }
            // Once nothing is sent any more.
            let seen = capture.stop()
            report.clearPackets = seen.clearPackets
            for example in seen.examples { say("in clear: \(example)") }
            if seen.lost > 0 { report.doubts.append("the capture had no room for \(seen.lost) frames") }
            if seen.wireguardPackets == 0 { report.doubts.append("no WireGuard packet was seen") }
        } catch {
            _ = try? await Task.detachedThread { traffic.stop() }
            throw error
        }
        return report
    }

    // MARK: Before and after

    /// The negative control: what is in clear is seen.
    private mutating func proveCapture() async throws {
        let seen = try await LabCheck(site.lab).run().underlay
        say("WireGuard off: \(seen.clearPackets) packets in clear are seen, as they should be")
        if seen.clearPackets == 0 { report.doubts.append("with WireGuard off the capture sees nothing in clear") }
    }

    private func switchOn() async throws {
        var spec = ManifestValue.object([:])
        for family in site.lab.spec.families {
            spec[family == .ipv4 ? "wireguardEnabled" : "wireguardEnabledV6"] = true
        }
        try await site.patch(.felixConfiguration, "default", spec)
        try await site.patch(.dataplaneConfiguration, "default", .object(["wireguardStrictMode": "Enabled"]))
        try await site.lab.waitUntilSettled(enabled: true, within: .seconds(30))
        try await site.lab.wait("strict mode is on") {
            site.lab.nodeNames().allSatisfy { site.lab.status($0)?.strictMode == true }
        }
    }

    /// Settings as they were, so that what is held can be compared.
    private func restore() async throws {
        for node in site.lab.nodeNames() {
            try await site.patch(.dataplaneConfiguration, "node.\(node)", .object(["mode": .null]))
        }
        for (field, _) in Fault.changedSettings {
            try await site.patch(.felixConfiguration, "default", .object([field: .null]))
        }
        try await site.lab.wait("all nodes are as they were", within: Self.mendTime) {
            site.lab.nodeNames().allSatisfy { site.lab.status($0)?.mode == "ebpf" }
        }
        try await site.lab.waitUntilSettled(enabled: true, within: Self.mendTime)
    }

    private mutating func compare(_ before: ResourceLedger) async throws {
        // The kernel frees some time later.
        let deadline = ContinuousClock.now + .seconds(20)
        repeat {
            report.growth = try await ResourceLedger.read(site).growth(since: before)
            if report.growth.isEmpty { break }
            try await Task.sleep(for: .milliseconds(500))
        } while ContinuousClock.now < deadline
        for line in report.growth { say("grown: \(line)") }
    }

    // MARK: One fault

    /// Each once before one comes again.
    private mutating func nextFault() -> Fault {
        if bag.isEmpty {
            bag = Fault.all.filter { options.faults.isEmpty || options.faults.contains($0.name) }
            bag.shuffle(using: &random)
        }
        return bag.removeLast()
    }

    /// Returns whether to go on.
    private mutating func one(_ fault: Fault, _ traffic: ChaosTraffic, _ capture: UnderlayCapture) async throws -> Bool
    {
        let calm = try await rest()
        try await Task.sleep(for: .milliseconds(Int.random(in: 0...700, using: &random)))
        // What has come since the last fault was mended may not be.
        judge(traffic, mayInterrupt: false)
        let clear = capture.count().clearPackets
        guard let what = try await fault.inject(site, &random) else { return true }
        report.faults += 1
        report.byFault[fault.name, default: 0] += 1
        let injected = monotonicNanoseconds()
        let isMended = await waitUntilMended(traffic, fault.changesHoldings ? nil : calm)
        let mended = Int((monotonicNanoseconds() - injected) / 1_000_000)
        report.mended[fault.name] = max(report.mended[fault.name] ?? 0, mended)
        let time = Int((ContinuousClock.now - began).components.seconds)
        let head = String(format: "%4d s  %2d  ", time, report.faults)
        let longest = traffic.gaps(since: lastJudged, over: options.longestGap).map(\.gap.milliseconds).max() ?? 0
        say(
            "\(head)\(fault.name.padding(toLength: 20, withPad: " ", startingAt: 0)) \(what): "
                + "P \(capture.count().clearPackets - clear), gap \(Int(longest)) ms"
                + "\(fault.mayInterrupt && longest > 0 ? " (may be)" : ""), as before after \(mended) ms")
        if !isMended { fail("not mended after \(mended) ms") }
        judge(traffic, mayInterrupt: fault.mayInterrupt)
        return isMended
    }

    /// What is there once nothing changes any more.
    private func rest() async throws -> [String: String] {
        var last = try await holdings()
        for _ in 0..<20 {
            try await Task.sleep(for: .milliseconds(250 * Lab.patience))
            let now = try await holdings()
            if now == last { return now }
            last = now
        }
        return last
    }

    /// Counts what has broken since it was called last.
    private mutating func judge(_ traffic: ChaosTraffic, mayInterrupt: Bool) {
        let now = monotonicNanoseconds()
        let broken = traffic.broken
        for text in broken.dropFirst(brokenCounted) { fail(text) }
        brokenCounted = broken.count
        if mayInterrupt {
            // Others hear of a new key a moment later.
            toleratedUntil = now + 1_000_000_000 * UInt64(Lab.patience)
        } else {
            for (name, gap) in traffic.gaps(since: lastJudged, over: options.longestGap)
            where gap.start > toleratedUntil {
                fail("gap of \(Int(gap.milliseconds)) ms from \(name)")
            }
        }
        lastJudged = now
    }

    private mutating func fail(_ text: String) {
        report.failures += 1
        say("            F: \(text)")
    }

    /// What is there to carry packets, by node: entries of maps, devices as they are set, rules and routes.
    private func holdings() async throws -> [String: String] {
        var result: [String: String] = [:]
        for node in site.lab.nodeNames() {
            guard let status = site.lab.status(node) else { continue }
            if status.mode == "ebpf" {
                for (name, _, entries) in try NodeMaps(site.layout(node)).list()
                where FaultSite.steeringMaps.contains(where: { name.contains($0) }) {
                    result["\(node) \(name)"] = "\(entries)"
                }
            } else {
                for family in ["-4", "-6"] {
                    for command in ["ip \(family) rule show", "ip \(family) route show table \(status.routeTable)"] {
                        result["\(node) \(command)"] = try await site.output(node, command)
                    }
                }
            }
            for family in site.lab.spec.families {
                guard let device = status[family]?.device else { continue }
                result["\(node) \(device)"] = try await site.device(node, device)
            }
        }
        return result
    }

    /// Until packets go their way, all peers are ready, every program is attached, and the maps hold what they held.
    private func waitUntilMended(_ traffic: ChaosTraffic, _ calm: [String: String]?) async -> Bool {
        let lab = site.lab
        do {
            try await lab.waitUntilSettled(enabled: true, within: Self.mendTime)
            try await lab.wait("all is as before", within: Self.mendTime) {
                for node in lab.nodeNames() {
                    guard await isWhole(node) else { return false }
                }
                guard traffic.flows else { return false }
                guard let calm else { return true }
                return try await holdings() == calm
            }
            return true
        } catch {
            say("            \(error)")
            say("            datagrams are \(traffic.flows ? "" : "not ")answered")
            for node in lab.nodeNames() {
                if await !isWhole(node) {
                    say("            \(node) is not whole: \(lab.status(node)?.problems.map(\.description) ?? [])")
                }
            }
            do {
                let now = try await holdings()
                for name in Set(now.keys).union((calm ?? [:]).keys).sorted() where calm?[name] != now[name] {
                    say("            \(name): \(calm?[name] ?? "none") before, \(now[name] ?? "none") now")
                }
            } catch {
                say("            \(error)")
            }
            return false
        }
    }

    /// Whether each hook that the agent tells of has a filter at its device, by clsact.
    private func hasFilters(_ node: String, _ status: StatusReport) async -> Bool {
        let counts = try? await site.on(node) {
            let session = try RouteSession()
            return try status.attachments.map { point in
                guard let link = try session.link(named: point.device) else { return 0 }
                return try session.foreignFilters(
                    interface: link.index, isEgress: ["to_uplink", "to_wireguard", "guard_out"].contains(point.hook),
                    own: [Attachment.firstPriority + (point.hook.hasPrefix("guard_") ? 0 : 1)])
            }
        }
        return counts?.allSatisfy { $0 > 0 } ?? false
    }

    /// Whether an agent runs that has nothing to complain of, and programs and second lock are where they should be.
    private func isWhole(_ node: String) async -> Bool {
        guard let status = site.lab.status(node),  // The audit tells for a minute of what was lost.
            status.problems.allSatisfy({ $0.severity == .warning || $0.resource == "Audit" }),
            await site.lab.agent(node)?.identifier == status.process
        else { return false }
        let layout = site.layout(node)
        let links = layout.pinnedLinks() + layout.pinnedGuardLinks()
        if status.attachment != "clsact", links.count >= status.attachments.count {
            return links.allSatisfy { ((try? Attachment.link(pin: $0.pin))?.interface ?? 0) != 0 }
        }
        // In route mode there is the second lock alone, which may be of either kind.
        if status.attachment == "tcx" { return false }
        return await hasFilters(node, status)
    }
}
