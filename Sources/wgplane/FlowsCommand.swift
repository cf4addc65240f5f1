// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DataplaneMaps
import Datastore
import Flows
import Foundation
import Model
import SystemDescriptors

struct FlowsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "flows", abstract: "Shows the flows of this node with their counters, the busiest first.",
        usage: "wgplane flows [options]\n       wgplane flows --top\n       wgplane flows --follow",
        discussion: """
            WAY is tunnel, clear, local, outside, or mixed (some packets in clear, before the tunnel was ready). NAT is
            the source that the masquerade writes. RATE is bits a second, both ways: over the flow's life, or with
            --top since the last look. --wide shows all that JSON has. `-o json` is an array; with --lines an object
            a line.
            """)

    enum Order: String, ExpressibleByArgument, CaseIterable {
        case bytes, packets, rate, age, last, source, destination, drops
    }

    @OptionGroup var node: ViewOptions
    @OptionGroup var datastore: DatastoreOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup var filter: FlowFilter
    @Option(help: "bytes, packets, rate, age, last (heard), source, destination or drops.") var sort = Order.bytes
    @Option(help: "Only so many; 0: all. Default: 1000 in a table, 20 with --top, else all.") var limit: Int?
    @Flag(help: "Every column.") var wide = false
    @Flag(help: "Draw the busiest again each second, until interrupted.") var top = false
    @Flag(help: "A JSON object a line.") var lines = false
    @Flag(help: "Tell each new flow as it begins, until interrupted.") var follow = false
    @Option(help: "End after so many seconds of --follow or --top; 0: never.") var seconds = 0

    func validate() throws {
        if follow, top { throw ValidationError("--follow and --top are two ways to look") }
        if let limit, limit < 0 { throw ValidationError("--limit: \(limit) is below 0, which means all") }
    }

    func run() async throws {
        let view = try follow || top ? node.liveView(follow ? "--follow" : "--top") : node.view()
        let addresses = await view.names(try datastore.open())
        if follow {
            let follower = EventFollower(
                view: view, kind: .flow, seconds: seconds, format: lines ? .json : output.format, names: addresses)
            return try await Task.detachedThread { try follower.run() }
        }
        let names = FlowNames(addresses: addresses, interfaces: view.interfaceNames(), node: view.node)
        let reader = FlowReader(try view.maps())
        if top { return try await draw(view, reader, names) }
        // Of many, those that would be shown are all that is worth being put into words.
        let most = limit ?? (output.format == .table && !lines ? Self.tableLimit : 0)
        let isPlain = sort == .bytes && filter.isEmpty
        let all = try reader.biflows(names, limit: isPlain ? most == 0 ? 0 : most + 1 : 0)
        let flows = chosen(all, rates: [:], view.monotonic, limit: most)
        if lines { return try flows.forEach { try Output.line($0) } }
        if try Output.structured(flows, output.format) { return }
        table(flows, rates: [:], view.monotonic)
        if limit == nil, flows.count < all.count, filter.isEmpty || flows.count == Self.tableLimit {
            FileHandle.standardError.write(Data("wgplane: the first \(flows.count); --limit 0 shows all\n".utf8))
        }
    }

    /// Lines of a table, unless --limit says otherwise.
    static let tableLimit = 1000

    private func chosen(
        _ all: [Biflow], rates: [Biflow.Name: Double], _ now: UInt64, limit: Int
    ) -> [Biflow] {
        let flows = all.filter(filter.matches)
        func rate(_ flow: Biflow) -> Double { rates[flow.name] ?? flow.rate }
        let sorted =
            switch sort {
            case .bytes: flows
            case .packets: flows.sorted { $0.packets + $0.reversePackets > $1.packets + $1.reversePackets }
            case .rate: flows.sorted { rate($0) > rate($1) }
            case .age: flows.sorted { $0.first < $1.first }
            case .last: flows.sorted { $0.last > $1.last }
            case .source: flows.sorted { ($0.source, $0.sourcePort) < ($1.source, $1.sourcePort) }
            case .destination:
                flows.sorted { ($0.destination, $0.destinationPort) < ($1.destination, $1.destinationPort) }
            case .drops: flows.sorted { ($0.dropReason == nil ? 1 : 0) < ($1.dropReason == nil ? 1 : 0) }
            }
        return limit == 0 ? sorted : Array(sorted.prefix(limit))
    }

    private func draw(_ view: NodeView, _ reader: FlowReader, _ names: FlowNames) async throws {
        var before: [Biflow.Name: UInt64] = [:]
        var lastLook = monotonicNanoseconds()
        let started = lastLook
        while seconds == 0 || monotonicNanoseconds() - started < UInt64(seconds) * 1_000_000_000 {
            let all = try reader.biflows(names)
            let now = monotonicNanoseconds()
            let passed = max(Double(now - lastLook) / 1e9, 0.001)
            var rates: [Biflow.Name: Double] = [:]
            var next: [Biflow.Name: UInt64] = [:]
            for flow in all {
                let name = flow.name
                let bytes = flow.bytes + flow.reverseBytes
                next[name] = bytes
                if let old = before[name] { rates[name] = Double(bytes - min(old, bytes)) * 8 / passed }
            }
            let total = rates.values.reduce(0, +)
            print("\u{1b}[H\u{1b}[2J", terminator: "")
            print("\(view.node): \(all.count) flows, \(Output.rate(total))")
            let most = limit ?? 20
            table(chosen(all, rates: rates, now, limit: most), rates: rates, now)
            before = next
            lastLook = now
            try await Task.sleep(for: .seconds(1))
        }
    }

    private func table(_ flows: [Biflow], rates: [Biflow.Name: Double], _ now: UInt64) {
        var titles = [
            "PROTO", "SOURCE", "DESTINATION", "WAY", "PEER", "PACKETS", "BYTES", "PACKETS<", "BYTES<", "RATE",
        ]
        if wide {
            titles += ["AGE", "ENCRYPTED", "LANE", "NAT", "STATE", "VERDICT", "DROPPED FOR", "FROM NODE", "TO NODE"]
        }
        let rows = flows.map { flow in
            var row = [
                flow.transport, Output.side(flow.sourceName, flow.source, flow.sourcePort),
                Output.side(flow.destinationName, flow.destination, flow.destinationPort), flow.way,
                flow.peer ?? "-", "\(flow.packets)", "\(flow.bytes)", "\(flow.reversePackets)",
                "\(flow.reverseBytes)", Output.rate(rates[flow.name] ?? flow.rate),
            ]
            if wide {
                row += [
                    Output.duration(Int64(flow.age(at: now))), flow.isEncrypted ? "yes" : "no", flow.lane ?? "-",
                    flow.translation ?? "-", flow.state ?? "-", flow.verdict, flow.dropReason ?? "-",
                    flow.sourceNode ?? "-", flow.destinationNode ?? "-",
                ]
            }
            return row
        }
        Output.table(titles, rows, empty: "No flows.")
    }
}

