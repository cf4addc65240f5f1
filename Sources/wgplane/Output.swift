// SPDX-License-Identifier: Apache-2.0

import Datastore
import Foundation
import Model
import OrderedCollections
import TextTable

/// Prints answers as a table, JSON or YAML.
enum Output {
    /// One side of a flow: its name, else its address, and the port.
    static func side(_ name: String?, _ address: IPAddress, _ port: UInt16) -> String {
        let text = name ?? (address.family == .ipv6 && port != 0 ? "[\(address)]" : address.description)
        return port == 0 ? text : "\(text):\(port)"
    }

    /// Local time of day, `14:03:07.125`.
    static func clock(_ date: Date) -> String {
        let formatter = DateFormatter()
        formatter.locale = Locale(identifier: "en_US_POSIX")
        formatter.dateFormat = "HH:mm:ss.SSS"
        return formatter.string(from: date)
    }

    /// Any value as JSON, keys sorted.
    static func json(_ value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        print(String(decoding: try encoder.encode(value), as: UTF8.self))
    }

    /// Any value as one line of JSON, keys sorted.
    static func line(_ value: some Encodable) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.dateEncodingStrategy = .iso8601
        print(String(decoding: try encoder.encode(value), as: UTF8.self))
    }

    /// `1.50 Mbit/s`.
    static func rate(_ bits: Double) -> String {
        let units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]
        var value = bits
        var unit = 0
        while value >= 1000, unit < units.count - 1 {
            value /= 1000
            unit += 1
        }
        return unit == 0 ? "\(Int(value)) bit/s" : String(format: "%.2f %@", value, units[unit])
    }

    /// JSON or YAML; false for a table, which the caller prints.
    static func structured(_ value: some Encodable, _ format: OutputFormat) throws -> Bool {
        switch format {
        case .table: return false
        case .json: try json(value)
        case .yaml:
            let data = try JSONEncoder().encode(value)
            print(try ManifestText.yaml(try JSONDecoder().decode(ManifestValue.self, from: data)), terminator: "")
        }
        return true
    }

    /// Rows of cells under titles; nothing but a word when there are none. Columns of
    /// numbers are aligned right.
    static func table(_ titles: [String], _ rows: [[String]], empty: String = "No entries.") {
        guard !rows.isEmpty else {
            print(empty)
            return
        }
        let isNumber = titles.indices.map { column in
            rows.allSatisfy { $0[column].allSatisfy { $0.isNumber || $0 == "." || $0 == "-" } }
        }
        let table = TextTable<[String]> { row in
            zip(titles, row).enumerated().map { index, cell in
                Column(title: cell.0, value: cell.1, align: isNumber[index] ? .right : .left)
            }
        }
        let text = table.string(for: rows, style: Style.plain) ?? ""
        for line in text.split(separator: "\n", omittingEmptySubsequences: false) where !line.isEmpty {
            print(String(line.reversed().drop { $0 == " " }.reversed()))
        }
    }

    /// Objects whose fields are the columns.
    static func table(_ objects: [ManifestValue], empty: String = "No entries.") {
        guard case .object(let first)? = objects.first else {
            print(empty)
            return
        }
        let keys = Array(first.keys)
        table(keys.map { $0.uppercased() }, objects.map { object in keys.map { object[$0]?.text ?? "" } })
    }

    /// `1.50 KiB`, as `wg` writes it.
    static func bytes(_ count: UInt64) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB"]
        var value = Double(count)
        var unit = 0
        while value >= 1024, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        return unit == 0 ? "\(count) B" : String(format: "%.2f %@", value, units[unit])
    }

    /// `1 minute, 15 seconds`.
    static func duration(_ seconds: Int64) -> String {
        if seconds <= 0 { return "now" }
        let units: [(Int64, String)] = [(86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")]
        var rest = seconds
        var parts: [String] = []
        for (size, name) in units {
            let count = rest / size
            rest %= size
            if count > 0 { parts.append("\(count) \(name)\(count == 1 ? "" : "s")") }
        }
        return parts.joined(separator: ", ")
    }
}
