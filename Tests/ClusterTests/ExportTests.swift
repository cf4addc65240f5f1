// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing

/// Export of flows, collected by programs of other people and held against `wgplane flows`.
@Suite("Cluster: export", .serialized)
struct ExportTests {
    private static let collector = LabAddresses.gateway(.ipv4)

    private func inFolder(_ body: (String) async throws -> Void) async throws {
        let folder = "/tmp/wgplane-export-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try await body(folder)
    }

    private func configure(_ lab: Lab, _ fields: OrderedDictionary<String, ManifestValue>) async throws {
        var fields = fields
        for name in ["flowExportActiveTimeout", "flowExportIdleTimeout", "flowExportTemplateInterval"] {
            fields[name] = "1s"
        }
        try await Cluster.configure(lab, fields, node: "node1")
    }

    /// Datagrams, streams and echoes both ways in both families, for about two seconds.
    private func chat(_ lab: Lab, during body: () async throws -> Void = {}) async throws {
        let traffic = try await Traffic.start(lab, interval: 4000)
        for family in lab.spec.families {
            _ = try await Cluster.execute(
                lab, "node1-pod1", ["ping", "-c", "20", "-i", "0.05", "\(LabAddresses.pod(2, 1, family))"])
        }
        try await body()
        let result = await traffic.stop()
        try await expectNoLoss(result, lab)
        #expect(result.streams.allSatisfy { $0.report.returned > 0 })
    }

    private func metric(_ lab: Lab, _ name: String, to: String = "collector") async throws -> Double {
        let socket = "/run/wgplane/http.sock"
        let text = try await Cluster.execute(
            lab, "node1", ["curl", "-s", "--unix-socket", socket, "http://node/metrics"]
        ).output
        let names = ["\(name) ", "\(name){to=\"\(to)\"}"]
        let line = text.split(separator: "\n").first { line in names.contains { line.hasPrefix($0) } }
        // There is none before the exporter has heard of its settings.
        guard let value = line?.split(separator: " ").last.flatMap({ Double($0) }) else { throw NoMetric(name: name) }
        return value
    }

    private struct NoMetric: Error { var name: String }

    /// Waits until records have told all that the table has, and have been sent.
    private func told(_ lab: Lab, _ wanted: Table, _ file: String) async throws {
        try await lab.wait("records tell all", within: .seconds(20)) {
            try Collectors.lines(file).filter { wanted[$0.key] != nil } == wanted
        }
        try await lab.wait("records are sent") { try await metric(lab, "wgplane_export_queued_records") == 0 }
        #expect(try await metric(lab, "wgplane_export_lost_records_total") == 0)
    }

    private func same(_ read: Table, _ wanted: Table, _ who: String) {
        for (key, counted) in wanted {
            #expect(read[key] == counted, "\(who), \(key): \(String(describing: read[key])), \(counted)")
        }
        #expect(wanted.count > 8, "there are flows of every kind")
        #expect(wanted.keys.contains { $0.contains("fd48:") } && wanted.keys.contains { $0.contains("10.48.") })
    }

    @Test("UDP: nfcapd and Wireshark read what `flows` shows, to the packet, also over a restart of the agent")
    func udp() async throws {
        try await inFolder { folder in
            try await Cluster.run { lab in
                let store = "\(folder)/nfcapd"
                try FileManager.default.createDirectory(atPath: store, withIntermediateDirectories: true)
                let nfcapd = try Collectors.start(
                    lab, "underlay", ["nfcapd", "-b", "\(Self.collector)", "-p", "4739", "-w", store, "-t", "3600"],
                    log: "\(folder)/nfcapd.log")
                let capture = "\(folder)/export.pcap"
                let tcpdump = try Collectors.start(
                    lab, "underlay",
                    [
                        "tcpdump", "-i", "underlay", "--immediate-mode", "-U", "-Z", "root", "-w", capture,
                        "udp port 4739",
                    ],
                    log: "\(folder)/tcpdump.log")
                try await lab.wait("the collectors listen") {
                    let sockets = try await Cluster.execute(lab, "underlay", ["ss", "-lun"]).output
                    return try String(contentsOfFile: "\(folder)/tcpdump.log", encoding: .utf8).contains("listening")
                        && sockets.contains(":4739")
                }
                let file = "\(folder)/flows.json"
                try await configure(
                    lab,
                    [
                        "flowExportCollector": .string("udp://\(Self.collector):4739"),
                        "flowExportFile": .string(file),
                    ])
                try await chat(lab) {
                    try await lab.stopAgent("node1", signal: 15)
                    try await lab.startAgent("node1")
                    try await lab.waitUntilSettled(enabled: true)
                }
                let wanted = try await Collectors.settledFlows(lab, "node1")
                try await told(lab, wanted, file)
                // What the exporter has sent the capture may not have read yet.
                try? await lab.wait("the capture has all") {
                    let read = try await Collectors.tshark(capture)
                    return wanted.allSatisfy { read[$0.key] == $0.value }
                }
                try await Collectors.end(lab, nfcapd)
                try await Collectors.end(lab, tcpdump)
                same(try await Collectors.nfdump(store), wanted, "nfdump")
                same(try await Collectors.tshark(capture), wanted, "tshark")
            }
        }
    }