/// Which flows are meant.
struct FlowFilter: ParsableArguments {
    @Option(help: "Only flows from or to this pod or node.") var pod: String?
    @Option(help: "Only flows whose other end is on this node.") var peer: String?
    @Option(help: "Only flows from or to this address or prefix.") var address: String?
    @Option(help: "Only flows from or to this port.") var port: UInt16?
    @Option(name: .customLong("proto"), help: "Only this protocol: tcp, udp, icmp, icmpv6, sctp or a number.")
    var transport: String?
    @Option(help: "Only flows of this way: tunnel, clear, mixed, local or outside.") var way: String?
    @Flag(help: "Only flows that had a packet dropped.") var dropped = false

    func validate() throws {
        if let address, prefix(address) == nil {
            throw ValidationError("--address: \"\(address)\" is no IP address or prefix")
        }
        let ways = ["tunnel", "clear", "mixed", "local", "outside"]
        if let way, !ways.contains(way) {
            throw ValidationError("--way: \"\(way)\" is none of \(ways.joined(separator: ", "))")
        }
    }

    /// Every flow is meant.
    var isEmpty: Bool {
        pod == nil && peer == nil && address == nil && port == nil && transport == nil && way == nil && !dropped
    }

    private func prefix(_ text: String) -> CIDR? { CIDR(text) ?? IPAddress(text).map { CIDR(host: $0) } }

    func matches(_ flow: Biflow) -> Bool {
        if let pod, flow.sourceName != pod, flow.destinationName != pod { return false }
        if let peer, flow.peer != peer { return false }
        if let wanted = address.flatMap(prefix), !wanted.contains(flow.source), !wanted.contains(flow.destination) {
            return false
        }
        if let port, flow.sourcePort != port, flow.destinationPort != port { return false }
        if let transport, flow.transport != transport, "\(flow.protocolNumber)" != transport { return false }
        if let way, flow.way != way { return false }
        return !dropped || flow.dropReason != nil
    }
}
