// SPDX-License-Identifier: Apache-2.0

public import Model

/// Keys that were seen first, by family and node: what a datastore that lies later does not change.
public struct KeyPins: Sendable, Hashable {
    public var ipv4: [String: PublicKey] = [:]
    public var ipv6: [String: PublicKey] = [:]
    /// What was said last of whether keys are pinned; nil: nothing ever was.
    public var choice: KeyPinningChoice?
    /// False where it is not known what was seen: no key is the first then.
    public var mayLearn = true

    public init() {}

    public subscript(family: AddressFamily) -> [String: PublicKey] {
        get { family == .ipv4 ? ipv4 : ipv6 }
        set { if family == .ipv4 { ipv4 = newValue } else { ipv6 = newValue } }
    }

    /// Of these keys those that are believed; takes in what is seen first.
    ///
    /// What was seen first is not overruled by an annotation: who can write one can write the key beside it.
    mutating func believed(
        _ keys: [String: PublicKey], _ family: AddressFamily, _ cluster: ClusterState, own node: String,
        _ problems: inout [Problem]
    ) -> [String: PublicKey] {
        guard let choice, choice != .disabled else { return keys }
        return keys.filter { name, key in
            // Its own is in its kernel.
            if name == node { return true }
            let other = cluster.nodes[name]
            let first = choice == .firstUse ? self[family][name] : nil
            let pin = first ?? other?.pinnedKeys[family]
            let isFirst =
                choice == .firstUse && mayLearn && pin == nil && other?.unreadablePins.contains(family) != true
            if pin == key || isFirst {
                if choice == .firstUse { self[family][name] = key }
                return true
            }
            problems.append(
                Problem(
                    resource: "Node/\(name)", field: "metadata.annotations[\(NodeAnnotation.publicKey(family))]",
                    value: key.description,
                    message: pin.map { "is not the key that is pinned, \($0), and is not used" }
                        ?? "is not pinned, and is not used",
                    remedy: first != nil
                        ? "if the node has a new key, as after a reboot: `wgplane trust \(name)` on this node"
                        : "if it is the node's key, set the annotation \(NodeAnnotation.pinnedKey(family)) to it"))
            return false
        }
    }

    /// Whose each pinned key is: of the nodes that publish it the one for which it is pinned, where that is one.
    func owners(_ cluster: ClusterState) -> [PublicKey: String] {
        guard let choice, choice != .disabled else { return [:] }
        var claims: [PublicKey: Set<String>] = [:]
        for family in AddressFamily.allCases {
            for (name, node) in cluster.nodes {
                guard let key = node.publicKeys[family] else { continue }
                if key == (choice == .firstUse ? self[family][name] : node.pinnedKeys[family]) {
                    claims[key, default: []].insert(name)
                }
            }
        }
        return claims.filter { $0.value.count == 1 }.compactMapValues(\.first)
    }

    /// Nodes whose keys are pinned: those who are not believed have a key that is wrong, not none.
    func names(_ family: AddressFamily, _ cluster: ClusterState) -> Set<String> {
        guard let choice, choice != .disabled else { return [] }
        return Set(self[family].keys).union(
            cluster.nodes.values.filter { $0.pinnedKeys[family] != nil || $0.unreadablePins.contains(family) }.map(
                \.name))
    }
}