    /// A certificate for the collector's addresses, signed by itself; and its key.
    private func certificate(_ folder: String, _ name: String) async throws {
        let names = AddressFamily.allCases.map { "IP:\(LabAddresses.gateway($0))" }.joined(separator: ",")
        _ = try await Collectors.run([
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
            "2", "-subj", "/CN=\(name)", "-addext", "subjectAltName=\(names)", "-keyout", "\(folder)/\(name).key",
            "-out", "\(folder)/\(name).pem",
        ])
    }

    private func listens(_ lab: Lab, _ port: Int) async throws {
        try await lab.wait("a collector listens at \(port)") {
            try await Cluster.execute(lab, "underlay", ["ss", "-ltn"]).output.contains(":\(port) ")
        }
    }

    @Test("TLS over IPv6: the collector's certificate is checked, ours is shown, and Wireshark reads the rest")
    func tls() async throws {
        try await inFolder { folder in
            for name in ["collector", "exporter", "stranger"] { try await certificate(folder, name) }
            try await Cluster.run { lab in
                let stream = "\(folder)/stream"
                let server = try Collectors.start(
                    lab, "underlay",
                    [
                        "sh", "-c",
                        "tail -f /dev/null | openssl s_server -6 -accept '[fd00::fe]:4740' -quiet -cert \(folder)/collector.pem -key \(folder)/collector.key -CAfile \(folder)/exporter.pem -Verify 1 -verify_return_error > \(stream) 2>\(folder)/server.log",
                    ], log: "/dev/null")
                try await listens(lab, 4740)
                let file = "\(folder)/flows.json"
                var fields: OrderedDictionary<String, ManifestValue> = [
                    "flowExportCollector": "tls://[fd00::fe]:4740", "flowExportFile": .string(file),
                    "flowExportCAFile": .string("\(folder)/stranger.pem"),
                    "flowExportCertFile": .string("\(folder)/exporter.pem"),
                    "flowExportKeyFile": .string("\(folder)/exporter.key"),
                ]
                try await configure(lab, fields)
                // What waits meanwhile comes later, so it is another flow than those that are counted.
                _ = try await Cluster.execute(
                    lab, "node1-pod1", ["ping", "-c", "1", "\(LabAddresses.node(2, .ipv6))"])
                try await lab.wait("a collector that cannot be trusted is told of") {
                    lab.status("node1")?.problems.contains {
                        $0.field == "spec.flowExportCollector" && $0.message.lowercased().contains("certificate")
                    } ?? false
                }
                #expect(try fileSizeOrNil(stream) ?? 0 == 0, "nothing is sent to whom nobody trusts")
                fields["flowExportCAFile"] = .string("\(folder)/collector.pem")
                try await configure(lab, fields)
                try FileManager.default.removeItem(atPath: file)
                let lost = try await metric(lab, "wgplane_export_lost_records_total")
                try await chat(lab)
                let wanted = try await Collectors.settledFlows(lab, "node1")
                try await lab.wait("records tell all", within: .seconds(20)) {
                    try Collectors.lines(file).filter { wanted[$0.key] != nil } == wanted
                }
                try await lab.wait("records are sent") { try await metric(lab, "wgplane_export_queued_records") == 0 }
                #expect(try await metric(lab, "wgplane_export_lost_records_total") == lost)
                server.signal(15)
                same(try await Collectors.tshark(stream), wanted, "tshark")
            }
        }
    }

    private func fileSizeOrNil(_ path: String) throws -> Int? {
        FileManager.default.fileExists(atPath: path) ? try fileSize(path) : nil
    }

