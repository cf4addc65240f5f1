// SPDX-License-Identifier: Apache-2.0

import Agent
import Datastore
import ArgumentParser
import BPF
import DataplaneMaps
import Model

struct MapsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "maps", abstract: "Looks into the data plane's maps, by their pins: also with the agent dead.",
        subcommands: [List.self, Dump.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Lists the maps.", usage: "wgplane maps list [options]")

        @OptionGroup var node: NodeOptions
        @OptionGroup var output: OutputOptions

        struct Row: Encodable {
            var name: String
            var type: String
            var entries: Int
            var capacity: Int
            var keySize: Int
            var valueSize: Int
        }

        func run() async throws {
            let rows = try NodeView(node.options).maps().list().map {
                Row(
                    name: $0.name, type: $0.information.typeName, entries: $0.entries,
                    capacity: $0.information.maximumEntries, keySize: $0.information.keySize,
                    valueSize: $0.information.valueSize)
            }
            if try Output.structured(rows, output.format) { return }
            Output.table(
                ["NAME", "TYPE", "ENTRIES", "CAPACITY", "KEY", "VALUE"],
                rows.map { [$0.name, $0.type, "\($0.entries)", "\($0.capacity)", "\($0.keySize)", "\($0.valueSize)"] })
        }
    }

    struct Dump: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Prints a map's entries, decoded.",
            usage: "wgplane maps dump NAME [options]",
            discussion: "Maps: " + PinnedMaps.names.joined(separator: ", ") + ".")

        @Argument(help: "Name of the map.") var name: String
        @OptionGroup var node: NodeOptions
        @OptionGroup var datastore: DatastoreOptions
        @OptionGroup var output: OutputOptions

        func run() async throws {
            guard PinnedMaps.names.contains(name) else {
                throw ValidationError("\"\(name)\" is no map; the maps are \(PinnedMaps.names.joined(separator: ", "))")
            }
            let view = NodeView(node.options)
            let names = DumpNames(
                addresses: (try? await datastore.open().read()).map(NodeView.addressNames) ?? [:],
                interfaces: view.interfaceNames())
            let entries = try view.maps().dump(name, names: names) ?? []
            if try Output.structured(entries, output.format) { return }
            Output.table(entries)
        }
    }
}
