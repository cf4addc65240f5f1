// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Model
import OrderedCollections

/// Entries of one map as `dump` decodes them, and what people ask of them.
struct MapEntries {
    private let name: String
    private let entries: [ManifestValue]

    init(_ entries: [ManifestValue], of name: String) {
        self.name = name
        self.entries = entries
    }

    private func check(_ field: String, _ option: String) throws {
        guard case .object(let first)? = entries.first, first[field] == nil else { return }
        throw ValidationError(
            "\(option): map \(name) has no field \"\(field)\"; it has \(first.keys.joined(separator: ", "))")
    }

    /// Those that have all of `FIELD=WORD`.
    func filtered(_ filters: [String]) throws -> MapEntries {
        var kept = entries
        for filter in filters {
            let parts = filter.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            try check(parts[0], "--where")
            kept = kept.filter { $0[parts[0]].map { $0.text.contains(parts[1]) } ?? false }
        }
        return MapEntries(kept, of: name)
    }

    /// By a field, numbers as numbers; what is equal stays in the order of the dump.
    func sorted(by field: String?) throws -> [ManifestValue] {
        guard let field else { return entries }
        try check(field, "--sort")
        return entries.enumerated().sorted { a, b in
            let (x, y) = (a.element[field], b.element[field])
            if case .integer(let x)? = x, case .integer(let y)? = y { return x == y ? a.offset < b.offset : x > y }
            let (left, right) = (x?.text ?? "", y?.text ?? "")
            return left == right ? a.offset < b.offset : left < right
        }.map(\.element)
    }

    /// Fields by which an entry may be asked for.
    private static let keys = ["slot", "node", "reason", "hook", "device", "event", "field"]

    /// What the map has for a key. Of prefixes that cover an address, the longest; of flows and mappings, all that
    /// have it as an end.
    func lookup(_ key: String) throws -> [ManifestValue] {
        let prefix = CIDR(key) ?? IPAddress(key).map { CIDR(host: $0) }
        guard let prefix else {
            return entries.filter { entry in Self.keys.contains { entry[$0]?.text == key } }
        }
        let covering = entries.compactMap { entry -> (entry: ManifestValue, length: Int)? in
            guard let text = entry["prefix"]?.text, let own = CIDR(text), own.contains(prefix) else { return nil }
            return (entry, own.prefixLength)
        }
        if let longest = covering.map(\.length).max() {
            return covering.filter { $0.length == longest }.map(\.entry)
        }
        return entries.filter { entry in
            ["address", "source", "destination", "endpoint", "writes"].contains { field in
                guard let text = entry[field]?.text else { return false }
                let address = Endpoint(text)?.address ?? IPAddress(text)
                return address.map { prefix.contains($0) } ?? false
            }
        }
    }
}
