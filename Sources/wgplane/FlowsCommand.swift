// SPDX-License-Identifier: Apache-2.0

import Agent
import Datastore
import ArgumentParser
import Flows
import Model

struct FlowsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "flows", abstract: "Shows the flows of this node with their counters, the busiest first.",
        usage: "wgplane flows [options]",
        discussion:
            "WAY is tunnel, clear, local, outside, or mixed (some packets in clear, before the tunnel was ready).")

    @OptionGroup var node: NodeOptions
    @OptionGroup var datastore: DatastoreOptions
    @OptionGroup var output: OutputOptions
    @Option(help: "Only flows from or to this pod or node.") var pod: String?
    @Option(help: "Only flows whose other end is on this node.") var peer: String?

    func run() async throws {
        let view = NodeView(node.options)
        let names = (try? await datastore.open().read()).map(NodeView.addressNames) ?? [:]
        var flows = try FlowReader(view.maps()).biflows(names: names)
        if let pod { flows = flows.filter { $0.sourceName == pod || $0.destinationName == pod } }
        if let peer { flows = flows.filter { $0.peer == peer } }
        if try Output.structured(flows, output.format) { return }
        Output.table(
            ["PROTO", "SOURCE", "DESTINATION", "WAY", "PEER", "PACKETS", "BYTES", "PACKETS<", "BYTES<"],
            flows.map { flow in
                [
                    flow.transport, side(flow.sourceName, flow.source, flow.sourcePort),
                    side(flow.destinationName, flow.destination, flow.destinationPort), flow.way, flow.peer ?? "-",
                    "\(flow.packets)", "\(flow.bytes)", "\(flow.reversePackets)", "\(flow.reverseBytes)",
                ]
            }, empty: "No flows.")
    }

    private func side(_ name: String?, _ address: IPAddress, _ port: UInt16) -> String {
        let text = name ?? (address.family == .ipv6 && port != 0 ? "[\(address)]" : address.description)
        return port == 0 ? text : "\(text):\(port)"
    }
}
