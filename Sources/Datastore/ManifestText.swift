// SPDX-License-Identifier: Apache-2.0

internal import Foundation
public import Model
internal import OrderedCollections
internal import Yams

/// Manifests as YAML text (JSON is YAML too).
public enum ManifestText {
    /// Reads one document. `origin` is named in errors.
    public static func parse(_ text: String, origin: String) throws(ProblemsError) -> ManifestValue {
        // JSON proper is read several times faster as such; what is none may be YAML all the same.
        if let value = json(text) { return value }
        let values = try parseAll(text, origin: origin)
        guard values.count == 1 else {
            throw ProblemsError(
                Problem(
                    resource: origin, message: "holds \(values.count) documents", remedy: "write one manifest a file"))
        }
        return values[0]
    }

    /// Nil: it is no JSON, or one of which the same is not to be said as of YAML (a key twice, too deep, too much).
    private static func json(_ text: String) -> ManifestValue? {
        guard text.utf8.first == 0x7b, let value = try? JSONDecoder().decode(ManifestValue.self, from: Data(text.utf8))
        else { return nil }
        var (isText, isEscaped, colons) = (false, false, 0)
        for byte in text.utf8 {
            if isEscaped {
                isEscaped = false
            } else if byte == 0x5c {
                isEscaped = isText
            } else if byte == 0x22 {
                isText.toggle()
            } else if byte == 0x3a, !isText {
                colons += 1
            }
        }
        var (keys, values) = (0, 0)
        return measure(value, depth: 0, &keys, &values) && values <= maximumValues && keys == colons ? value : nil
    }

    /// Counts keys and values; false: it is nested too deep.
    private static func measure(_ value: ManifestValue, depth: Int, _ keys: inout Int, _ values: inout Int) -> Bool {
        values += 1
        guard depth < 64 else { return false }
        switch value {
        case .object(let fields):
            keys += fields.count
            for child in fields.values where !measure(child, depth: depth + 1, &keys, &values) { return false }
        case .array(let children):
            for child in children where !measure(child, depth: depth + 1, &keys, &values) { return false }
        default: break
        }
        return true
    }

    /// Reads all documents; empty ones are left out.
    public static func parseAll(_ text: String, origin: String) throws(ProblemsError) -> [ManifestValue] {
        do {
            // What a scalar is, is said here (`plain`), not by the library's rules, which are slow; and so is asking
            // the environment for the encoding, at each text.
            var documents = try compose_all(yaml: text, .basic, .default, .utf8)
            var values: [ManifestValue] = []
            var count = 0
            while let node = documents.next() {
                let result = try value(node, depth: 0, count: &count)
                if result != .null { values.append(result) }
            }
            // The sequence ends at an error and keeps it.
            if let error = documents.error { throw error }
            return values
        } catch let error as YamlError {
            throw ProblemsError(
                Problem(
                    resource: origin, message: "is malformed: \(summary(error))", remedy: "mend the YAML at that line"))
        } catch {
            throw ProblemsError(
                Problem(resource: origin, message: "is malformed: \(error)", remedy: "mend the YAML"))
        }
    }

    private static func summary(_ error: YamlError) -> String {
        switch error {
        case .scanner(_, let problem, let mark, _), .parser(_, let problem, let mark, _),
            .composer(_, let problem, let mark, _):
            "line \(mark.line), column \(mark.column): \(problem)"
        default:
            "\(error)".split(separator: "\n").joined(separator: " ")
        }
    }

    private struct TooLarge: Error, CustomStringConvertible {
        var description: String { "nested deeper than 64, or of more than \(maximumValues) values" }
    }

    /// Values in one text, aliases counted at each use.
    private static let maximumValues = 200_000

    private static func value(_ node: Node, depth: Int, count: inout Int) throws -> ManifestValue {
        count += 1
        guard depth < 64, count <= maximumValues else { throw TooLarge() }
        switch node {
        case .scalar(let scalar):
            // Only plain scalars are typed; what is quoted is text.
            guard scalar.style == .plain || scalar.style == .any else { return .string(scalar.string) }
            return plain(scalar.string)
        case .sequence(let sequence):
            return .array(try sequence.map { try value($0, depth: depth + 1, count: &count) })
        case .mapping(let mapping):
            var fields: OrderedDictionary<String, ManifestValue> = [:]
            for (key, child) in mapping {
                fields[key.string ?? ""] = try value(child, depth: depth + 1, count: &count)
            }
            return .object(fields)
        case .alias: return .null
        }
    }

    /// The type of plain text: JSON's words and numbers, and YAML's words for null. Nothing
    /// else of YAML 1.1 (base 60, octal, yes and no), which means text to everybody today.
    static func plain(_ text: String) -> ManifestValue {
        switch text {
        case "", "~", "null", "Null", "NULL": return .null
        case "true", "True", "TRUE": return .bool(true)
        case "false", "False", "FALSE": return .bool(false)
        default: break
        }
        if let integer = Int64(text) { return .integer(integer) }
        let isNumeric = text.utf8.allSatisfy { (48...57).contains($0) || "+-.eE".utf8.contains($0) }
        if isNumeric, let number = Double(text), number.isFinite { return .number(number) }
        return .string(text)
    }

    /// YAML text of a manifest.
    public static func yaml(_ value: ManifestValue) throws -> String {
        try serialize(node: node(value), allowUnicode: true)
    }

    private static func node(_ value: ManifestValue) -> Node {
        switch value {
        case .null: Node("null", Tag(.null))
        case .bool(let flag): Node(flag ? "true" : "false", Tag(.bool))
        case .integer(let number): Node("\(number)", Tag(.int))
        case .number(let number): Node("\(number)", Tag(.float))
        case .string(let text): Node(text, Tag(.str), needsQuotes(text) ? .doubleQuoted : .any)
        case .array(let values): Node(values.map(node), Tag(.seq))
        case .object(let fields):
            Node(
                fields.map { (Node($0.key, Tag(.str), needsQuotes($0.key) ? .doubleQuoted : .any), node($0.value)) },
                Tag(.map))
        }
    }

    /// Whether plain text would be read back as something else, here or by a reader of YAML 1.1.
    private static func needsQuotes(_ text: String) -> Bool {
        if case .string = plain(text) {} else { return true }
        let words = ["yes", "no", "on", "off", "y", "n", ".inf", "-.inf", "+.inf", ".nan"]
        if words.contains(text.lowercased()) { return true }
        // Base 60, octal and the like begin with a digit or sign and have no other letters.
        let isAddress = text.contains(".") && IPAddress(text) != nil
        return !isAddress
            && text.utf8.allSatisfy { (48...57).contains($0) || ":_+-.xXoObBeEaAcCdDfF".utf8.contains($0) }
            && text.first.map { $0.isNumber || "+-.".contains($0) } == true
    }
}

extension ManifestText {
    /// JSON text of a manifest, keys sorted.
    public static func json(_ value: ManifestValue) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return String(decoding: try encoder.encode(value), as: UTF8.self) + "\n"
    }
}
