// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import Flows
import Model

struct MetricsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "metrics", abstract: "Prints this node's metrics, as Prometheus takes them.",
        usage: "wgplane metrics [options]",
        discussion: """
            What the kernel, the maps and the agent's last report tell: also with the agent dead, for node_exporter's
            textfile collector, or from an archive. The agent's own counters are in what it serves itself.
            """)

    enum Format: String, ExpressibleByArgument, CaseIterable {
        case prometheus, openmetrics

        var text: MetricText { self == .prometheus ? .prometheus : .openMetrics }
    }

    @OptionGroup var source: ViewOptions
    @Option(name: [.customShort("o"), .customLong("output")], help: "prometheus or openmetrics.")
    var output = Format.prometheus

    func run() throws {
        print(output.text.render(NodeMetrics(try source.view()).families()), terminator: "")
    }
}
