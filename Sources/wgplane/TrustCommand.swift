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
        usage: "wgplane trust [NODE...] [--key KEY] [--key-v6 KEY] [options]",
        discussion: """
            For `wireguardKeyPinning: FirstUse`. A node has another key after a reboot, or when its device was made anew;
            until its name is given here, the new one is refused, whatever annotations say.

            Without a key, whatever the datastore names next is believed. Where it may lie, have the key told by somebody
            who sees it on that node (`wg show`), and give it: no other is believed then.

            An agent sees it within its audit period, ten seconds or so.
            """)

    @Argument(help: "Nodes whose keys are forgotten.") var nodes: [String] = []
    @Option(help: "The key that the node has, of its IPv4 device.", transform: publicKey) var key: PublicKey?
    @Option(name: .customLong("key-v6"), help: "The same, of its IPv6 device.", transform: publicKey) var keyV6:
        PublicKey?
    @OptionGroup var node: NodeOptions
    @OptionGroup var output: OutputOptions

    private static func publicKey(_ text: String) throws -> PublicKey {
        guard let key = PublicKey(text) else {
            throw ValidationError("is no WireGuard public key: 44 characters of base64, as `wg show` writes it.")
        }
        return key
    }

    /// The JSON form: an array of these.
    struct Row: Encodable {
        var node: String
        var family: String
        var key: PublicKey
    }

    func validate() throws {
        if key != nil || keyV6 != nil, nodes.count != 1 {
            throw ValidationError("--key and --key-v6 go with the name of one node, whose keys they are.")
        }
    }

    func run() throws {
        var keeper = KeyPinKeeper(node.options)
        if !nodes.isEmpty { try keeper.change(change) }
        let pins = keeper.current()
        if let problem = keeper.problem { throw ProblemsError(problem) }
        let rows = AddressFamily.allCases.flatMap { family in
            pins[family].map { Row(node: $0.key, family: family.description, key: $0.value) }
        }.sorted { ($0.node, $0.family) < ($1.node, $1.family) }
        if try Output.structured(rows, output.format) { return }
        Output.table(
            ["NODE", "FAMILY", "KEY"], rows.map { [$0.node, $0.family, $0.key.description] },
            empty: "No keys are pinned on this node.")
    }

    private func change(_ pins: inout KeyPins) throws {
        let told = [AddressFamily.ipv4: key, .ipv6: keyV6].compactMapValues { $0 }
        for name in nodes {
            guard !told.isEmpty || AddressFamily.allCases.contains(where: { pins[$0][name] != nil }) else {
                throw ProblemsError(
                    Problem(
                        resource: "Node/\(name)", message: "has no pinned key on this node",
                        remedy: "see `wgplane trust`, without a name"))
            }
            for family in AddressFamily.allCases where told.isEmpty || told[family] != nil {
                pins[family][name] = told[family]
            }
        }
    }
}
