// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DataplaneMaps
import Foundation
import Logging
import Model

extension LogLevelChoice: ExpressibleByArgument {}

/// Log levels by their names in swift-log.
enum LogLevelChoice: String, CaseIterable {
    case trace, debug, info, notice, warning, error, critical

    var level: Logger.Level { Logger.Level(rawValue: rawValue) ?? .info }
}

/// Which node a command looks at.
struct NodeOptions: ParsableArguments {
    @Option(help: "Name of this node's Node resource. Default: WGPLANE_NODE, else the host name.")
    var node: String?

    @Option(help: "Folder of the agent's lock and status.")
    var runDirectory = AgentOptions.defaultRunDirectory

    @Option(
        help: ArgumentHelp(
            "Folder of what outlives a reboot. Default: WGPLANE_STATE_DIRECTORY, else /var/lib/wgplane-agent."))
    var stateDirectory: String?

    @Option(help: "Folder of the pinned maps.")
    var pins = PinLayout.defaultRoot

    /// Whether somebody has said which node.
    var isNamed: Bool { node != nil || ProcessInfo.processInfo.environment["WGPLANE_NODE"] != nil }

    var options: AgentOptions {
        let environment = ProcessInfo.processInfo.environment
        let name = node ?? environment["WGPLANE_NODE"] ?? ProcessInfo.processInfo.hostName
        let state =
            stateDirectory ?? environment["WGPLANE_STATE_DIRECTORY"] ?? AgentOptions.defaultStateDirectory
        return AgentOptions(
            node: name, runDirectory: runDirectory, stateDirectory: state, layout: PinLayout(root: pins))
    }
}

/// Which node a command looks at: this one, or one as an archive has it.
struct ViewOptions: ParsableArguments {
    @OptionGroup var node: NodeOptions

    @Option(
        help: ArgumentHelp(
            "Look at the node as `wgplane maps dump --all --output FILE` has kept it, on any machine.",
            valueName: "file"))
    var from: String?

    func view() throws -> NodeView {
        if let from { return NodeView(try NodeArchive(file: from)) }
        return NodeView(node.options)
    }

    /// For what happens now.
    func liveView(_ what: String) throws -> NodeView {
        guard from == nil else {
            throw ValidationError("\(what) tells what happens now, which an archive (--from) cannot")
        }
        return NodeView(node.options)
    }
}

/// How a command prints.
enum OutputFormat: String, ExpressibleByArgument, CaseIterable {
    case table
    case json
    case yaml
}

struct OutputOptions: ParsableArguments {
    @Option(name: [.customShort("o"), .customLong("output")], help: "table, json or yaml.")
    var format = OutputFormat.table
}

/// For commands whose output is their answer.
let quietLogger = Logger(label: "wgplane") { _ in SwiftLogNoOpLogHandler() }

/// Logs to standard error, and keeps the last lines in the run directory.
func agentLogger(_ level: LogLevelChoice, runDirectory: String) -> Logger {
    var logger = Logger(label: "wgplane") {
        MultiplexLogHandler([
            StreamLogHandler.standardError(label: $0), RecentLog(label: $0, runDirectory: runDirectory),
        ])
    }
    logger.logLevel = level.level
    return logger
}
