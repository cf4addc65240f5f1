// SPDX-License-Identifier: Apache-2.0

/// Something wrong that a person must mend: which resource, which field, what it
/// holds, and what to do.
public struct Problem: Sendable, Hashable, Comparable, Codable, CustomStringConvertible {
    public enum Severity: String, Sendable, Hashable, Codable {
        /// The resource, or the part named, is not in force.
        case error
        /// In force, but probably not what was meant.
        case warning
    }

    public var severity: Severity
    /// `Kind/name`, `Pod/namespace/name`, a file, or a device.
    public var resource: String
    /// Path of the field, `spec.cidr`; empty when it is about the whole.
    public var field: String
    /// The offending value as it stands; empty when there is none.
    public var value: String
    /// What is wrong.
    public var message: String
    /// What to do about it.
    public var remedy: String

    public init(
        _ severity: Severity = .error, resource: String, field: String = "", value: String = "", message: String,
        remedy: String
    ) {
        self.severity = severity
        self.resource = resource
        self.field = field
        self.value = value
        self.message = message
        self.remedy = remedy
    }

    /// `Node/n1: spec.x: "v": message; remedy`.
    public var description: String {
        var parts = [resource]
        if !field.isEmpty { parts.append(field) }
        if !value.isEmpty { parts.append("\"\(value.prefix(120))\"") }
        return parts.joined(separator: ": ") + ": \(message); \(remedy)"
    }

    public static func < (a: Self, b: Self) -> Bool {
        (a.resource, a.field, a.value, a.message, a.remedy, a.severity.rawValue)
            < (b.resource, b.field, b.value, b.message, b.remedy, b.severity.rawValue)
    }
}

/// An error that carries problems, so that all of them are told at once.
public struct ProblemsError: Error, CustomStringConvertible {
    public var problems: [Problem]

    public init(_ problems: [Problem]) { self.problems = problems }
    public init(_ problem: Problem) { problems = [problem] }

    public var description: String { problems.map(\.description).joined(separator: "\n") }
}
