// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import Model
import SystemDescriptors

struct GuardCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "guard", abstract: "Arms strict mode's leak guard at boot, before any pod can send.",
        usage: "wgplane guard [options]",
        discussion: """
            One-shot, for a unit ordered before the kubelet (scripts/deploy/systemd/wgplane-guard.service). It reads
            what the last agent has kept: the pools, the nodes that are exempt, the uplinks. Packets
            from pod to pod do not cross an uplink in clear from then on, agent or not. Where
            strict mode was off it does nothing. The agent takes over what it finds.
            """)

    @OptionGroup var node: NodeOptions
    @OptionGroup var output: OutputOptions
    @Option(help: "Seconds to wait for an uplink.") var wait = 60

    func run() async throws {
        guard isRoot() else {
            throw ProblemsError(
                Problem(
                    resource: "Guard", field: "privileges", message: "needs root to load BPF programs",
                    remedy: "run it as root"))
        }
        let run = GuardRun(node.options)
        let seconds = wait
        let outcome = try await Task.detachedThread { try run.arm(waitSeconds: seconds) }
        if try Output.structured(outcome, output.format) { return }
        guard outcome.armed else {
            print("Strict mode is off: nothing to guard.")
            return
        }
        print(
            "guarded at \(outcome.devices.joined(separator: ", ")): \(outcome.pools.map(\.description).joined(separator: ", "))"
        )
        if !outcome.exempt.isEmpty { print("exempt: \(outcome.exempt.map(\.description).joined(separator: ", "))") }
    }
}
