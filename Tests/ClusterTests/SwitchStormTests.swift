// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing
import WireGuard

/// Modes and options change at random under traffic.
@Suite("Cluster: switch storm", .serialized)
struct SwitchStormTests {
    static let changes = ProcessInfo.processInfo.environment["WGPLANE_STORM"].flatMap { Int($0) } ?? 50
    /// To look closer: only these fields, by comma.
    static let fields = ProcessInfo.processInfo.environment["WGPLANE_STORM_FIELDS"]?.split(separator: ",").map(
        String.init)

    /// One change, of the cluster or of a node.
    struct Change: CustomStringConvertible {
        var kind: ResourceKind
        var name: String
        var field: String
        var value: ManifestValue
        /// As `status` tells it.
        var text: String
        /// With this machine's WireGuard the device is closed for a moment.
        var isLossy = false
        var description: String { "\(name) \(field) \(text)" }
    }

    /// Values among which to choose, by setting.
    private static func choices(_ lab: Lab, _ isKernel: Bool, _ renames: Bool) -> [Change] {
        func felix(_ field: String, _ values: [(ManifestValue, String)], isLossy: Bool = false) -> [Change] {
            values.map {
                Change(
                    kind: .felixConfiguration, name: "default", field: field, value: $0.0, text: $0.1, isLossy: isLossy)
            }
        }
        func ours(_ field: String, _ values: [String]) -> [Change] {
            values.map {
                Change(kind: .dataplaneConfiguration, name: "default", field: field, value: .string($0), text: $0)
            }
        }
        func numbers(_ values: [Int64]) -> [(ManifestValue, String)] { values.map { (.integer($0), "\($0)") } }
        let flags: [(ManifestValue, String)] = [(true, "true"), (false, "false")]
        var result: [Change] = []
        result += felix("wireguardMTU", numbers([0, 1400, 1380]))
        result += felix("wireguardMTUV6", numbers([0, 1390, 1400]))
        result += felix("wireguardKeepAlive", [("25s", "25s"), ("0s", "0s")])
        result += felix("wireguardRoutingRulePriority", numbers([99, 150]))
        result += felix(
            "routeTableRanges",
            [(7, 20), (1, 250)].map { low, high in
                (.array([.object(["min": .integer(low), "max": .integer(high)])]), "\(low)-\(high)")
            })
        result += felix("wireguardHostEncryptionEnabled", flags)
        result += felix("wireguardThreadingEnabled", flags)
        result += felix("routeSource", [("CalicoIPAM", "CalicoIPAM"), ("WorkloadIPs", "WorkloadIPs")])
        result += felix("bpfDataIfacePattern", [("^eth.*", "^eth.*"), ("^(eth|ens).*", "^(eth|ens).*")])
        result += felix("bpfLogLevel", [("Info", "Info"), ("Off", "Off")])
        result += felix(
            "bpfAttachType", Cluster.attachments.map { (.string($0.rawValue), $0.rawValue) }, isLossy: true)
        result += felix("prometheusWireGuardMetricsEnabled", flags)
        result += felix("wireguardListeningPort", numbers([51820, 28150]), isLossy: !isKernel)
        result += felix("wireguardListeningPortV6", numbers([51821, 28151]), isLossy: !isKernel)
        result += felix(
            "wireguardInterfaceName", [("wireguard.cali", "wireguard.cali"), ("wg0", "wg0")],
            isLossy: !isKernel || !renames)
        result += ours("wireguardSteeringPath", ["Auto", "Stack"])
        result += ours("wireguardMSSClamp", ["Auto", "Disabled", "1200"])
        result += ours("wireguardFirewallMark", ["0x20000000", "0x10000000"])
        result += ours("wireguardStrictMode", ["Enabled", "Disabled"])
        // Modes are what this is about: as often as all options together. The second node's is chosen in
        // Felix's way, the others' in ours.
        for _ in 0..<3 {
            for node in lab.nodeNames() where node != "node2" { result += ["EBPF", "Route"].map { mode(node, $0) } }
            result += flags.map {
                Change(
                    kind: .felixConfiguration, name: "node.node2", field: "bpfEnabled", value: $0.0, text: $0.1)
            }
        }
        return result
    }

    private static func mode(_ node: String, _ word: String) -> Change {
        Change(
            kind: .dataplaneConfiguration, name: "node.\(node)", field: "mode", value: .string(word), text: word)
    }

    /// The node that is switched off and on again; what goes to it and from it is not judged, but its streams.
    private static let leaver = "node3"

    /// A choice at random. Two times the leaver is switched off, if modes are among the choices, and is back
    /// after two other changes.
    private static func choose(
        _ all: [Change], _ number: Int, of changes: Int, isOff: Bool, _ random: inout SeededGenerator
    ) -> Change {
        let phase = changes >= 12 && all.contains { $0.field == "mode" } ? number % (changes / 2) : 0
        let words = ["EBPF", "Route"]
        switch (isOff, phase) {
        case (false, 3): return mode(leaver, "Disabled")
        case (true, 6...): return mode(leaver, words[Int.random(in: 0..<2, using: &random)])
        default:
            let fitting = isOff ? all.filter { $0.name != "node.\(leaver)" } : all
            return fitting[Int.random(in: 0..<fitting.count, using: &random)]
        }
    }

