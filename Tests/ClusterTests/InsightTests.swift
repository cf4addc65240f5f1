// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Foundation
import Lab
import Model
import OrderedCollections
import Testing

/// What people see of a node: maps, flows, explanations, live and from an archive.
@Suite("Cluster: insight", .serialized)
struct InsightTests {
    private func json(_ answer: (output: String, status: Int32)) throws -> ManifestValue {
        #expect(answer.status == 0, "\(answer.output)")
        return try JSONDecoder().decode(ManifestValue.self, from: Data(answer.output.utf8))
    }

    private func array(_ value: ManifestValue) -> [ManifestValue] {
        if case .array(let items) = value { items } else { [] }
    }

    /// `wgplane` outside of the lab's nodes.
    private func outside(_ lab: Lab, _ arguments: String...) async throws -> (output: String, status: Int32) {
        try await Cluster.execute(lab, "underlay", [Cluster.binary] + arguments)
    }

    /// Some flows of every kind, both families.
    private func chat(_ lab: Lab) async throws {
        _ = try await LabCheck(lab).run()
    }

    @Test("maps: list, dump, filter, raw bytes, look-up; wrong names and keys are told")
    func maps() async throws {
        try await Cluster.run { lab in
            let rows = array(try json(try await Cluster.wgplane(lab, "node1", "maps", "list", "-o", "json")))
            let names = rows.compactMap { $0["name"]?.text }
            #expect(names == names.sorted() && Set(names).isSubset(of: NodeMaps.names), "\(names)")
            #expect(rows.contains { $0["name"]?.text == "flows4" && $0["memory"] != nil })
            for name in names {
                let all = array(try json(try await Cluster.wgplane(lab, "node1", "maps", "dump", name, "-o", "json")))
                let raw = try await Cluster.wgplane(lab, "node1", "maps", "dump", name, "--raw", "-o", "json")
                let entries = array(try json(raw))
                if ["locals4", "locals6", "endpoints4", "endpoints6", "peers"].contains(name) {
                    #expect(!all.isEmpty && all.count == entries.count, "\(name): \(all.count), \(entries.count)")
                }
            }
            for family in AddressFamily.allCases {
                let address = LabAddresses.pod(2, 1, family)
                let answer = try await Cluster.wgplane(
                    lab, "node1", "maps", "lookup", "routes", "\(address)", "-o", "json")
                let found = array(try json(answer))
                #expect(found.count == 1 && found[0]["destination"]?.text == "node2", "\(found)")
                #expect(found[0]["prefix"]?.text == LabAddresses.block(2, family).description)
                let own = try await Cluster.wgplane(
                    lab, "node1", "maps", "dump", family == .ipv4 ? "locals4" : "locals6", "--where", "kind=pod",
                    "--sort", "address", "-o", "json")
                #expect(array(try json(own)).allSatisfy { $0["kind"]?.text == "pod" })
            }
            for (arguments, status, word) in [
                (["maps", "dump", "flows5"], Int32(2), "flows4"),
                (["maps", "lookup", "locals4", "192.0.2.1"], 1, "no entry"),
                (["maps", "dump", "peers", "--where", "colour=red"], 2, "publicKey"),
                (["maps", "dump", "--all"], 2, "--output FILE"),
                (["maps", "lookup", "routes", "pod"], 2, "no IP address"),
            ] {
                let answer = try await Cluster.execute(lab, "node1", [Cluster.binary] + arguments)
                #expect(answer.status == status && answer.output.contains(word), "\(arguments): \(answer)")
            }
        }
    }

