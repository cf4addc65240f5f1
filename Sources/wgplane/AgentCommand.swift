// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DataplaneMaps
import Datastore
import Foundation
import Logging
import Model
import ServiceLifecycle
import Synchronization
import SystemDescriptors
import UnixSignals

struct AgentCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "agent", abstract: "Runs the node agent, in the foreground.",
        usage: "wgplane agent [options]",
        discussion: """
            Needs root, and keeps of it CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON; a second process starts wireguard-go
            and iptables for it, where they are needed. Ends on SIGTERM and SIGINT, and leaves encryption running: maps and
            programs stay, and the next agent takes them over. Switch WireGuard off, or run
            `wgplane cleanup`, to take everything away. Only one agent runs for a node.
            """)

    @OptionGroup var node: NodeOptions
    @OptionGroup var datastore: DatastoreOptions
    @Option(
        name: .customLong("set"),
        help: ArgumentHelp(
            "A setting of this node, over what the datastore and the environment (FELIX_<NAME>, WGPLANE_<NAME>) say; may be repeated.",
            valueName: "NAME=VALUE"))
    var settings: [String] = []
    @Option(
        help: ArgumentHelp(
            "What nobody tells of is looked for at least so often, on large nodes too: 10 to 3600 seconds. Default: WGPLANE_LONGEST_PERIOD, else 60.",
            valueName: "seconds"))
    var longestPeriod: Int?
    @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = LogLevelChoice.info

    /// What the kernel has refused to take from this process.
    private static let refusals = Mutex<[Privileges.Refusal]>([])

    /// Call it before there is a second thread.
    func reducePrivileges() {
        guard isRoot() else { return }
        let refusals = AgentPrivileges.reduce(
            PinLayout(root: node.pins), startsOthers: DatastoreLocation.startsPrograms(datastore.ofAgent))
        Self.refusals.withLock { $0 = refusals }
    }

    private func longestPeriodInForce() throws -> Duration {
        let text =
            longestPeriod.map(String.init) ?? ProcessInfo.processInfo.environment["WGPLANE_LONGEST_PERIOD"] ?? "60"
        guard let seconds = Int(text), (10...3600).contains(seconds) else {
            throw ProblemsError(
                Problem(
                    resource: "Agent", field: longestPeriod == nil ? "WGPLANE_LONGEST_PERIOD" : "--longest-period",
                    value: text, message: "is not from 10 to 3600 seconds", remedy: "name whole seconds, 60 for example"
                ))
        }
        return .seconds(seconds)
    }

    func run() async throws {
        guard isRoot() else {
            throw ProblemsError(
                Problem(
                    resource: "Agent", field: "privileges", message: "needs root to make devices and load BPF programs",
                    remedy: "run it as root, or in a container with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON"))
        }
        ProcessMemory.economize()
        var options = node.options
        options.datastoreArgument = try DatastoreLocation.absolute(datastore.ofAgent)
        options.overrides =
            SettingOverride.environment(ProcessInfo.processInfo.environment)
            + (try settings.map { try SettingOverride.commandLine($0) })
        options.longestPeriod = try longestPeriodInForce()
        // The run directory, for the log's last lines, is made before the first line.
        try makeOwnFolders(options.runDirectory)
        let logger = agentLogger(logLevel, runDirectory: options.runDirectory)
        for refusal in Self.refusals.withLock({ $0 }) { logger.warning("\(AgentPrivileges.problem(of: refusal))") }
        let store = try DatastoreLocation.open(datastore.ofAgent, logger: logger)
        let service = AgentService(options: options, datastore: store, logger: logger)
        let group = ServiceGroup(
            configuration: .init(
                services: [.init(service: service, successTerminationBehavior: .gracefullyShutdownGroup)],
                gracefulShutdownSignals: [.sigterm, .sigint], logger: logger))
        do {
            try await group.run()
            await store.close()
        } catch {
            await store.close()
            throw error
        }
    }
}

