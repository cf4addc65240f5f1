// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import Model

/// Where resources are in etcd: `/wgplane/v1/nodes/NAME`, `/wgplane/v1/pods/NAMESPACE/NAME`, each with its manifest
/// as JSON; and `/wgplane/live/NODE` while that node's agent is connected.
enum EtcdLayout {
    static let prefix = "/wgplane/v1/"

    static func prefix(_ kind: ResourceKind) -> String { "\(prefix)\(kind.plural)/" }

    static func key(_ key: ResourceKey) -> Data {
        let name = key.namespace.isEmpty ? key.name : "\(key.namespace)/\(key.name)"
        return Data("\(prefix(key.kind))\(name)".utf8)
    }

    static func live(_ node: String) -> Data { Data("/wgplane/live/\(node)".utf8) }

    /// What a key names; nil: none of ours.
    static func resource(_ key: Data) -> ResourceKey? {
        let text = String(decoding: key, as: UTF8.self)
        guard text.hasPrefix(prefix) else { return nil }
        let parts = text.dropFirst(prefix.count).split(separator: "/", omittingEmptySubsequences: false).map(
            String.init)
        guard let kind = ResourceKind.allCases.first(where: { $0.plural == parts.first }) else { return nil }
        switch (kind.isNamespaced, parts.count) {
        case (true, 3): return ResourceKey(kind, parts[2], namespace: parts[1])
        case (false, 2): return ResourceKey(kind, parts[1])
        default: return nil
        }
    }

    /// What a key holds: a manifest of just that name.
    static func manifest(_ content: ManifestValue, _ key: ResourceKey) throws(ProblemsError) -> Manifest {
        var named = content
        named["kind"] = .string(key.kind.rawValue)
        named["apiVersion"] = .string(key.kind.apiVersion)
        let manifest = try Manifest(named, origin: key.description)
        guard manifest.key == key else {
            throw ProblemsError(
                Problem(
                    resource: key.description, field: "metadata.name", value: manifest.key.description,
                    message: "is another name than its key in etcd has", remedy: "write it anew: wgplane apply -f FILE"
                ))
        }
        return manifest
    }

    /// The first key after all that begin with a prefix.
    static func end(of prefix: String) -> Data {
        var bytes = Data(prefix.utf8)
        bytes[bytes.count - 1] += 1
        return bytes
    }
}
