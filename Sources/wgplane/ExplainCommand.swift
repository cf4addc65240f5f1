// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DataplaneMaps
import Datastore
import Flows
import Foundation
import Model
import SystemDescriptors

struct ExplainCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "explain", abstract: "Tells the way of a packet, hop by hop, with the entries that decide it.",
        usage: "wgplane explain SRC DST [--proto tcp] [--sport N] [--dport N] [options]",
        discussion: """
            SRC and DST are addresses, or names of pods or nodes. Nothing is sent: the packet, the first of its flow,
            is decided by the rules that the programs follow, over the maps as they are, or as an archive (--from) has
            them. The far end is what the resources say it should do, or what an archive of it (--far FILE) says
            it does. Exit status 1 when the packet would be dropped. --trace then shows real packets of the flow, both
            ways, at each hook with its verdict, as they pass; nothing is sent for that.
            """)

    @Argument(help: "Address, or name of a pod or node, that sends.") var source: String
    @Argument(help: "Address, or name of a pod or node, that is to receive.") var destination: String
    @Option(name: .customLong("proto"), help: "tcp, udp, icmp, sctp, or an IP protocol number.") var transport = "tcp"
    @Option(help: "Source port.") var sport: UInt16 = 40000
    @Option(help: "Destination port.") var dport: UInt16 = 80
    @Option(help: ArgumentHelp("An archive of the node at the far end.", valueName: "file")) var far: String?
    @Flag(help: "Then show real packets of that flow at every hook, until interrupted.") var trace = false
    @Option(help: "End --trace after so many seconds; 0: never.") var seconds = 0
    @OptionGroup var view: ViewOptions
    @OptionGroup var datastore: DatastoreOptions
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if seconds < 0 { throw ValidationError("--seconds: 0 means without end; use that or more") }
        if seconds > 0, !trace { throw ValidationError("--seconds belongs to --trace") }
    }

    func run() async throws {
        let view = try trace ? view.liveView("--trace") : view.view()
        let names = await view.names(try datastore.open())
        let (from, to) = try ends(names)
        let packet = SyntheticPacket(
            source: from, destination: to, transport: try number(from.family), sourcePort: sport,
            destinationPort: dport)
        let snapshot = view.isArchive ? nil : try? await datastore.read()
        let explainer = NodeExplainer(
            view, names: names, snapshot: snapshot, far: try far.map { NodeView(try NodeArchive(file: $0)) })
        let explanation = try explainer.explain(packet)
        if try !Output.structured(explanation, output.format) { print(explanation) }
        if trace { return try await follow(view, packet, names) }
        if explanation.verdict == "drop" { throw ExitCode(1) }
    }

    /// Of the flow that was explained; without a port that nobody has named.
    private func follow(_ view: NodeView, _ packet: SyntheticPacket, _ names: [IPAddress: String]) async throws {
        let filter = TraceFilter(
            source: CIDR(host: packet.source), destination: CIDR(host: packet.destination),
            transport: packet.transport, sourcePort: wantsPort("--sport") ? sport : nil,
            destinationPort: wantsPort("--dport") ? dport : nil)
        let tracer = PacketTracer(view, filter: filter, names: names)
        let (seconds, format) = (seconds, output.format)
        if format == .table { Swift.print("\nwatching") }
        try await Task.detachedThread {
            try tracer.run(seconds: seconds) { _, packet in
                try packet.show(format)
                return true
            }
        }
    }

    private func wantsPort(_ option: String) -> Bool {
        CommandLine.arguments.contains { $0 == option || $0.hasPrefix("\(option)=") }
    }

    /// Addresses of one family; of names with both, IPv4's.
    private func ends(_ names: [IPAddress: String]) throws -> (IPAddress, IPAddress) {
        func addresses(_ text: String) throws -> [IPAddress] {
            if let address = IPAddress(text) { return [address] }
            let found = names.filter { $0.value == text }.keys.sorted()
            let wide = transport == "icmpv6" ? found.filter { $0.family == .ipv6 } : []
            if !wide.isEmpty { return wide }
            guard !found.isEmpty else {
                throw ProblemsError(
                    Problem(
                        resource: "Packet", field: "address", value: text,
                        message: "is no IP address, and no pod or node has that name",
                        remedy: "see `wgplane get pods` and `wgplane get nodes`"))
            }
            return found
        }
        let (from, to) = (try addresses(source), try addresses(destination))
        for first in from {
            if let second = to.first(where: { $0.family == first.family }) { return (first, second) }
        }
        throw ProblemsError(
            Problem(
                resource: "Packet", field: "addresses", value: "\(source) and \(destination)",
                message: "are of different families", remedy: "name two of one family"))
    }

    private func number(_ family: AddressFamily) throws -> UInt8 {
        switch transport {
        case "tcp": return 6
        case "udp": return 17
        case "sctp": return 132
        case "icmp", "icmpv6": return family == .ipv4 ? 1 : 58
        default:
            guard let number = UInt8(transport) else {
                throw ValidationError("--proto: \"\(transport)\" is none of tcp, udp, icmp, sctp, and no number")
            }
            return number
        }
    }

    private func print(_ answer: Explanation) {
        func side(_ name: String?, _ address: IPAddress) -> String { name.map { "\($0) (\(address))" } ?? "\(address)" }
        let name = FlowReader.transportName(answer.transport)
        Swift.print(
            "\(name) \(side(answer.sourceName, answer.source)) -> \(side(answer.destinationName, answer.destination)): \(answer.verdict)\(answer.reason.map { ", \($0)" } ?? "")"
        )
        for (index, hop) in answer.hops.enumerated() {
            let place = hop.device.isEmpty ? hop.place : "\(hop.place) at \(hop.device)"
            Swift.print("\n\(index + 1). \(hop.node), \(place): \(hop.action)\(hop.reason.map { " (\($0))" } ?? "")")
            Swift.print("   \(hop.text)")
            for entry in hop.entries { Swift.print("   \(entry.map)  \(entry.key)  =  \(entry.value)") }
        }
        if !answer.notes.isEmpty { Swift.print("") }
        for note in answer.notes { Swift.print("note: \(note)") }
    }
}
