// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DataplaneMaps
import Flows
import Foundation
import Model

struct AuditCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "audit",
        abstract: "Holds what the programs counted into the tunnel against WireGuard's own counters.",
        usage: "wgplane audit [options]",
        discussion: """
            Looks twice, --seconds apart. The programs count each packet into a WireGuard device and out of it in bytes
            of the messages that carry it: 32 more than the packet, padded to 16. WireGuard may have more by handshakes
            and keep-alives, and less by what waits for a peer that does not answer, or was dropped by the device, which
            counts that (ALLOWANCE); and more by padding that depends on others (between EXPECTED and its upper bound,
            see -o json). Beyond that and 0.1 %, somebody takes packets away in between (missing), or puts some in
            (surplus): exit status 1. Unknown: a peer went, or did not answer a wireguard-go, which counts less. The agent does the same all the time, see wgplane_audit_alarm. eBPF mode.
            """)

    @OptionGroup var node: NodeOptions
    @OptionGroup var output: OutputOptions
    @Option(help: "Between the two looks.") var seconds = 10

    func validate() throws {
        guard seconds > 0 else { throw ValidationError("--seconds: \(seconds) is not above 0") }
    }

    /// The JSON form, `schema` 1.
    struct Answer: Encodable {
        var schema = 1
        var seconds: Int
        var findings: [TunnelAudit.Finding]
        /// Packets that hooks have sent to the devices and that have not come there.
        var lostBeforeDevice: Int64
        var isClosed: Bool
    }

    func run() async throws {
        let audit = NodeAudit(NodeView(node.options))
        let first = try audit.sample()
        try await Task.sleep(for: .seconds(seconds))
        let second = try audit.sample()
        let findings = TunnelAudit.findings(from: first, to: second)
        let lost = max(0, TunnelAudit.lostBefore(from: first, to: second))
        let total = findings.filter { $0.direction == .out }.reduce(0) { $0 + $1.packets }
        let isLoss = lost > 64 && Double(lost) > Double(total) * TunnelAudit.tolerance
        let isClosed = !isLoss && findings.allSatisfy { $0.verdict == .closed || $0.verdict == .unknown }
        let answer = Answer(seconds: seconds, findings: findings, lostBeforeDevice: lost, isClosed: isClosed)
        if try !Output.structured(answer, output.format) {
            Output.table(
                ["WAY", "FAMILY", "PACKETS", "BYTES", "EXPECTED", "WIREGUARD", "DIFFERENCE", "ALLOWANCE", "VERDICT"],
                findings.map {
                    [
                        $0.direction.rawValue, $0.family, "\($0.packets)", "\($0.bytes)", "\($0.expectedLow)",
                        "\($0.measured)", String(format: "%+.4f %%", $0.difference * 100), "\($0.allowance)",
                        $0.verdict.rawValue,
                    ]
                }, empty: "WireGuard is switched off.")
            if isLoss { print("\(lost) packets were sent to a device and have not come there") }
        }
        if !isClosed { throw ExitCode(1) }
    }
}
