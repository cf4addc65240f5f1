// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DesiredState
import Foundation
import Model

struct TrustCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "trust",
        abstract:
            "Shows the keys that this node has seen first, or forgets a node's, so that its present one is believed.",
        usage: "wgplane trust [NODE...] [options]",
        discussion: """
            For `wireguardKeyPinning: FirstUse`. A node has another key after a reboot, or when its device was made anew;
            until its name is given here, or the annotation wgplane.io/pinned-key names the key, the new one is refused.
            An agent sees it within its audit period, ten seconds or so.
            """)

    @Argument(help: "Nodes whose keys are forgotten.") var nodes: [String] = []
    @OptionGroup var node: NodeOptions
    @OptionGroup var output: OutputOptions

    /// The JSON form: an array of these.
    struct Row: Encodable {
        var node: String
        var family: String
        var key: PublicKey
    }

    func run() throws {
        var keeper = KeyPinKeeper(node.options)
        var pins = keeper.current()
        if let problem = keeper.problem { throw ProblemsError(problem) }
        for name in nodes {
            guard AddressFamily.allCases.contains(where: { pins[$0][name] != nil }) else {
                throw ProblemsError(
                    Problem(
                        resource: "Node/\(name)", message: "has no pinned key on this node",
                        remedy: "see `wgplane trust`, without a name"))
            }
            for family in AddressFamily.allCases { pins[family][name] = nil }
        }
        keeper.keep(pins)
        if let problem = keeper.problem { throw ProblemsError(problem) }
        let rows = AddressFamily.allCases.flatMap { family in
            pins[family].map { Row(node: $0.key, family: family.description, key: $0.value) }
        }.sorted { ($0.node, $0.family) < ($1.node, $1.family) }
        if try Output.structured(rows, output.format) { return }
        Output.table(
            ["NODE", "FAMILY", "KEY"], rows.map { [$0.node, $0.family, $0.key.description] },
            empty: "No keys are pinned on this node.")
    }
}
