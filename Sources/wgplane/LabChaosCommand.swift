// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Agent
import Chaos
import Foundation
import Lab
import Model
import SystemDescriptors

struct LabChaosCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "chaos",
        abstract:
            "Lets things go wrong at random in a lab of its own, under traffic, and counts what was lost or seen in clear.",
        usage: "wgplane lab chaos [--minutes M] [--seed N] [--fault NAME]... [options]",
        discussion: """
            Three nodes in strict mode, both families; datagrams a thousand times a second, fifty connections, and every
            packet between the nodes looked at. The last line is "P=<count> F=<count> faults=<count> seed=<seed>":
            P packets in clear, F broken connections, gaps of over 100 ms where none may be, and faults that were not
            mended. Exit status 0 only where both are 0 and nothing has grown.

            Faults:
            \(Fault.all.map { "  \($0.name): \($0.text)\($0.mayInterrupt ? " (may interrupt)" : "")" }.joined(separator: "\n"))
            """)

    @Option(help: "Name of the lab.") var name = "chaos"
    @Option(help: "For so long.") var minutes = 10.0
    @Option(help: "Repeats a run's choices; at random when it is not given.") var seed: UInt64?
    @Option(help: "Only this fault; may be repeated.") var fault: [String] = []
    @Option(help: "WireGuard: auto, kernel or userspace.") var wireguard = "auto"
    @Option(help: "Attachment of the programs: auto, tcx or tc.") var attach = "auto"
    @OptionGroup var output: OutputOptions

    func validate() throws {
        for name in fault where !Fault.all.contains(where: { $0.name == name }) {
            throw ValidationError("--fault: \"\(name)\" is none; see --help")
        }
        guard minutes > 0 else { throw ValidationError("--minutes: \(minutes) is no time; use more than 0") }
    }

    func run() async throws {
        guard let backend = WireGuardBackendChoice.allCases.first(where: { $0.rawValue.lowercased() == wireguard })
        else {
            throw ValidationError("--wireguard: \"\(wireguard)\" is not one of auto, kernel, userspace")
        }
        guard let attachment = AttachmentChoice.allCases.first(where: { $0.rawValue.lowercased() == attach }) else {
            throw ValidationError("--attach: \"\(attach)\" is not one of auto, tcx, tc")
        }
        var options = ChaosOptions(
            seed: seed ?? UInt64.random(in: 0...UInt64(UInt32.max)), duration: .seconds(minutes * 60))
        options.faults = Set(fault)
        let spec = LabSpec(
            name: name, nodes: 3, pods: 2, families: [.ipv4, .ipv6], backend: backend, attachment: attachment)
        let lab = try await Lab.up(spec, enabled: false, binary: ownBinary(), logger: quietLogger)
        let isStructured = output.format != .table
        let say: @Sendable (String) -> Void = { if !isStructured { print("chaos: \($0)") } }
        let report: ChaosReport
        do {
            try await lab.waitUntilSettled(enabled: false)
            say("seed \(options.seed)")
            var chaos = Chaos(lab, options, say: say)
            report = try await chaos.run()
        } catch {
            for node in lab.nodeNames() { say("\(node): \(lab.status(node)?.problems.map(\.description) ?? [])") }
            try? await lab.down()
            throw error
        }
        try await lab.down()
        if try !Output.structured(report, output.format) {
            say(
                "\(report.datagrams) datagrams, \(report.datagramsLost) without an answer, \(report.bytes) bytes of connections"
            )
            say("two hosts joined by hand had no answer for \(report.longestStall) ms at most")
            for (name, count) in report.byFault.sorted(by: { $0.key < $1.key }) {
                say("\(name): \(count) times, as before after at most \(report.mended[name] ?? 0) ms")
            }
            for doubt in report.doubts { say("worthless: \(doubt)") }
            print(
                "P=\(report.clearPackets) F=\(report.failures) faults=\(report.faults) seed=\(report.seed)")
        }
        if !report.isGood { throw ExitCode(1) }
    }
}
