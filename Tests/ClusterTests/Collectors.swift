// SPDX-License-Identifier: Apache-2.0

import Foundation
import Lab
import Model
import SystemDescriptors
import Testing

@testable import Flows

/// What was counted of a biflow, by whoever tells of it.
struct Counted: Hashable {
    var packets: UInt64 = 0
    var bytes: UInt64 = 0
    var reversePackets: UInt64 = 0
    var reverseBytes: UInt64 = 0

    static func += (sum: inout Counted, more: Counted) {
        sum.packets += more.packets
        sum.bytes += more.bytes
        sum.reversePackets += more.reversePackets
        sum.reverseBytes += more.reverseBytes
    }
}

/// Counts by `protocol source sourcePort destination destinationPort`; of ICMP the ports are 0 and type.code.
typealias Table = [String: Counted]

/// Programs of other people that read IPFIX, and what they make of it.
enum Collectors {
    static func key(_ transport: UInt8, _ source: String, _ sourcePort: UInt16, _ destination: String, _ port: UInt16)
        -> String
    {
        let isICMP = transport == 1 || transport == 58
        return isICMP
            ? "\(transport) \(source) 0 \(destination) \(port >> 8).\(port & 0xff)"
            : "\(transport) \(source) \(sourcePort) \(destination) \(port)"
    }

    static func table(_ flows: [Biflow]) -> Table {
        flows.reduce(into: [:]) { table, flow in
            let key = key(
                flow.protocolNumber, flow.source.description, flow.sourcePort, flow.destination.description,
                flow.destinationPort)
            table[key, default: Counted()] += Counted(
                packets: flow.packets, bytes: flow.bytes, reversePackets: flow.reversePackets,
                reverseBytes: flow.reverseBytes)
        }
    }

    /// `wgplane flows -o json` on a node.
    static func flows(_ lab: Lab, _ node: String) async throws -> Table {
        let answer = try await Cluster.wgplane(lab, node, "flows", "-o", "json")
        return table(try JSONDecoder().decode([Biflow].self, from: Data(answer.output.utf8)))
    }

    /// The same once nothing changes any more.
    static func settledFlows(_ lab: Lab, _ node: String) async throws -> Table {
        var last = try await flows(lab, node)
        try await lab.wait("the flow table is at rest") {
            try await Task.sleep(for: .milliseconds(150))
            let next = try await flows(lab, node)
            defer { last = next }
            return next == last
        }
        return last
    }

    /// What a file of JSON lines tells.
    static func lines(_ path: String) throws -> Table {
        let text = try String(contentsOfFile: path, encoding: .utf8)
        return try text.split(separator: "\n").reduce(into: [:]) { table, line in
            let value = try JSONDecoder().decode(ManifestValue.self, from: Data(line.utf8))
            func number(_ name: String, _ value: ManifestValue?) -> UInt64 {
                value?[name].flatMap { UInt64($0.text) } ?? 0
            }
            let flow = value["flow"]
            let key = key(
                UInt8(number("protocolNumber", flow)), flow?["source"]?.text ?? "", UInt16(number("sourcePort", flow)),
                flow?["destination"]?.text ?? "", UInt16(number("destinationPort", flow)))
            table[key, default: Counted()] += Counted(
                packets: number("packets", value), bytes: number("bytes", value),
                reversePackets: number("reversePackets", value), reverseBytes: number("reverseBytes", value))
        }
    }

    /// nfdump's reading of what nfcapd has collected in a folder.
    static func nfdump(_ folder: String) async throws -> Table {
        let format = "fmt:%pr,%sa,%sp,%da,%dp,%ipkt,%ibyt,%opkt,%obyt"
        let text = try await run(["nfdump", "-R", folder, "-q", "-N", "-6", "-o", format])
        return text.split(separator: "\n").reduce(into: [:]) { table, line in
            let cells = line.split(separator: ",").map { $0.trimmingCharacters(in: .whitespaces) }
            guard cells.count == 9, let transport = UInt8(cells[0]) else { return }
            let isICMP = transport == 1 || transport == 58
            let key = "\(transport) \(cells[1]) \(isICMP ? "0" : cells[2]) \(cells[3]) \(cells[4])"
            let counts = cells[5...].map { UInt64($0) ?? 0 }
            table[key, default: Counted()] += Counted(
                packets: counts[0], bytes: counts[1], reversePackets: counts[2], reverseBytes: counts[3])
        }
    }

