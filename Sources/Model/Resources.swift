// SPDX-License-Identifier: Apache-2.0

internal import OrderedCollections

/// The kinds of resources that wgplane reads.
public enum ResourceKind: String, Sendable, Hashable, Codable, CaseIterable, Comparable {
    case node = "Node"
    case pod = "Pod"
    case ipPool = "IPPool"
    case ipamBlock = "IPAMBlock"
    case blockAffinity = "BlockAffinity"
    case felixConfiguration = "FelixConfiguration"
    case dataplaneConfiguration = "DataplaneConfiguration"

    /// Lower-case plural: the name on the command line and of the folder.
    public var plural: String {
        switch self {
        case .blockAffinity: "blockaffinities"
        default: rawValue.lowercased() + "s"
        }
    }

    public var apiVersion: String {
        switch self {
        case .node, .pod: "v1"
        case .dataplaneConfiguration: "wgplane.io/v1"
        default: "crd.projectcalico.org/v1"
        }
    }

    public var isNamespaced: Bool { self == .pod }

    /// By kind, singular or plural in any case.
    public init?(word: String) {
        let word = word.lowercased()
        guard let kind = Self.allCases.first(where: { $0.rawValue.lowercased() == word || $0.plural == word }) else {
            return nil
        }
        self = kind
    }

    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// What names a resource within a datastore.
public struct ResourceKey: Sendable, Hashable, Comparable, Codable, CustomStringConvertible {
    public var kind: ResourceKind
    /// Of a Pod; empty for kinds without.
    public var namespace: String
    public var name: String

    public init(_ kind: ResourceKind, _ name: String, namespace: String = "") {
        self.kind = kind
        self.namespace = !kind.isNamespaced ? "" : namespace.isEmpty ? "default" : namespace
        self.name = name
    }

    /// `Node/n1`, `Pod/default/web`.
    public var description: String {
        namespace.isEmpty ? "\(kind.rawValue)/\(name)" : "\(kind.rawValue)/\(namespace)/\(name)"
    }

    public static func < (a: Self, b: Self) -> Bool {
        (a.kind, a.namespace, a.name) < (b.kind, b.namespace, b.name)
    }
}

/// A Kubernetes manifest, whole, and what names it.
public struct Manifest: Sendable, Hashable, Codable {
    public var key: ResourceKey
    public var content: ManifestValue

    /// Checks what every manifest must have. `origin` (a file, a command) is named in problems.
    public init(_ content: ManifestValue, origin: String) throws(ProblemsError) {
        guard case .object = content else {
            throw ProblemsError(
                Problem(
                    resource: origin, message: "holds no manifest", remedy: "write one object with kind and metadata"))
        }
        var reader = FieldReader(content, resource: origin)
        let kindText = reader.string("kind") ?? ""
        let (name, namespace) = reader.object("metadata") { ($0.string("name") ?? "", $0.string("namespace") ?? "") }
        guard let kind = ResourceKind(rawValue: kindText) else {
            reader.report(
                "kind", value: kindText, "is no kind that wgplane reads",
                remedy: "use one of " + ResourceKind.allCases.map(\.rawValue).joined(separator: ", "))
            throw ProblemsError(reader.problems)
        }
        if !Self.isName(name) {
            reader.report(
                "metadata.name", value: name, "is no resource name",
                remedy: "use 1 to 253 letters, digits, '-' and '.' (RFC 1123)")
        }
        if !namespace.isEmpty, !Self.isName(namespace) || namespace.contains(".") {
            reader.report(
                "metadata.namespace", value: namespace, "is no namespace name",
                remedy: "use 1 to 63 letters, digits and '-' (RFC 1123)")
        }
        guard reader.problems.isEmpty else { throw ProblemsError(reader.problems) }
        key = ResourceKey(kind, name, namespace: kind.isNamespaced ? namespace : "")
        self.content = content
    }

    /// The same as what is to be stored under a key: throws when it names another resource.
    public init(_ content: ManifestValue, storedAs key: ResourceKey) throws(ProblemsError) {
        try self.init(content, origin: key.description)
        guard self.key == key else {
            throw ProblemsError(
                Problem(
                    resource: key.description, field: "metadata.name", value: self.key.description,
                    message: "would become another resource", remedy: "leave kind, name and namespace as they are"))
        }
    }

    /// A manifest made here.
    public init(key: ResourceKey, content: ManifestValue) {
        self.key = key
        self.content = content
    }

    /// RFC 1123 subdomain; safe as a file name.
    static func isName(_ text: String) -> Bool {
        guard (1...253).contains(text.utf8.count), text.first != ".", text.first != "-" else { return false }
        return text.utf8.allSatisfy {
            (48...57).contains($0) || (97...122).contains($0) || (65...90).contains($0) || $0 == 45 || $0 == 46
        }
    }

    public var annotations: [String: String] {
        guard case .object(let fields) = content[["metadata", "annotations"]] else { return [:] }
        return fields.reduce(into: [:]) { $0[$1.key] = $1.value.stringValue ?? $1.value.text }
    }
}