    @Test("TCP: a collector that is away, slow or restarts costs no packet; what is lost is counted")
    func trouble() async throws {
        try await inFolder { folder in
            try await Cluster.run { lab in
                let file = "\(folder)/flows.json"
                let address = LabAddresses.gateway(.ipv4)
                let traffic = try await Traffic.start(lab, interval: 4000)
                // Nobody is there: records wait, and status tells of it.
                try await configure(
                    lab, ["flowExportCollector": .string("tcp://\(address):4739"), "flowExportFile": .string(file)])
                try await lab.wait("records wait") { try await metric(lab, "wgplane_export_queued_records") > 0 }
                try await lab.wait("status tells of it") {
                    lab.status("node1")?.problems.contains { $0.field == "spec.flowExportCollector" } ?? false
                }
                func listen(_ stream: String) async throws -> ProcessReference {
                    let process = try Collectors.start(
                        lab, "underlay", ["sh", "-c", "exec nc -l \(address) 4739 > \(folder)/\(stream)"],
                        log: "/dev/null")
                    try await listens(lab, 4739)
                    return process
                }
                let first = try await listen("first")
                try await lab.wait("what has waited is sent", within: .seconds(20)) {
                    try await metric(lab, "wgplane_export_connected") == 1
                        ? try await metric(lab, "wgplane_export_queued_records") == 0 : false
                }
                // It does not read for a while.
                first.signal(19)
                let before = try await metric(lab, "wgplane_flow_cycle_seconds")
                try await lab.wait("the exporter goes on, \(before)") {
                    let counted = try Collectors.lines(file).values.reduce(0) { $0 + $1.packets }
                    try await Task.sleep(for: .seconds(2))
                    return try Collectors.lines(file).values.reduce(0) { $0 + $1.packets } > counted
                }
                first.signal(18)
                try await traffic.goesOn(lab)
                let result = await traffic.stop()
                try await expectNoLoss(result, lab)
                let wanted = try await Collectors.settledFlows(lab, "node1")
                try await told(lab, wanted, file)
                try await Collectors.end(lab, first)
                // Another one, which has never seen a template.
                let second = try await listen("second")
                let echo = ["ping", "-c", "7", "-i", "0.02", "\(LabAddresses.pod(2, 1, .ipv4))"]
                #expect(try await Cluster.execute(lab, "node1-pod1", echo).status == 0)
                try await lab.wait("the second collector has it", within: .seconds(20)) {
                    try await Collectors.tshark("\(folder)/second").values.contains { $0.packets == 7 }
                }
                try await Collectors.end(lab, second)
                var read = try await Collectors.tshark("\(folder)/first")
                for (key, counted) in try await Collectors.tshark("\(folder)/second") where wanted[key] != nil {
                    read[key, default: Counted()] += counted
                }
                let lostRecords = try await metric(lab, "wgplane_export_lost_records_total")
                if lostRecords == 0 {
                    for (key, counted) in wanted {
                        #expect(read[key] == counted, "\(key): \(String(describing: read[key])), \(counted)")
                    }
                }
                // UDP to a port that nobody has: it is found out before a record goes.
                try await configure(
                    lab, ["flowExportCollector": .string("udp://\(address):9"), "flowExportFile": .string(file)])
                #expect(try await Cluster.execute(lab, "node1-pod1", echo).status == 0)
                try await lab.wait("records wait", within: .seconds(20)) {
                    try await metric(lab, "wgplane_export_queued_records") > 0
                }
                #expect(try await metric(lab, "wgplane_export_lost_records_total") == lostRecords)
                try await configure(lab, ["flowExportCollector": .null])
                try await lab.wait("without a collector they are lost, and counted") {
                    try await metric(lab, "wgplane_export_lost_records_total") > lostRecords
                }
            }
        }
    }

