// SPDX-License-Identifier: Apache-2.0

internal import Foundation
public import Model
internal import OrderedCollections
internal import Yams

/// Manifests as YAML text (JSON is YAML too).
public enum ManifestText {
    /// Reads one document. `origin` is named in errors.
    public static func parse(_ text: String, origin: String) throws(ProblemsError) -> ManifestValue {
        let values = try parseAll(text, origin: origin)
        guard values.count == 1 else {
            throw ProblemsError(
                Problem(
                    resource: origin, message: "holds \(values.count) documents", remedy: "write one manifest a file"))
        }
        return values[0]
    }

    /// Reads all documents; empty ones are left out.
    public static func parseAll(_ text: String, origin: String) throws(ProblemsError) -> [ManifestValue] {
        do {
            var documents = try compose_all(yaml: text)
            var values: [ManifestValue] = []
            while let node = documents.next() {
                let result = try value(node, depth: 0)
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

    private struct TooDeep: Error, CustomStringConvertible { var description: String { "nested deeper than 64" } }

    private static func value(_ node: Node, depth: Int) throws -> ManifestValue {
        guard depth < 64 else { throw TooDeep() }
        switch node {
        case .scalar(let scalar):
            // Only plain scalars are typed; what is quoted is text.
            guard scalar.style == .plain || scalar.style == .any else { return .string(scalar.string) }
            if let integer = Int64(scalar.string) { return .integer(integer) }
            switch node.any {
            case let flag as Bool: return .bool(flag)
            case let number as Double: return .number(number)
            case is String: return .string(scalar.string)
            case let integer as Int: return .integer(Int64(integer))
            case let text as any CustomStringConvertible where scalar.string.isEmpty == false && !isNull(scalar.string):
                _ = text
                return .string(scalar.string)
            default: return .null
            }
        case .sequence(let sequence): return .array(try sequence.map { try value($0, depth: depth + 1) })
        case .mapping(let mapping):
            var fields: OrderedDictionary<String, ManifestValue> = [:]
            for (key, child) in mapping { fields[key.string ?? ""] = try value(child, depth: depth + 1) }
            return .object(fields)
        case .alias: return .null
        }
    }

    private static func isNull(_ text: String) -> Bool { ["null", "~", "Null", "NULL", ""].contains(text) }

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

    /// Whether plain text would be read back as something else.
    private static func needsQuotes(_ text: String) -> Bool {
        if text.isEmpty || Int64(text) != nil || Double(text) != nil { return true }
        return ["true", "false", "yes", "no", "on", "off", "null", "~"].contains(text.lowercased())
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
