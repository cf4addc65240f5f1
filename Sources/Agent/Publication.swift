// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import DesiredState
internal import Logging
internal import Model

/// A node's words in the datastore: the annotations of its Node, and its devices' addresses in IPAM.
struct Publication: Sendable {
    let node: String
    let datastore: any Datastore
    let logger: Logger

    /// Writes annotations where they differ from the snapshot; nil removes one.
    func write(_ wanted: [String: String?], _ snapshot: Snapshot?) async throws {
        let key = ResourceKey(.node, node)
        guard let manifest = snapshot?.manifests[key] else { return }
        let present = manifest.annotations
        guard wanted.contains(where: { present[$0.key] != $0.value }) else { return }
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
            return node
        }
    }

    /// Gives the devices' addresses of families back.
    func release(_ families: [AddressFamily], _ snapshot: Snapshot?) async throws {
        guard let snapshot else { return }
        let node = node
        for family in families {
            for block in snapshot.manifests(of: .ipamBlock)
            where AddressAllocation.find(in: block.content, node: node, family: family) != nil {
                try await datastore.update(block.key) { current in
                    current.map { AddressAllocation.release(in: $0, node: node, family: family) ?? $0 }
                }
            }
        }
    }

    /// Takes all of it back.
    func withdraw(_ snapshot: Snapshot) async throws {
        var none: [String: String?] = [:]
        for family in AddressFamily.allCases {
            none.updateValue(nil, forKey: NodeAnnotation.publicKey(family))
            none.updateValue(nil, forKey: NodeAnnotation.interfaceAddress(family))
        }
        try await write(none, snapshot)
        try await release(AddressFamily.allCases, snapshot)
    }
}
