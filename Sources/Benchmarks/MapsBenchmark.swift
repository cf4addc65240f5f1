// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Foundation
import Model
import SystemDescriptors

/// Large maps: written, changed, read, beside bpftool.
struct MapsBenchmark: Benchmark {
    static let name = "maps"
    static let text = "100,000 routes of addresses: full load, a change of 1 %, dump, beside bpftool"

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        try await Task.detachedThread { try measure(context) }
    }

    private static func measure(_ context: BenchmarkContext) throws -> [Result] {
        let process = ProcessInfo.processInfo.processIdentifier
        let layouts = [1, 2].map { PinLayout(root: "/sys/fs/bpf/wgplane-bench-\(process)-maps\($0)") }
        let folder = "/run/wgplane-bench-\(process)-maps"
        defer {
            for layout in layouts { try? layout.remove() }
            try? FileManager.default.removeItem(atPath: folder)
        }
        try makeFolders(folder, mode: 0o700)
        var results: [Result] = []
        for family in AddressFamily.allCases {
            let count = context.effort.pick(100_000, quick: 20_000)
            let suffix = family == .ipv4 ? "4" : "6"
            var maps: [NodeMaps] = []
            for layout in layouts {
                try layout.remove()
                try layout.create()
                _ = try DataplanePrograms(layout)
                maps.append(try NodeMaps(layout))
            }
            let (own, other) = (maps[0], layouts[1].map("route_addresses\(suffix)"))
            let routes = (0..<count).map { (key: address(family, $0), value: UInt32(3 + $0 % 5000)) }
            let changed = routes.prefix(count / 100).map { (key: $0.key, value: $0.value + 1) }
            try lines(routes, other).write(toFile: "\(folder)/load", atomically: false, encoding: .utf8)
            try lines(changed, other).write(toFile: "\(folder)/change", atomically: false, encoding: .utf8)
            try lines(Array(routes.prefix(count / 100)), other)
                .write(toFile: "\(folder)/back", atomically: false, encoding: .utf8)
            var turns = Alternation()
            turns.add("load") {
                try empty(own, routes)
                return try Tools.milliseconds { try own.routes.update(addresses: routes) }
            }
            turns.add("load by bpftool") {
                try empty(maps[1], routes)
                return try Tools.milliseconds { try Tools.run(["bpftool", "batch", "file", "\(folder)/load"]) }
            }
            turns.add("change") {
                try own.routes.update(addresses: Array(routes.prefix(count / 100)))
                return try Tools.milliseconds { try own.routes.update(addresses: changed) }
            }
            turns.add("change by bpftool") {
                try Tools.run(["bpftool", "batch", "file", "\(folder)/back"])
                return try Tools.milliseconds { try Tools.run(["bpftool", "batch", "file", "\(folder)/change"]) }
            }
            turns.add("dump") {
                var found = 0
                let time = try Tools.milliseconds { found = try own.routes.addressEntries().count }
                guard found == count else { throw BenchmarkError("\(found) routes instead of \(count)") }
                return time
            }
            turns.add("dump by bpftool") {
                let found = try maps[1].routes.addressEntries().count
                guard found == count else { throw BenchmarkError("bpftool has written \(found) routes, not \(count)") }
                return try Tools.milliseconds {
                    try Tools.run(["bpftool", "map", "dump", "pinned", other, "-j"], output: "\(folder)/dump")
                    try? removeFile("\(folder)/dump")
                }
            }
            turns.add("command") {
                try Tools.milliseconds {
                    try Tools.run(
                        [
                            context.wgplane, "maps", "dump", "route_addresses\(suffix)", "-o", "json", "--pins",
                            layouts[0].root, "--run-directory", folder,
                        ], output: "\(folder)/dump")
                    try? removeFile("\(folder)/dump")
                }
            }
            let values = try turns.run(repeats: min(5, context.effort.repeats))
            for (what, of, limit) in [("load", count, 0.1), ("change", count / 100, 0.1), ("dump", count, 0.2)] {
                results.append(
                    try Result(
                        name, "\(family): \(what), \(Figure.text(Double(of))) routes", values[what] ?? [], "ms",
                        yardstick: ("bpftool", values["\(what) by bpftool"] ?? []),
                        goal: what == "change" ? nil : .ratioAtMost(limit),
                        note: what == "dump"
                            ? "decoded in this process; bpftool starts, and prints"
                            : "bpftool starts, and opens the map for each line"))
            }
            results.append(
                try Result(
                    name, "\(family): wgplane maps dump -o json, with names", values["command"] ?? [], "ms",
                    yardstick: ("bpftool map dump -j", values["dump by bpftool"] ?? [])))
        }
        return results
    }

    private static func address(_ family: AddressFamily, _ number: Int) -> IPAddress {
        IPAddress(family: family, bits: (family == .ipv4 ? 0x0b00_0000 : UInt128(0xfd4b) << 112) + UInt128(number))
    }

    private static func empty(_ maps: NodeMaps, _ routes: [(key: IPAddress, value: UInt32)]) throws {
        for route in routes { try maps.routes.delete(CIDR(host: route.key)) }
    }

    /// What `bpftool batch` reads: a line for each entry.
    private static func lines(_ routes: [(key: IPAddress, value: UInt32)], _ map: String) -> String {
        var text = ""
        for route in routes {
            let key = route.key.bytes.map(String.init).joined(separator: " ")
            let value = (0..<4).map { String(route.value >> (8 * UInt32($0)) & 255) }.joined(separator: " ")
            text += "map update pinned \(map) key \(key) value \(value)\n"
        }
        return text
    }
}
