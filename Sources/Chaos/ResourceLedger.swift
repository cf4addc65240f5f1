// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
internal import Foundation
internal import Lab
internal import SystemDescriptors

/// What agents and kernel hold at a moment of rest: what of it grows from one such moment to another has leaked.
struct ResourceLedger: Sendable, Hashable {
    /// By name, of each node: descriptors, threads, pins, rules, routes, filters of the firewall.
    var counts: [String: Int] = [:]
    /// Of agents, bytes.
    var memory: [String: Int] = [:]
    var objects = BPFKernelObjects()

    static func read(_ site: FaultSite) async throws -> ResourceLedger {
        var ledger = ResourceLedger(objects: .counted())
        for node in site.lab.nodeNames() {
            if let agent = await site.lab.agent(node) {
                let folder = "/proc/\(agent.identifier)"
                ledger.counts["\(node): descriptors"] = try descriptors("\(folder)/fd")
                let status = String(decoding: try readFile("\(folder)/status"), as: UTF8.self)
                ledger.memory[node] = (number(status, "VmRSS:") ?? 0) << 10
                ledger.counts["\(node): threads"] = number(status, "Threads:")
            }
            let layout = site.layout(node)
            ledger.counts["\(node): pins"] =
                ((try? listFolder(layout.folder).count) ?? 0) + layout.pinnedLinks().count
                + layout.pinnedGuardLinks().count
            for (name, command) in [
                ("rules", "ip rule show"), ("rules of IPv6", "ip -6 rule show"), ("routes", "ip route show table all"),
                ("devices", "ip -o link show"), ("firewall", "nft list ruleset"),
            ] {
                let words = command.split(separator: " ").map(String.init)
                let output = try await site.on(node) {
                    try ProgramLaunch(words, environment: currentEnvironment(), ownSession: false).capture().output
                }
                ledger.counts["\(node): \(name)"] = output.split(separator: "\n").count
            }
        }
        return ledger
    }

    /// Sockets and the like, without those that a look at the moment happens to see.
    private static func descriptors(_ folder: String) throws -> Int { try listFolder(folder).count }

    private static func number(_ status: String, _ name: String) -> Int? {
        status.split(separator: "\n").first { $0.hasPrefix(name) }?
            .split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { Int($0) }
    }

    /// What has grown: counts by more than what comes and goes, memory by more than a heap's spread.
    func growth(since before: ResourceLedger) -> [String] {
        var grown: [String] = []
        for (name, count) in counts.sorted(by: { $0.key < $1.key }) {
            let old = before.counts[name] ?? 0
            // Connections and worker threads come and go.
            let room = name.hasSuffix("descriptors") ? 8 : name.hasSuffix("threads") ? 6 : 0
            if count > old + room { grown.append("\(name) from \(old) to \(count)") }
        }
        for (node, bytes) in memory.sorted(by: { $0.key < $1.key }) {
            let old = before.memory[node] ?? bytes
            if bytes > old + 24 << 20 { grown.append("\(node): memory from \(old >> 20) to \(bytes >> 20) MiB") }
        }
        for (name, count, old) in [
            ("programs", objects.programs, before.objects.programs), ("maps", objects.maps, before.objects.maps),
            ("links", objects.links, before.objects.links),
        ] where count > old { grown.append("BPF \(name) from \(old) to \(count)") }
        return grown
    }
}