    private func apply(_ change: Change, _ lab: Lab) async throws {
        try await Cluster.patch(
            lab, change.kind, change.name,
            .object([
                "apiVersion": .string(change.kind.apiVersion), "kind": .string(change.kind.rawValue),
                "metadata": .object(["name": .string(change.name)]),
                "spec": .object([change.field: change.value]),
            ]))
    }

    /// Waits until every node that a change is for has it in force, and all peers carry.
    private func settle(_ change: Change, _ lab: Lab, isOff: Bool) async throws {
        let own = change.name.hasPrefix("node.") ? String(change.name.dropFirst(5)) : nil
        try await lab.wait("\(change) is in force", within: .seconds(20)) {
            for node in lab.nodeNames() {
                guard let status = lab.status(node) else { return false }
                if own ?? node == node, status.settings.first(where: { $0.name == change.field })?.value != change.text
                {
                    return false
                }
                if own == node, change.field == "mode", status.mode != change.text.lowercased() { return false }
                if own == node, change.field == "bpfEnabled", (status.mode == "ebpf") != (change.text == "true") {
                    return false
                }
                if isOff, node == Self.leaver { continue }
                for family in lab.spec.families {
                    guard let report = status[family], report.phase == "on", report.address != nil,
                        report.peers.filter({ $0.state != "retiring" }).count == lab.spec.nodes - (isOff ? 2 : 1),
                        report.peers.allSatisfy({
                            $0.state == "retiring" || $0.action == "tunnel" && $0.state == "ready"
                        })
                    else { return false }
                }
            }
            return true
        }
    }

    @Test("modes and options of three nodes change fifty times: no byte and no packet is lost, none is in clear")
    func storm() async throws {
        let (result, overflows) = try await storm(changes: Self.changes) { !$0.isLossy }
        for (name, report) in result.datagrams where report.lost > 0 { print("storm: \(name): \(report)") }
        let judged = result.datagrams.filter { !$0.name.contains(Self.leaver) }
        // None but what a starved wireguard-go has dropped before anything of ours.
        #expect(judged.reduce(0) { $0 + $1.report.lost } <= overflows, "\(overflows) were wireguard-go's")
    }

    @Test("where a device must be closed for a change, streams go on all the same, and nothing is in clear")
    func closings() async throws {
        _ = try await storm(changes: 6) { $0.isLossy }
    }

    /// Changes at random among those that fit; no two of the same in a row.
    private func storm(
        changes: Int, _ fits: (Change) -> Bool
    ) async throws -> (result: Traffic.Result, overflows: Int) {
        let seed =
            ProcessInfo.processInfo.environment["WGPLANE_SEED"].flatMap { UInt64($0) }
            ?? UInt64.random(in: 0...UInt64.max)
        print("seed \(seed); WGPLANE_SEED repeats it")
        var random = SeededGenerator(seed: seed)
        var result = Traffic.Result(datagrams: [], streams: [])
        var overflows = 0
        try await Cluster.run(nodes: 3) { lab in
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled"])
            let backend = try #require(lab.status("node1")?.backend)
            let renames = try await Cluster.onNode(lab, "node1") { KernelTraits.renamesLive }
            let all = Self.choices(lab, backend == "kernel", renames)
                .filter { fits($0) && Self.fields?.contains($0.field) != false }
            guard !all.isEmpty else { return }
            try await lab.wait("strict mode is on") {
                lab.nodeNames().allSatisfy { lab.status($0)?.strictMode == true }
            }
            let traffic = try await Traffic.start(lab, interval: 10_000 * UInt32(Lab.patience))
            let capture = try UnderlayCapture(
                underlay: lab.place("underlay"),
                pools: lab.spec.families.flatMap { family in [1, 2].map { LabAddresses.block($0, family) } },
                ports: [51820, 51821, 28150, 28151], both: true)
            var log: [String] = []
            var made: [Change] = []
            var isOff = false
            do {
                for number in 1...changes {
                    let change = Self.choose(all, number, of: changes, isOff: isOff, &random)
                    if change.name == "node.\(Self.leaver)" { isOff = change.text == "Disabled" }
                    made.append(change)
                    let before = traffic.missing()
                    try await apply(change, lab)
                    try await settle(change, lab, isOff: isOff)
                    try await Task.sleep(for: .milliseconds(30 * Lab.patience))
                    log.append(
                        "\(number) at \(monotonicNanoseconds() / 1_000_000): \(change), \(traffic.missing()) answers due, \(before) before"
                    )
                }
                try await traffic.goesOn(lab)
            } catch {
                _ = await traffic.stop()
                print(log.joined(separator: "\n"))
                throw error
            }
            result = await traffic.stop()
            overflows = try await userspaceOverflows(lab)
            let seen = capture.stop()
            #expect(seen.clearPackets == 0 && seen.lost == 0 && seen.wireguardPackets > 0, "\(seen)")
            for (name, report) in result.streams {
                #expect(report.lost == 0 && report.wrongAt == nil && report.failure.isEmpty, "\(name): \(report)")
            }
            let fields = Dictionary(grouping: made, by: \.field).map { "\($0.key) \($0.value.count)" }.sorted()
            print("storm: \(changes) changes, \(result.summary); \(overflows) overflows of wireguard-go")
            print("storm: \(fields.joined(separator: ", "))")
            if result.datagrams.contains(where: { $0.report.lost > 0 && !$0.name.contains(Self.leaver) }) {
                print(log.joined(separator: "\n"))
                await Cluster.describe(lab)
            }
        }
        return (result, overflows)
    }
}
