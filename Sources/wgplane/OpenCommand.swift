// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import Model

struct OpenCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "open", abstract: "Prints where this node's page is.",
        usage: "wgplane open [options]",
        discussion: """
            The agent serves it on dashboardAddress, 127.0.0.1:9586 where nothing else is set. From another machine:
            ssh -L 9586:127.0.0.1:9586 NODE. The metrics are at /metrics beside it. --socket prints the socket that
            only root may use: curl --unix-socket PATH http://node/metrics.
            """)

    @OptionGroup var node: NodeOptions
    @Flag(help: "The socket in the run directory instead.") var socket = false

    func run() throws {
        let view = NodeView(node.options)
        guard view.isAgentRunning else {
            throw ProblemsError(
                Problem(
                    resource: "Agent", message: "does not run on this node, and it is what serves the page",
                    remedy: "start it with `wgplane agent`; `wgplane status` and `wgplane flows` work without"))
        }
        if socket { return print(view.options.dashboardSocket) }
        let report = try view.report()
        if let problem = report.problems.first(where: { $0.field == "spec.dashboardAddress" }) {
            throw ProblemsError(problem)
        }
        let settings = report.dashboard
        guard !settings.address.isEmpty else {
            throw ProblemsError(
                Problem(
                    resource: "DataplaneConfiguration", field: "spec.dashboardAddress", value: "None",
                    message: "keeps the page to the socket \(view.options.dashboardSocket)",
                    remedy: "set dashboardAddress to 127.0.0.1:9586"))
        }
        print("\(settings.certificateFile.isEmpty ? "http" : "https")://\(settings.address)/")
    }
}
