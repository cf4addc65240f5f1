// SPDX-License-Identifier: Apache-2.0

public import OrderedCollections

/// A manifest as it stands in YAML or JSON: every field kept, in order, known or not.
public enum ManifestValue: Sendable, Hashable {
    case null
    case bool(Bool)
    case integer(Int64)
    case number(Double)
    case string(String)
    case array([ManifestValue])
    case object(OrderedDictionary<String, ManifestValue>)

    public subscript(key: String) -> ManifestValue? {
        get {
            guard case .object(let fields) = self else { return nil }
            return fields[key]
        }
        set {
            guard case .object(var fields) = self else { return }
            fields[key] = newValue
            self = .object(fields)
        }
    }

    /// The value at a path of keys; setting makes the objects on the way, and nil
    /// removes the field.
    public subscript(path: [String]) -> ManifestValue? {
        get { path.reduce(Optional(self)) { $0?[$1] } }
        set {
            guard let first = path.first else {
                if let newValue { self = newValue }
                return
            }
            if path.count == 1 {
                self[first] = newValue
                return
            }
            var child: ManifestValue
            if case .object = self[first] { child = self[first] ?? .object([:]) } else { child = .object([:]) }
            child[Array(path.dropFirst())] = newValue
            self[first] = child
        }
    }

    /// JSON merge patch (RFC 7386): null removes, objects merge, all else replaces.
    public func merging(_ patch: ManifestValue) -> ManifestValue {
        guard case .object(let changes) = patch else { return patch }
        var fields: OrderedDictionary<String, ManifestValue> = [:]
        if case .object(let own) = self { fields = own }
        for (key, change) in changes {
            if case .null = change {
                fields[key] = nil
            } else {
                fields[key] = (fields[key] ?? .null).merging(change)
            }
        }
        return .object(fields)
    }

    public var stringValue: String? { if case .string(let text) = self { text } else { nil } }

    /// The value as a person would write it in a message.
    public var text: String {
        switch self {
        case .null: "null"
        case .bool(let value): "\(value)"
        case .integer(let value): "\(value)"
        case .number(let value): "\(value)"
        case .string(let value): value
        case .array(let values): "[" + values.map(\.text).joined(separator: ", ") + "]"
        case .object(let fields): "{" + fields.map { "\($0): \($1.text)" }.joined(separator: ", ") + "}"
        }
    }
}

extension ManifestValue: Codable {
    private struct Key: CodingKey {
        var stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    public init(from decoder: any Decoder) throws {
        // What is most frequent first: to be told that it is something else costs much.
        let single = try decoder.singleValueContainer()
        if let value = try? single.decode(String.self) {
            self = .string(value)
        } else if let container = try? decoder.container(keyedBy: Key.self) {
            var fields: OrderedDictionary<String, ManifestValue> = [:]
            for key in container.allKeys.sorted(by: { $0.stringValue < $1.stringValue }) {
                fields[key.stringValue] = try container.decode(ManifestValue.self, forKey: key)
            }
            self = .object(fields)
        } else if var container = try? decoder.unkeyedContainer() {
            var values: [ManifestValue] = []
            while !container.isAtEnd { values.append(try container.decode(ManifestValue.self)) }
            self = .array(values)
        } else if single.decodeNil() {
            self = .null
        } else if let value = try? single.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? single.decode(Int64.self) {
            self = .integer(value)
        } else {
            self = .number(try single.decode(Double.self))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        switch self {
        case .object(let fields):
            var container = encoder.container(keyedBy: Key.self)
            for (key, value) in fields { try container.encode(value, forKey: Key(stringValue: key)) }
        case .array(let values):
            var container = encoder.unkeyedContainer()
            for value in values { try container.encode(value) }
        case .null:
            var container = encoder.singleValueContainer()
            try container.encodeNil()
        case .bool(let value):
            var container = encoder.singleValueContainer()
            try container.encode(value)
        case .integer(let value):
            var container = encoder.singleValueContainer()
            try container.encode(value)
        case .number(let value):
            var container = encoder.singleValueContainer()
            try container.encode(value)
        case .string(let value):
            var container = encoder.singleValueContainer()
            try container.encode(value)
        }
    }
}

extension ManifestValue: ExpressibleByStringLiteral, ExpressibleByBooleanLiteral {
    public init(stringLiteral value: String) { self = .string(value) }
    public init(booleanLiteral value: Bool) { self = .bool(value) }
}
