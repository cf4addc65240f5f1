// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DataplaneMaps
import Datastore
import Flows
import Foundation
import Model
import SystemDescriptors

struct CaptureCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "capture", abstract: "Shows packets at every hook, with the verdict, as they pass.",
        usage: "wgplane capture [SRC [DST]] [--proto tcp] [--sport N] [--dport N] [options]",
        discussion: """
            SRC and DST are addresses, prefixes, or names of pods or nodes; packets of both directions are shown. Each is
            told of as it came to the hook; what --write keeps (pcapng, for Wireshark and tcpdump -r; - for standard
            output) is the packet as it left, its first 256 bytes, each hook an interface of its own. At
            uplinks WireGuard's own packets are seen, too, where they match. One command at a time can look. eBPF mode.
            """)

    @Argument(help: "Address, prefix, or name of a pod or node.") var source: String?
    @Argument(help: "The same, for the other side.") var destination: String?
    @OptionGroup var flow: TraceOptions
    @Option(help: "End after so many seconds; 0: never.") var seconds = 0
    @Option(help: "End after so many packets; 0: never.") var count = 0
    @Option(help: ArgumentHelp("Keep the packets in this file; -: standard output.", valueName: "file"))
    var write: String?
    @OptionGroup var node: NodeOptions
    @OptionGroup var datastore: DatastoreOptions
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if seconds < 0 || count < 0 {
            throw ValidationError("--seconds and --count: 0 means without end; use that or more")
        }
    }

    func run() async throws {
        let view = NodeView(node.options)
        let names = await view.names(try datastore.open())
        let filter = try flow.filter(source, destination, names)
        let tracer = PacketTracer(view, filter: filter, names: names)
        let (seconds, count, write, format) = (seconds, count, write, output.format)
        try await Task.detachedThread {
            let keeper = try write.map { try PacketKeeper($0) }
            var shown = 0
            try tracer.run(seconds: seconds) { trace, packet in
                if let keeper { try keeper.add(trace, packet) }
                if write != "-" { try packet.show(format) }
                shown += 1
                return count == 0 || shown < count
            }
            if write != nil, write != "-" { print("\(shown) packets at hooks") }
        }
    }
}

/// Which packets of a flow are meant.
struct TraceOptions: ParsableArguments {
    @Option(name: .customLong("proto"), help: "tcp, udp, icmp, icmpv6, sctp, or an IP protocol number.")
    var transport: String?
    @Option(help: "Port of the first side.") var sport: UInt16?
    @Option(help: "Port of the other side.") var dport: UInt16?

    func filter(_ source: String?, _ destination: String?, _ names: [IPAddress: String]) throws -> TraceFilter {
        // Of names with both families IPv4's, unless the protocol says otherwise.
        func known(_ text: String?) throws -> [CIDR] {
            let found = try text.map { try prefixes($0, names) } ?? []
            let wide = transport == "icmpv6" ? found.filter { $0.family == .ipv6 } : []
            return wide.isEmpty ? found : wide
        }
        let (from, to) = (try known(source), try known(destination))
        var pair = (from.first, to.first)
        if let match = from.lazy.compactMap({ first in to.first { $0.family == first.family }.map { (first, $0) } })
            .first
        {
            pair = (match.0, match.1)
        } else if !from.isEmpty, !to.isEmpty {
            throw ValidationError("\(source ?? "") and \(destination ?? "") are of different families")
        }
        return TraceFilter(
            source: pair.0, destination: pair.1, transport: try number(pair.0?.family ?? pair.1?.family),
            sourcePort: sport, destinationPort: dport)
    }

    private func prefixes(_ text: String, _ names: [IPAddress: String]) throws -> [CIDR] {
        if let prefix = CIDR(text) ?? IPAddress(text).map({ CIDR(host: $0) }) { return [prefix] }
        let found = names.filter { $0.value == text }.keys.sorted().map { CIDR(host: $0) }
        if found.isEmpty {
            throw ProblemsError(
                Problem(
                    resource: "Packet", field: "address", value: text,
                    message: "is no IP address or prefix, and no pod or node has that name",
                    remedy: "see `wgplane get pods` and `wgplane get nodes`"))
        }
        return found
    }

    private func number(_ family: AddressFamily?) throws -> UInt8? {
        switch transport {
        case nil: return nil
        case "tcp": return 6
        case "udp": return 17
        case "sctp": return 132
        case "icmp": return family == .ipv6 ? 58 : 1
        case "icmpv6": return 58
        case let word?:
            guard let number = UInt8(word) else {
                throw ValidationError("--proto: \"\(word)\" is none of tcp, udp, icmp, icmpv6, sctp, and no number")
            }
            return number
        }
    }
}

extension PacketTracer.Packet {
    func show(_ format: OutputFormat) throws {
        if format != .table { return try Output.line(self) }
        let from = Output.side(sourceName, source, sourcePort)
        let to = Output.side(destinationName, destination, destinationPort)
        print("\(Output.clock(time)) \(hook)@\(device): \(transport) \(from) > \(to), \(bytes) bytes: \(decision)")
    }
}

/// Writes packets to a capture file as they come.
private final class PacketKeeper {
    private let handle: FileHandle
    private var file = CaptureFile()

    init(_ path: String) throws {
        if path == "-" {
            handle = .standardOutput
        } else {
            // A pipe or a device is written to, never replaced.
            let isThere = FileManager.default.fileExists(atPath: path)
            let type =
                try isThere ? FileManager.default.attributesOfItem(atPath: path)[.type] as? FileAttributeType : nil
            if type == nil || type == .typeRegular { try replaceFile(path, with: [], mode: 0o600) }
            handle = try FileHandle(forWritingTo: URL(fileURLWithPath: path))
        }
        try handle.write(contentsOf: Data(CaptureFile.header))
    }

    func add(_ trace: TraceEvent, _ packet: PacketTracer.Packet) throws {
        let time = UInt64(packet.time.timeIntervalSince1970 * 1e9)
        try handle.write(
            contentsOf: Data(file.packet(trace, device: packet.device, time: time, comment: packet.decision)))
    }
}
