// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import DesiredState
internal import Foundation
internal import Logging
internal import Model
internal import OrderedCollections

/// The condition `WireGuardReady` of a Node.
struct NodeCondition: Sendable, Equatable {
    static let type = "WireGuardReady"
    var isTrue: Bool
    /// One word.
    var reason: String
    var message: String

    /// The conditions of a Node with this one in its place, or without one; the time changes with the status.
    static func set(_ condition: NodeCondition?, in node: inout ManifestValue) {
        var conditions: [ManifestValue] = []
        if case .array(let present) = node[["status", "conditions"]] { conditions = present }
        let index = conditions.firstIndex { $0["type"]?.stringValue == type }
        guard let condition else {
            if let index { conditions.remove(at: index) } else { return }
            return node[["status", "conditions"]] = conditions.isEmpty ? nil : .array(conditions)
        }
        let status = condition.isTrue ? "True" : "False"
        // In the object that is there, whose other fields and order are somebody's.
        var value = index.map { conditions[$0] } ?? .object(["type": .string(type)])
        if value["status"]?.stringValue != status {
            value["lastTransitionTime"] = .string(Date.now.formatted(.iso8601))
        }
        for (name, text) in [("status", status), ("reason", condition.reason), ("message", condition.message)]
        where value[name]?.stringValue != text { value[name] = .string(text) }
        if let index { conditions[index] = value } else { conditions.append(value) }
        node[["status", "conditions"]] = .array(conditions)
    }

    /// Whether a Node says just this.
    static func isSet(_ condition: NodeCondition?, in node: ManifestValue) -> Bool {
        var copy = node
        set(condition, in: &copy)
        return copy == node
    }
}

/// A node's words in the datastore: the annotations of its Node, and its devices' addresses in IPAM.
struct Publication: Sendable {
    let node: String
    let datastore: any Datastore
    let logger: Logger

    /// Writes annotations and condition where they differ from the Node as it is told; nil removes one.
    func write(_ wanted: [String: String?], _ condition: NodeCondition?, _ manifest: Manifest?) async throws {
        let key = ResourceKey(.node, node)
        guard let manifest else { return }
        let present = manifest.annotations
        guard
            wanted.contains(where: { present[$0.key] != $0.value })
                || !NodeCondition.isSet(condition, in: manifest.content)
        else { return }
        logger.info(
            "annotations are written",
            metadata: [
                "node": "\(node)", "keys": "\(wanted.filter { $0.value != nil }.keys.sorted().joined(separator: " "))",
            ])
        try await datastore.update(key) { current in
            guard var node = current else { return nil }
            for (name, value) in wanted {
                node[["metadata", "annotations", name]] = value.map { .string($0) }
            }
            NodeCondition.set(condition, in: &node)
            return node
        }
    }

    /// Gives the address of a family's device back.
    func release(_ family: AddressFamily, _ block: String) async throws {
        let node = node
        try await datastore.update(ResourceKey(.ipamBlock, block)) { current in
            current.map { AddressAllocation.release(in: $0, node: node, family: family) ?? $0 }
        }
    }

    /// Takes all of it back.
    func withdraw(_ snapshot: Snapshot) async throws {
        var none: [String: String?] = [:]
        for family in AddressFamily.allCases {
            none.updateValue(nil, forKey: NodeAnnotation.publicKey(family))
            none.updateValue(nil, forKey: NodeAnnotation.interfaceAddress(family))
            none.updateValue(nil, forKey: NodeAnnotation.listeningPort(family))
        }
        try await write(none, nil, snapshot.manifests[ResourceKey(.node, node)])
        for block in ClusterState(snapshot.manifests(of: .ipamBlock)).blocks.values {
            for family in AddressFamily.allCases
            where block.deviceAddresses[AddressAllocation.handle(node, family)] != nil {
                try await release(family, block.name)
            }
        }
    }
}
