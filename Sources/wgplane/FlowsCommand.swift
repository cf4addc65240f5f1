// SPDX-License-Identifier: Apache-2.0

import Agent
import Datastore
import ArgumentParser
import DataplaneMaps
import Flows
import Model
import SystemDescriptors

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
    @Flag(help: "Tell each new flow as it begins, until interrupted.") var follow = false
    @Option(help: "End after so many seconds of following; 0: never.") var seconds = 0
    @Option(help: "Only flows whose other end is on this node.") var peer: String?

    func run() async throws {
        let view = NodeView(node.options)
        let names = (try? await datastore.open().read()).map(NodeView.addressNames) ?? [:]
        if follow {
            let follower = EventFollower(
                view: view, kind: .flow, seconds: seconds, format: output.format, names: names)
            return try await Task.detachedThread { try follower.run() }
        }
        var flows = try FlowReader(view.maps()).biflows(names: names)
        if let pod { flows = flows.filter { $0.sourceName == pod || $0.destinationName == pod } }
        if let peer { flows = flows.filter { $0.peer == peer } }
        if try Output.structured(flows, output.format) { return }
        Output.table(
            ["PROTO", "SOURCE", "DESTINATION", "WAY", "PEER", "PACKETS", "BYTES", "PACKETS<", "BYTES<"],
            flows.map { flow in
                [
                    flow.transport, Output.side(flow.sourceName, flow.source, flow.sourcePort),
                    Output.side(flow.destinationName, flow.destination, flow.destinationPort), flow.way,
                    flow.peer ?? "-",
                    "\(flow.packets)", "\(flow.bytes)", "\(flow.reversePackets)", "\(flow.reverseBytes)",
                ]
            }, empty: "No flows.")
    }
}