    @Test("records of pairs: what is told of pods, workloads and nodes is the sum of the flows")
    func pairs() async throws {
        try await inFolder { folder in
            try await Cluster.run { lab in
                for (level, source) in [
                    ("PodPair", "node1-pod1"), ("NodePair", ""), ("WorkloadPair", "default/deployment/web"),
                ] {
                    try await Cluster.patch(
                        lab, .pod, "node1-pod1",
                        .object([
                            "metadata": .object([
                                "labels": .object(["pod-template-hash": "abc"]),
                                "ownerReferences": .array([
                                    .object(["kind": "ReplicaSet", "name": "web-abc", "controller": .bool(true)])
                                ]),
                            ])
                        ]))
                    let file = "\(folder)/\(level).json"
                    try await configure(
                        lab, ["flowExportFile": .string(file), "flowExportAggregation": .string(level)])
                    let echo = ["ping", "-c", "11", "-i", "0.02", "\(LabAddresses.pod(2, 1, .ipv4))"]
                    #expect(try await Cluster.execute(lab, "node1-pod1", echo).status == 0)
                    try await lab.wait("\(level) has it", within: .seconds(20)) {
                        try packets(of: source, in: file) == 11
                    }
                }
                // Sums that are not due yet are told when the agent ends.
                let file = "\(folder)/last.json"
                try await Cluster.configure(
                    lab,
                    [
                        "flowExportFile": .string(file), "flowExportAggregation": "PodPair",
                        "flowExportActiveTimeout": "1h", "flowExportIdleTimeout": "1s",
                    ], node: "node1")
                let before = try await metric(lab, "wgplane_export_records_total", to: "file")
                let echo = ["ping", "-c", "13", "-i", "0.02", "\(LabAddresses.pod(2, 1, .ipv4))"]
                #expect(try await Cluster.execute(lab, "node1-pod1", echo).status == 0)
                try await lab.wait("the flow is over") {
                    try await !Collectors.flows(lab, "node1").keys.contains { $0.hasPrefix("1 ") }
                }
                #expect(try await metric(lab, "wgplane_export_records_total", to: "file") == before)
                try await lab.stopAgent("node1", signal: 15)
                #expect(try packets(of: "node1-pod1", in: file) == 13)
            }
        }
    }

    /// What lines of pairs tell of packets of IPv4 from there to the other node.
    private func packets(of source: String, in file: String) throws -> Int {
        let text = try String(contentsOfFile: file, encoding: .utf8)
        return try text.split(separator: "\n").reduce(into: 0) { sum, line in
            let value = try JSONDecoder().decode(ManifestValue.self, from: Data(line.utf8))
            let pair = value["pair"]
            guard pair?["sourceNode"]?.text == "node1", pair?["destinationNode"]?.text == "node2",
                pair?["source"]?.text ?? "" == source, pair?["family"]?.text == "4"
            else { return }
            sum += Int(value["packets"]?.text ?? "") ?? 0
        }
    }

    @Test("a file and a collector that take nothing hold up neither flows nor the agent's end")
    func pipe() async throws {
        try await inFolder { folder in
            try await Cluster.run { lab in
                let pipe = "\(folder)/pipe"
                _ = try await Collectors.run(["mkfifo", pipe])
                try await configure(lab, ["flowExportFile": .string(pipe)])
                let echo = ["ping", "-c", "3", "-i", "0.02", "\(LabAddresses.pod(2, 1, .ipv4))"]
                #expect(try await Cluster.execute(lab, "node1-pod1", echo).status == 0)
                try await lab.wait("a pipe without a reader is told of", within: .seconds(20)) {
                    try await metric(lab, "wgplane_export_lost_records_total", to: "file") > 0
                }
                try await lab.wait("status tells of it") {
                    lab.status("node1")?.problems.contains { $0.field == "spec.flowExportFile" && $0.value == pipe }
                        ?? false
                }
                // With a reader that never reads.
                let reader = try Collectors.start(
                    lab, "underlay", ["sh", "-c", "exec sleep 600 < \(pipe)"], log: "/dev/null")
                #expect(try await Cluster.execute(lab, "node1-pod1", echo).status == 0)
                // And a collector that says nothing at all.
                let rules =
                    "add table inet hole; add chain inet hole in { type filter hook input priority 0; }; add rule inet hole in tcp dport 4799 drop"
                #expect(try await Cluster.execute(lab, "underlay", ["nft", rules]).status == 0)
                try await configure(
                    lab, ["flowExportCollector": .string("tcp://\(LabAddresses.gateway(.ipv4)):4799")])
                #expect(try await Cluster.execute(lab, "node1-pod1", echo).status == 0)
                try await lab.wait("records wait", within: .seconds(20)) {
                    try await metric(lab, "wgplane_export_queued_records") > 0
                }
                let began = ContinuousClock.now
                try await lab.stopAgent("node1", signal: 15)
                #expect(ContinuousClock.now - began < .seconds(4))
                reader.signal(15)
            }
        }
    }
}
