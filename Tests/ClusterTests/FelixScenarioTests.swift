// SPDX-License-Identifier: Apache-2.0

import Foundation
import Testing

/// The acceptance scenarios of Calico's Felix, and which test here shows each.
@Suite("Felix's scenarios")
struct FelixScenarioTests {
    /// What Felix shows; the tests that show it here, by name; where ours differs, how.
    static let scenarios: [(felix: String, tests: [String], differs: String)] = [
        ("FV 1 bootstrap logged", [device], ""),
        ("FV 2 rule 99 \"not from all fwmark\"", [device], "eBPF mode: there is none"),
        ("FV 3 table has the peer's block", [device], "eBPF mode: the map of routes has"),
        ("FV 4 off removes all; other names, MTU, port, priority", [device], ""),
        ("FV 5 NAPI threading 0, 1, 0", [threading], "where the kernel has none: said once"),
        ("FV 6 Node has keys", [device], ""),
        ("FV 7 forged key heals", [device], ""),
        ("FV 8 pod to pod: tunnel packets, none in clear, transfer", [device], ""),
        ("FV 9-12 host policy denies WireGuard", [hostPolicy], "with wireguardInputRule: Auto"),
        ("FV 13 egress denied, then allowed", [podPolicy], ""),
        ("FV 14 off: no key", [device], ""),
        ("FV 15 off: connected, wg is empty", [device], ""),
        (
            "FV 16, 17 unsupported kernel",
            ["no WireGuard in the kernel: who asks for it is told, else wireguard-go takes its place"], ""
        ),
        ("FV 18 borrowed addresses", [three], ""),
        ("FV 19 one node off", [three], ""),
        ("FV 20, 21 host to pod", [three], ""),
        ("FV 22 WorkloadIPs", [workloads], "metrics are to come"),
        ("e2e bytes sent grow", ["wg's transfer is the flows' bytes and what WireGuard adds"], ""),
        ("unit: link made, waited for, reused; port and mark mended", [drift, interopByHand], ""),
        ("unit: second apply does nothing", [routesMade], ""),
        ("unit: rule kept, wrong ones removed, repaired at resync", [routesMended], ""),
        (
            "unit: stored key mended, right key left alone",
            [device, "a key replaced by hand heals, and takes nothing away meanwhile"], ""
        ),
        ("unit: node's address on the device", [workloads], ""),
        (
            "unit: peers made, changed, backed out",
            ["a peer carries only after a handshake, which is provoked, and stays ready"], ""
        ),
        (
            "unit: local messages ignored; throw for local prefixes",
            ["peers, allowed IPs and routes of a small cluster", routesMade], ""
        ),
        (
            "unit: address moves between nodes, any order",
            [
                "a prefix that moves is with one peer at every moment; one that goes takes no other along",
                "the plan is the same for every order of arrival",
            ], ""
        ),
        (
            "unit: duplicate key",
            [
                "a key that two nodes claim: who had it first keeps it; at a cold start neither has it",
                "a key that a second node claims stays with the first",
            ], "Felix removes both; who had it first keeps it"
        ),
        (
            "unit: prefix claimed twice", ["overlapping and foreign prefixes are refused, and named"],
            "Felix: the last writer wins; here IPAM's owner, else the first by name"
        ),
        ("unit: node without WireGuard", [three, routesStrict], ""),
        (
            "unit: nodes deleted, whole or piecewise, and again there",
            [
                "a Node deleted: no peer, route or slot of it is left",
                "a node that goes lingers a moment; a peer of nobody goes too", recreated,
            ], ""
        ),
        (
            "unit: another endpoint only", ["an endpoint that has roamed is not stamped over", nat],
            "Felix stamps at each resync; here an endpoint that has roamed stays"
        ),
        ("unit: a peer that enables WireGuard flips its routes alone", [thousand], ""),
        (
            "unit: unsupported, then supported",
            ["a node that cannot make its WireGuard devices drops what it cannot encrypt, and mends"], ""
        ),
        (
            "unit: single failures recover",
            [
                "what fails is tried again, later each time, and harms nothing else",
                "a device that is somebody else's: what is in place stays, and the word to switch off still works",
            ], ""
        ),
        ("unit: drifted allowed IPs and ports", [drift], ""),
        (
            "unit disabled: nothing made, all removed",
            ["WireGuard off and on: no packet is lost, nothing is left behind while it is off", cleanup], ""
        ),
        ("unit: no table index", [routesChange], "Felix panics; here it is said, and nothing is broken"),
        (
            "bootstrap: nothing of Typha's", [recreated, cleanup],
            "there is no Typha; keys without a device are withdrawn"
        ),
    ]

    private static let device = "device, keys, rule and table; encryption; off, and on again with other names"
    private static let threading = "threads for the device's packets, where the kernel has them; else said once"
    private static let hostPolicy = "a host policy that denies WireGuard's port, or all: tunnels come up and stay"
    private static let podPolicy =
        "a policy that denies what pods send: nothing in the tunnel; allowed again, it goes on"
    private static let three = "three nodes: a borrowed address, one without WireGuard, hosts and pods"
    private static let workloads = "addresses of pods as the source of routes, with host encryption"
    private static let drift = "what is changed by hand is found and mended"
    private static let interopByHand = "a peer configured by hand as in the seed's slides"
    private static let routesMade = "rule and table are made, and a second time nothing is; all is taken away"
    private static let routesMended = "what is altered by hand is mended at the next look"
    private static let routesChange = "priority, mark and table change without a moment between"
    private static let routesStrict =
        "strict: what is promised and not carried leads nowhere, nodes' own addresses and exempt ones on"
    private static let cleanup =
        "after modes with strict mode and host encryption: switched off, and cleaned up after a kill"
    private static let recreated = "a Node deleted and made again with its address; its agent started anew"
    private static let nat = "a node behind NAT is learned, kept, and not stamped over"
    private static let thousand = "1,000 nodes: one node's change costs that node's work, and rest costs none"

    @Test("each has a test here")
    func complete() throws {
        let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        var sources = ""
        for suite in ["ClusterTests", "UnitTests", "ProgramTests"] {
            for file in try FileManager.default.contentsOfDirectory(
                at: folder.appendingPathComponent(suite), includingPropertiesForKeys: nil)
            where file.lastPathComponent != "FelixScenarioTests.swift" && file.pathExtension == "swift" {
                sources += try String(contentsOf: file, encoding: .utf8)
            }
        }
        // Names that are split over lines in the source are not; quotes within are escaped.
        print("Felix's scenario -> test here")
        for scenario in Self.scenarios {
            let note = scenario.differs.isEmpty ? "" : " (\(scenario.differs))"
            print("  \(scenario.felix)\(note)")
            for test in scenario.tests {
                print("    -> \(test)")
                #expect(sources.contains("\"\(test)\""), "there is no test of this name: \(test)")
            }
        }
    }
}
