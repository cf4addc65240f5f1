// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import BPF
import DataplaneMaps
import Datastore
import Foundation
import Model
import OrderedCollections
import SystemDescriptors

struct MapsCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "maps", abstract: "Looks into the data plane's maps, by their pins: also with the agent dead.",
        subcommands: [List.self, Dump.self, Lookup.self])

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Lists the maps.", usage: "wgplane maps list [options]",
            discussion: "MEMORY is what the kernel accounts for it; ENTRIES of an array are those that are not zero.")

        @OptionGroup var source: ViewOptions
        @OptionGroup var output: OutputOptions

        struct Row: Encodable {
            var name: String
            var type: String
            var entries: Int
            var capacity: Int
            var keySize: Int
            var valueSize: Int
            /// Bytes; nil: the kernel does not say.
            var memory: Int?
        }

        func run() async throws {
            let rows = try source.view().maps().list().map {
                Row(
                    name: $0.name, type: $0.information.typeName, entries: $0.entries,
                    capacity: $0.information.maximumEntries, keySize: $0.information.keySize,
                    valueSize: $0.information.valueSize, memory: $0.information.memory)
            }
            if try Output.structured(rows, output.format) { return }
            Output.table(
                ["NAME", "TYPE", "ENTRIES", "CAPACITY", "KEY", "VALUE", "MEMORY"],
                rows.map {
                    [
                        $0.name, $0.type, "\($0.entries)", "\($0.capacity)", "\($0.keySize)", "\($0.valueSize)",
                        $0.memory.map { Output.bytes(UInt64($0)) } ?? "-",
                    ]
                })
        }
    }

    struct Dump: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Prints a map's entries, decoded; --all writes an archive of the node.",
            usage: "wgplane maps dump NAME [options]\n       wgplane maps dump --all --output FILE",
            discussion: """
                Maps: \(NodeMaps.names.joined(separator: ", ")).

                --where takes an entry's field and a word of its value, as the table names them; entries must have
                all that are given. --raw prints the bytes of keys and values as the kernel has them.

                The archive of --all is one JSON file with the maps, the agent's last report with the settings in
                force, the WireGuard devices without their private keys, links, rules, routes, and the end of the
                agent's log: what a support case needs. `status`, `flows`, `drops`, `explain` and `maps` read it
                with --from FILE.
                """)

        @Argument(help: "Name of the map.") var name: String?
        @Flag(help: "An archive of everything.") var all = false
        @OptionGroup var source: ViewOptions
        @OptionGroup var datastore: DatastoreOptions
        @Option(
            name: [.customShort("o"), .customLong("output")],
            help: ArgumentHelp("table, json or yaml; with --all the file to write.", valueName: "format|file"))
        var output = "table"
        @Flag(help: "Bytes of keys and values, in hexadecimal.") var raw = false
        @Option(
            name: .customLong("where"),
            help: ArgumentHelp("Only entries whose field has this word; may be repeated.", valueName: "FIELD=WORD"))
        var filters: [String] = []
        @Option(help: ArgumentHelp("Sort by this field instead.", valueName: "field")) var sort: String?
        @Flag(help: "Print again each second, until interrupted.") var watch = false

        func validate() throws {
            guard all == (name == nil) else {
                throw ValidationError(all ? "--all takes no name of a map" : "name a map, or --all")
            }
            if !all { _ = try format }
            if all, OutputFormat(rawValue: output) != nil {
                throw ValidationError("--all writes an archive: name its file, --output FILE")
            }
            if let name, !NodeMaps.names.contains(name) {
                throw ValidationError("\"\(name)\" is no map; the maps are \(NodeMaps.names.joined(separator: ", "))")
            }
            for filter in filters where !filter.contains("=") {
                throw ValidationError("--where: \"\(filter)\" has no \"=\"; write it like destination=node2")
            }
        }

        private var format: OutputFormat {
            get throws {
                guard let format = OutputFormat(rawValue: output) else {
                    throw ValidationError("--output: \"\(output)\" is none of table, json, yaml")
                }
                return format
            }
        }

        func run() async throws {
            guard let name else { return try await archive() }
            let format = try format
            while true {
                let entries = try await entries(name)
                if watch { print("\u{1b}[H\u{1b}[2J", terminator: "") }
                if try !Output.structured(entries, format) { Output.table(entries) }
                guard watch else { return }
                try await Task.sleep(for: .seconds(1))
            }
        }

        private func entries(_ name: String) async throws -> [ManifestValue] {
            let view = try source.view()
            let maps = try view.maps()
            var entries: [ManifestValue]
            if raw {
                let image = try maps.all.first { $0.name == name }?.image()
                entries = (image?.entries ?? []).sorted { $0.key.text < $1.key.text }.map {
                    .object(["key": .string($0.key.text), "value": .string($0.value.text)])
                }
            } else {
                let names = DumpNames(
                    addresses: await view.names(try datastore.open()), interfaces: view.interfaceNames())
                entries = try maps.dump(name, names: names) ?? []
            }
            return try MapEntries(entries, of: name).filtered(filters).sorted(by: sort)
        }

        private func archive() async throws {
            let view = try source.view()
            guard !view.isArchive else { throw ValidationError("--all takes an archive of a node, not of an archive") }
            let names = await view.names(try datastore.open())
            let archive = NodeArchive(view, version: Wgplane.configuration.version, names: names)
            try replaceFile(output, with: try archive.encoded(), mode: 0o600)
            let maps = archive.maps?.maps ?? []
            print(
                "\(output): node \(archive.node), \(maps.count) maps with \(maps.reduce(0) { $0 + $1.entries.count }) entries, \(archive.devices.count) devices, \(archive.log.count) lines of log"
            )
            for what in archive.missing { print("not in it: \(what)") }
        }
    }

    struct Lookup: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Prints what a map has for a key: an address finds the prefix that decides.",
            usage: "wgplane maps lookup NAME KEY [options]",
            discussion: """
                NAME is a map, or `routes`: the maps of routes in the order in which the programs ask them. KEY is an
                address or prefix; a slot's number, a node, a device, a hook or a reason where the map has those.
                Exit status 1 when there is no such entry.
                """)

        @Argument(help: "Name of the map, or `routes`.") var name: String
        @Argument(help: "The key.") var key: String
        @OptionGroup var source: ViewOptions
        @OptionGroup var datastore: DatastoreOptions
        @OptionGroup var output: OutputOptions

        func validate() throws {
            guard name == "routes" || NodeMaps.names.contains(name) else {
                throw ValidationError(
                    "\"\(name)\" is no map; the maps are \(NodeMaps.names.joined(separator: ", ")), or routes")
            }
        }

        func run() async throws {
            let view = try source.view()
            let maps = try view.maps()
            let names = DumpNames(addresses: await view.names(try datastore.open()), interfaces: view.interfaceNames())
            var found: [ManifestValue] = []
            if name == "routes" {
                guard let address = IPAddress(key) else {
                    throw ValidationError("\"\(key)\" is no IP address, which routes are looked up by")
                }
                let suffix = address.family == .ipv4 ? "4" : "6"
                for map in ["route_addresses", "route_blocks", "route_prefixes"].map({ $0 + suffix }) {
                    found = try MapEntries(try maps.dump(map, names: names) ?? [], of: map).lookup(key)
                    if !found.isEmpty { break }
                }
            } else {
                found = try MapEntries(try maps.dump(name, names: names) ?? [], of: name).lookup(key)
            }
            guard !found.isEmpty else {
                throw ProblemsError(
                    Problem(
                        resource: "Map/\(name)", field: "key", value: key, message: "has no entry",
                        remedy: "see `wgplane maps dump`"))
            }
            if try !Output.structured(found, output.format) { Output.table(found) }
        }
    }
}
