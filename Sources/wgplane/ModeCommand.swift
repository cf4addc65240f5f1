// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import Datastore
import DesiredState
import Foundation
import Model
import OrderedCollections

struct ModeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mode", abstract: "Shows, or selects, the data plane of nodes: eBPF, routes and rules, or none.",
        usage: "wgplane mode get|set [options]",
        discussion: """
            `set` writes `mode` of DataplaneConfiguration: of `default`, or with --node of `node.<name>`. Agents
            change over while traffic flows, and need no restart.
            """,
        subcommands: [ModeGetCommand.self, ModeSetCommand.self])
}

struct ModeGetCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "get", abstract: "Shows what mode each node is to have, and has.",
        usage: "wgplane mode get [--node NODE] [options]")

    @Option(help: "Only this node.") var node: String?
    @OptionGroup var datastore: DatastoreOptions
    @OptionGroup var output: OutputOptions

    /// The JSON form: an array of these.
    struct Row: Encodable {
        var node: String
        /// `Auto`, `EBPF`, `Route`, `Disabled`, as the resources say.
        var selected: String
        /// The resource that says so; `default`: none.
        var origin: String
        /// `ebpf`, `route`, `disabled`, as the node's agent tells; empty: it has not.
        var running: String
        /// In the agent's words.
        var message: String
    }

    func run() async throws {
        let snapshot = try await datastore.read([.node, .felixConfiguration, .dataplaneConfiguration])
        let cluster = ClusterState(snapshot.manifests.values)
        let names = node.map { [$0] } ?? cluster.nodes.keys.sorted()
        let rows = try names.map { name -> Row in
            guard let found = cluster.nodes[name] else { throw notFound(ResourceKey(.node, name)) }
            let effective = effectiveSettings(snapshot, node: name)
            let mode = effective.listing.first { $0.name == "mode" }
            return Row(
                node: name, selected: mode?.value ?? "", origin: mode?.origin ?? "", running: found.mode,
                message: found.modeMessage)
        }
        if try Output.structured(rows, output.format) { return }
        Output.table(
            ["NODE", "SELECTED", "BY", "RUNNING", "MESSAGE"],
            rows.map { [$0.node, $0.selected, $0.origin, $0.running.isEmpty ? "-" : $0.running, $0.message] },
            empty: "No nodes.")
    }
}

struct ModeSetCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "set", abstract: "Selects the data plane of all nodes, or of one.",
        usage: "wgplane mode set auto|ebpf|route|disabled [--node NODE] [options]",
        discussion: """
            auto: eBPF where the kernel can, or as bpfEnabled says. ebpf: TC programs. route: routing rule, table and
            the node's firewall, as Calico's Felix does. disabled: no WireGuard.
            """)

    enum Word: String, ExpressibleByArgument, CaseIterable {
        case auto, ebpf, route, disabled

        var choice: ModeChoice {
            switch self {
            case .auto: .auto
            case .ebpf: .ebpf
            case .route: .route
            case .disabled: .disabled
            }
        }
    }

    @Argument(help: "auto, ebpf, route or disabled.") var mode: Word
    @Option(help: "Only this node. Default: all nodes without a word of their own.") var node: String?
    @OptionGroup var datastore: DatastoreOptions

    func run() async throws {
        if let node {
            let key = ResourceKey(.node, node)
            guard try await datastore.read([.node]).manifests[key] != nil else { throw notFound(key) }
        }
        let key = ResourceKey(.dataplaneConfiguration, node.map { "node.\($0)" } ?? "default")
        let word = mode.choice.rawValue
        try await datastore.use { store in
            try await store.update(key) { current in
                (current ?? emptyManifest(key)).merging(.object(["spec": .object(["mode": .string(word)])]))
            }
        }
        print("\(key) patched: mode \(word)")
    }
}

/// A resource without fields.
func emptyManifest(_ key: ResourceKey) -> ManifestValue {
    .object([
        "apiVersion": .string(key.kind.apiVersion), "kind": .string(key.kind.rawValue),
        "metadata": .object(["name": .string(key.name)]),
    ])
}