struct CleanupCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "cleanup", abstract: "Takes away all that agents have left on this node.",
        usage: "wgplane cleanup [options]",
        discussion: """
            Programs, maps, routing rules and routes, rules in the node's firewall, WireGuard devices whatever
            their names, the kernel's settings as they were, and the agent's files; and the Node's annotations,
            its condition and the devices' addresses in the datastore, so that the other nodes send in clear
            again, as this one does afterwards. Node and datastore are those of the last agent since the boot, where
            nothing else is said. Exit status 1 when the datastore could not be told, or something is left.
            """)

    @OptionGroup var node: NodeOptions
    @OptionGroup var datastore: DatastoreOptions
    @Option(help: "WireGuard devices to delete, beside those that bear the alias wgplane.") var device = [
        "wireguard.cali", "wg-v6.cali",
    ]

    func run() async throws {
        var options = node.options
        let report = try? StatusReport.read(runDirectory: options.runDirectory)
        if let report, !node.isNamed { options.node = report.node }
        // Before anything is touched: what is no datastore's name is refused, and the report is there.
        let location = datastore.resolved(runDirectory: options.runDirectory)
        try DatastoreLocation.check(location)
        let problem = try await NodeCleanup(options).cleanUp(devices: device) { body in
            try await using(try DatastoreLocation.open(location, logger: quietLogger), body)
        }
        if let problem { throw ProblemsError(problem) }
    }
}

struct DoctorCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Tells what this kernel and node can do, what is missing, and how to mend it.",
        usage: "wgplane doctor [options]\n       wgplane doctor --peer NODE [options]",
        discussion: """
            Exit status 1 when the agent could not work here. With --peer: goes from what is published to what comes
            back, with echo requests of its own through the data plane, and says where they stop; exit status 1 when
            they do.
            """)

    @Option(help: ArgumentHelp("Find out why packets to this node do not get through, instead.", valueName: "node"))
    var peer: String?
    @OptionGroup var node: NodeOptions
    @OptionGroup var datastore: DatastoreOptions
    @OptionGroup var output: OutputOptions
    @Flag(help: "Load each program and tell what the verifier says of it, instead.") var programs = false

    func run() async throws {
        if programs {
            let rows = try Doctor().programStatistics()
            if try Output.structured(rows, output.format) { return }
            return Output.table(
                ["PROGRAM", "DEVICE", "INSTRUCTIONS", "VERIFIED", "MACHINE CODE", "LOADED IN"],
                rows.map {
                    [
                        $0.program, $0.ethernet ? "Ethernet" : "IP", "\($0.instructions)", "\($0.verified)",
                        "\($0.machineBytes) B", "\($0.loadMilliseconds) ms",
                    ]
                })
        }
        if let peer { return try await examine(peer) }
        let findings = Doctor().examine()
        if try !Output.structured(findings, output.format) {
            Output.table(["CHECK", "VERDICT", "FOUND"], findings.map { [$0.check, $0.verdict.rawValue, $0.found] })
            for finding in findings where !finding.remedy.isEmpty { print("\(finding.check): \(finding.remedy)") }
        }
        if findings.contains(where: { $0.verdict == .missing }) { throw ExitCode(1) }
    }

    private func examine(_ peer: String) async throws {
        let doctor = PeerDoctor(NodeView(node.options), snapshot: try await datastore.read())
        let steps = try await Task.detachedThread { try doctor.examine(peer) }
        if try !Output.structured(steps, output.format) {
            Output.table(
                ["STEP", "FAMILY", "VERDICT", "FOUND"],
                steps.map { [$0.step, $0.family, $0.verdict.rawValue, $0.found] })
            for step in steps where !step.remedy.isEmpty {
                print("\(step.family.isEmpty ? "" : step.family + ", ")\(step.step): \(step.remedy)")
            }
        }
        if steps.contains(where: { $0.verdict == .failed }) { throw ExitCode(1) }
    }
}
