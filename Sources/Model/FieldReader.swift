// SPDX-License-Identifier: Apache-2.0

internal import OrderedCollections

/// Reads typed fields from one object of a manifest and collects what is wrong, so
/// that a resource's problems are all told at once.
public struct FieldReader {
    public let value: ManifestValue
    public let resource: String
    /// Path of this object from the manifest's root, `spec.`; empty at the root.
    public let prefix: String
    public private(set) var problems: [Problem] = []
    private var known: Set<String> = []
    /// Values are texts, as of an environment variable: `1` may be a number or a yes.
    let isText: Bool

    public init(_ value: ManifestValue, resource: String, prefix: String = "", isText: Bool = false) {
        self.value = value
        self.resource = resource
        self.prefix = prefix
        self.isText = isText
    }

    /// Fields that were asked for and are there.
    var present: Set<String> { known.filter { value[$0] != nil && value[$0] != .null } }

    /// Notes an error in a field of this object.
    public mutating func report(_ field: String, value: String = "", _ message: String, remedy: String) {
        problems.append(
            Problem(resource: resource, field: prefix + field, value: value, message: message, remedy: remedy))
    }

    /// Notes that a field is in force but probably not what was meant.
    public mutating func warn(_ field: String, value: String = "", _ message: String, remedy: String) {
        problems.append(
            Problem(.warning, resource: resource, field: prefix + field, value: value, message: message, remedy: remedy)
        )
    }

    /// Any field; null counts as absent.
    public mutating func field(_ name: String) -> ManifestValue? {
        known.insert(name)
        let found = value[name]
        return found == .null ? nil : found
    }

    private mutating func mismatch<Value>(_ name: String, _ found: ManifestValue, _ expected: String) -> Value? {
        report(name, value: found.text, "is not \(expected)", remedy: "set it to \(expected), or remove the field")
        return nil
    }

    public mutating func string(_ name: String) -> String? {
        guard let found = field(name) else { return nil }
        if case .string(let text) = found { return text }
        // YAML reads unquoted 10 or true as another type; the text is what was meant.
        if case .object = found { return mismatch(name, found, "a text") }
        if case .array = found { return mismatch(name, found, "a text") }
        return found.text
    }

    public mutating func bool(_ name: String) -> Bool? {
        guard let found = field(name) else { return nil }
        if case .bool(let flag) = found { return flag }
        if isText {
            if ["true", "1", "yes", "y", "t"].contains(found.text.lowercased()) { return true }
            if ["false", "0", "no", "n", "f"].contains(found.text.lowercased()) { return false }
        }
        return mismatch(name, found, "true or false")
    }

    public mutating func integer(_ name: String, in range: ClosedRange<Int64>) -> Int64? {
        guard let found = field(name) else { return nil }
        if case .integer(let number) = found, range.contains(number) { return number }
        if isText, let number = Int64(found.text), range.contains(number) { return number }
        return mismatch(name, found, "a whole number from \(range.lowerBound) to \(range.upperBound)")
    }

    /// One of the cases of a text enumeration, as it is spelled.
    public mutating func choice<Choice: RawRepresentable & CaseIterable>(
        _ name: String, _ type: Choice.Type = Choice.self
    ) -> Choice? where Choice.RawValue == String {
        guard let text = string(name) else { return nil }
        if let choice = Choice(rawValue: text) { return choice }
        if isText, let choice = Choice.allCases.first(where: { $0.rawValue.lowercased() == text.lowercased() }) {
            return choice
        }
        let accepted = Choice.allCases.map(\.rawValue).joined(separator: ", ")
        report(name, value: text, "is not one of the accepted words", remedy: "use one of \(accepted)")
        return nil
    }

    /// A field that a type reads from text.
    public mutating func text<Value: LosslessStringConvertible>(
        _ name: String, expected: String, example: String, as type: Value.Type = Value.self
    ) -> Value? {
        guard let text = string(name) else { return nil }
        if let value = Value(text) { return value }
        report(name, value: text, "is not \(expected)", remedy: "write it like \(example)")
        return nil
    }

    public mutating func cidr(_ name: String) -> CIDR? {
        text(name, expected: "a prefix with its host bits zero", example: "10.48.0.0/16 or fd48::/48")
    }

    public mutating func address(_ name: String) -> IPAddress? {
        text(name, expected: "an IP address", example: "10.0.0.1 or fd00::1")
    }

    /// Duration as Kubernetes writes it: `10s`, `1m30s`, `500ms`; in seconds.
    public mutating func duration(_ name: String) -> Double? {
        guard let text = string(name) else { return nil }
        if let seconds = Self.seconds(text) { return seconds }
        report(name, value: text, "is not a duration", remedy: "write it like 25s or 1m30s")
        return nil
    }