    /// Wireshark's reading of a capture of UDP, or of the bytes of a stream (an IPFIX file, RFC 5655).
    static func tshark(_ file: String) async throws -> Table {
        let text = try await run(["tshark", "-r", file, "-d", "udp.port==4739,cflow", "-V"])
        var table: Table = [:]
        var fields: [String: String] = [:]
        func close() {
            defer { fields = [:] }
            guard let source = fields["SrcAddr"], let destination = fields["DstAddr"],
                let transport = fields["Protocol"].flatMap({ $0.split(separator: "(").last?.dropLast() })
                    .flatMap({ UInt8($0) })
            else { return }
            let isICMP = transport == 1 || transport == 58
            var port = UInt16(fields["DstPort"] ?? "") ?? 0
            if isICMP, let type = fields["IPv6 ICMP Type"].flatMap({ UInt16($0) }) {
                port = type << 8 | (fields["IPv6 ICMP Code"].flatMap { UInt16($0) } ?? 0)
            } else if isICMP {
                port = UInt16(fields["ICMP Type"]?.dropFirst(2) ?? "", radix: 16) ?? 0
            }
            func number(_ name: String) -> UInt64 { fields[name].flatMap { UInt64($0) } ?? 0 }
            table[
                key(transport, source, UInt16(fields["SrcPort"] ?? "") ?? 0, destination, port), default: Counted()
            ] += Counted(
                packets: number("Packets"), bytes: number("Octets"), reversePackets: number("reverse Packets"),
                reverseBytes: number("reverse Octets"))
        }
        for line in text.split(separator: "\n") {
            let line = line.trimmingCharacters(in: .whitespaces)
            if line.hasPrefix("Flow ") || line.hasPrefix("Frame ") || line.hasPrefix("Set ") { close() }
            let parts = line.split(separator: ":", maxSplits: 1).map { $0.trimmingCharacters(in: .whitespaces) }
            guard parts.count == 2 else { continue }
            let value = String(parts[1].split(separator: " ").first ?? "")
            if parts[1].contains("(Reverse ") {
                fields["reverse \(parts[0])"] = value
            } else if fields[parts[0]] == nil {
                fields[parts[0]] = parts[0] == "Protocol" ? parts[1] : value
            }
        }
        close()
        return table
    }

    /// Runs a program here and returns what it prints.
    static func run(_ command: [String]) async throws -> String {
        let result = try await Task.detachedThread {
            try ProgramLaunch(command, environment: currentEnvironment(), ownSession: false).capture()
        }
        if result.status != 0 { throw ProgramFailure(command: command, output: result.output) }
        return result.output
    }

    struct ProgramFailure: Error {
        var command: [String]
        var output: String
    }

    /// Starts a program in a place of the lab, which ends it when it goes down. Output goes to a file.
    static func start(_ lab: Lab, _ place: String, _ command: [String], log: String) throws -> ProcessReference {
        let arguments = [Cluster.binary, "lab", "exec", "--name", lab.spec.name, place, "--"] + command
        let launch = ProgramLaunch(arguments, environment: currentEnvironment(), log: log)
        return try #require(ProcessReference(identifier: try launch.start()))
    }

    static func end(_ lab: Lab, _ process: ProcessReference, signal: Int32 = 15) async throws {
        process.signal(signal)
        try await lab.wait("process \(process.identifier) ends") {
            _ = reapChild(process.identifier)
            return !process.isRunning
        }
    }
}