    @Test("an archive: every command answers from it as from the node, and no private key is in it")
    func archive() async throws {
        try await Cluster.run { lab in
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled"])
            try await lab.wait("strict mode is on") { lab.status("node1")?.strictMode == true }
            try await chat(lab)
            let file = "/tmp/wgplane-archive-\(UUID().uuidString).json"
            let far = file + ".far"
            defer { for path in [file, far] { try? FileManager.default.removeItem(atPath: path) } }
            for (node, path) in [("node1", file), ("node2", far)] {
                let taken = try await Cluster.wgplane(lab, node, "maps", "dump", "--all", "--output", path)
                #expect(taken.status == 0 && !taken.output.contains("not in it"), "\(taken.output)")
            }
            let text = try String(contentsOfFile: file, encoding: .utf8)
            for device in ["wireguard.cali", "wg-v6.cali"] {
                let key = try await Cluster.execute(lab, "node1", ["wg", "show", device, "private-key"]).output
                let bare = key.trimmingCharacters(in: .whitespacesAndNewlines)
                #expect(bare.count == 44 && !text.contains(bare))
            }
            #expect(text.contains("agent starts"), "the log's end is in it")
            let attributes = try FileManager.default.attributesOfItem(atPath: file)
            #expect(attributes[.posixPermissions] as? Int == 0o600)
            for command in [
                ["maps", "list"], ["maps", "dump", "destinations"], ["maps", "dump", "locals6"],
                ["maps", "dump", "config"],
                ["maps", "lookup", "routes", "\(LabAddresses.pod(2, 1, .ipv4))"], ["drops"],
            ] {
                let live = try await Cluster.execute(lab, "node1", [Cluster.binary] + command)
                let kept = try await Cluster.execute(
                    lab, "underlay", [Cluster.binary] + command + ["--from", file])
                #expect(live.output == kept.output && kept.status == 0, "\(command): \(live) \(kept)")
            }
            let flows = array(try json(try await outside(lab, "flows", "--from", file, "-o", "json")))
            #expect(
                flows.contains { $0["sourceName"]?.text == "node1-pod1" && $0["way"]?.text == "tunnel" }, "\(flows)")
            let status = try await outside(lab, "status", "--from", file)
            #expect(
                status.status == 0 && status.output.contains("as of") && status.output.contains("private key: (hidden)")
            )
            let explained = try json(
                try await outside(
                    lab, "explain", "node1-pod1", "node2-pod1", "--from", file, "--far", far, "-o", "json"))
            #expect(explained["verdict"]?.text == "tunnel", "\(explained)")
            let places = array(explained["hops"] ?? .array([])).compactMap { $0["place"]?.text }
            #expect(places.first == "from_pod" && places.suffix(2) == ["WireGuard", "from_wireguard"], "\(places)")
            // One of another layout, and what is none.
            let other = try #require(text.range(of: "\"layout\":\(PinLayout.version),"))
            try text.replacingCharacters(in: other, with: "\"layout\":1,").write(
                toFile: file, atomically: true, encoding: .utf8)
            let refused = try await outside(lab, "maps", "list", "--from", file)
            #expect(
                refused.status == 1 && refused.output.contains("layout 1")
                    && refused.output.contains("layout \(PinLayout.version)"))
            try "{}".write(toFile: file, atomically: true, encoding: .utf8)
            #expect(try await outside(lab, "status", "--from", file).output.contains("is no archive of a node"))
            #expect(try await outside(lab, "flows", "--follow", "--from", file).status == 2)
        }
    }

    @Test("explain follows the way of packets, in both modes, with the agent dead too")
    func explain() async throws {
        try await Cluster.run { lab in
            func verdict(_ node: String, _ arguments: String...) async throws -> (ManifestValue, Int32) {
                let answer = try await Cluster.execute(
                    lab, node, [Cluster.binary, "explain"] + arguments + ["-o", "json"])
                return (
                    try JSONDecoder().decode(ManifestValue.self, from: Data(answer.output.utf8)), answer.status
                )
            }
            for mode in ["EBPF", "Route"] {
                try await Cluster.configure(lab, ["mode": .string(mode)])
                try await lab.wait("the mode is \(mode)") {
                    lab.nodeNames().allSatisfy { lab.status($0)?.mode == mode.lowercased() }
                }
                for family in AddressFamily.allCases {
                    let (from, to) = ("\(LabAddresses.pod(1, 1, family))", "\(LabAddresses.pod(2, 1, family))")
                    let (answer, status) = try await verdict("node1", from, to, "--proto", "udp")
                    #expect(answer["verdict"]?.text == "tunnel" && status == 0, "\(mode): \(answer)")
                    #expect(answer["destinationName"]?.text == "node2-pod1")
                }
            }
            try await Cluster.configure(lab, ["mode": "EBPF"])
            try await lab.wait("the mode is EBPF") { lab.nodeNames().allSatisfy { lab.status($0)?.mode == "ebpf" } }
            // An arrival, and a packet that is nobody's here.
            let (arrival, _) = try await verdict("node2", "node1-pod1", "node2-pod1")
            #expect(arrival["verdict"]?.text == "tunnel", "\(arrival)")
            let (outside, _) = try await verdict("node1", "node1-pod1", "192.0.2.1")
            #expect(outside["verdict"]?.text == "outside", "\(outside)")
            // A peer that loses its allowed IP by hand: WireGuard is where it ends.
            try await lab.stopAgent("node1", signal: SIGKILL)
            for device in ["wireguard.cali"] {
                let peer = try await Cluster.execute(lab, "node1", ["wg", "show", device, "peers"]).output
                _ = try await Cluster.execute(
                    lab, "node1",
                    ["wg", "set", device, "peer", peer.trimmingCharacters(in: .whitespacesAndNewlines), "remove"])
            }
            let (lost, status) = try await verdict("node1", "node1-pod1", "node2-pod1")
            #expect(lost["verdict"]?.text == "drop" && status == 1 && lost["reason"]?.text == "no_peer", "\(lost)")
            #expect("\(lost["notes"] ?? "")".contains("no agent runs"))
        }
    }
}