    /// A duration in whole seconds, 0 to 65535; as text also a plain number of them.
    mutating func seconds(_ name: String) -> UInt16? {
        if isText, let found = field(name), let seconds = UInt16(found.text) { return seconds }
        guard let seconds = duration(name) else { return nil }
        if (0...65535).contains(seconds) { return UInt16(seconds) }
        report(name, value: "\(seconds)s", "is out of range", remedy: "use 0s to 65535s")
        return nil
    }

    static func seconds(_ text: String) -> Double? {
        if text == "0" { return 0 }
        var total = 0.0
        var rest = text[...]
        let units: [(String, Double)] = [("ms", 0.001), ("h", 3600), ("m", 60), ("s", 1)]
        while !rest.isEmpty {
            let digits = rest.prefix { $0.isNumber || $0 == "." }
            guard let number = Double(digits) else { return nil }
            rest = rest.dropFirst(digits.count)
            guard let unit = units.first(where: { rest.hasPrefix($0.0) }) else { return nil }
            total += number * unit.1
            rest = rest.dropFirst(unit.0.count)
        }
        return text.isEmpty ? nil : total
    }

    /// Reads an object inside this one; its problems are this one's.
    public mutating func object<Result>(_ name: String, _ body: (inout FieldReader) -> Result) -> Result {
        let found = field(name)
        var reader = FieldReader(
            found ?? .object([:]), resource: resource, prefix: prefix + name + ".", isText: isText)
        if let found {
            if case .object = found {
            } else {
                report(name, value: found.text, "is not an object", remedy: "give it fields, or remove it")
                reader = FieldReader(.object([:]), resource: resource, prefix: prefix + name + ".", isText: isText)
            }
        }
        let result = body(&reader)
        problems += reader.problems
        return result
    }

    /// Reads each object of a list.
    public mutating func objects<Result>(_ name: String, _ body: (inout FieldReader) -> Result?) -> [Result] {
        guard let found = field(name) else { return [] }
        guard case .array(let values) = found else {
            report(name, value: found.text, "is not a list", remedy: "write it as a list")
            return []
        }
        return values.enumerated().compactMap { index, value in
            var reader = FieldReader(value, resource: resource, prefix: "\(prefix)\(name)[\(index)].")
            let result = body(&reader)
            problems += reader.problems
            return result
        }
    }

    /// The same; nil where there is no such field, or it is no list.
    public mutating func list(_ name: String) -> [String]? {
        guard let found = field(name) else { return nil }
        if isText, case .string(let text) = found {
            if text == "none" { return [] }
            return text.split(separator: ",").map { $0.trimmingPrefix(" ").description }
        }
        guard case .array = found else {
            report(name, value: found.text, "is not a list", remedy: "write it as a list")
            return nil
        }
        return strings(name)
    }

    /// Text, or a whole number as text (Kubernetes' int-or-string).
    public mutating func string(_ name: String, orInteger: Bool) -> String? {
        if orInteger, let found = field(name), case .integer(let number) = found { return "\(number)" }
        return string(name)
    }

    /// Texts of a list of texts.
    public mutating func strings(_ name: String) -> [String] {
        guard let found = field(name) else { return [] }
        guard case .array(let values) = found else {
            report(name, value: found.text, "is not a list", remedy: "write it as a list")
            return []
        }
        return values.map(\.text)
    }

    /// Warns of fields that nobody has asked for. `also`: accepted though not read.
    public mutating func reportUnknownFields(also: Set<String> = [], where relevant: (String) -> Bool = { _ in true }) {
        guard case .object(let fields) = value else { return }
        for (name, found) in fields where !known.contains(name) && !also.contains(name) && relevant(name) {
            let near = known.filter { Self.distance($0.lowercased(), name.lowercased()) <= 3 }.min {
                Self.distance($0, name) < Self.distance($1, name)
            }
            warn(
                name, value: found.text, "is no field that wgplane knows, and is ignored",
                remedy: near.map { "did you mean \($0)?" } ?? "remove it if it was meant for wgplane")
        }
    }

    /// Edits needed to turn one word into another (Levenshtein).
    static func distance(_ a: String, _ b: String) -> Int {
        let a = Array(a.utf8)
        let b = Array(b.utf8)
        var row = Array(0...b.count)
        for (i, left) in a.enumerated() {
            var diagonal = row[0]
            row[0] = i + 1
            for (j, right) in b.enumerated() {
                let cost = left == right ? diagonal : min(diagonal, row[j], row[j + 1]) + 1
                diagonal = row[j + 1]
                row[j + 1] = cost
            }
        }
        return row[b.count]
    }
}
