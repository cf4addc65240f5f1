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
        // A node that does not publish its key, or is not there, for a moment keeps it.
        let pinned = Dictionary(self[family].map { ($0.value, $0.key) }, uniquingKeysWith: { min($0, $1) })
        return keys.filter { name, key in
            // Its own is in its kernel.
            if name == node { return true }
            let other = cluster.nodes[name]
            let first = choice == .firstUse ? self[family][name] : nil
            let pin = first ?? other?.pinnedKeys[family]
            let isFirst =
                choice == .firstUse && mayLearn && pin == nil && other?.unreadablePins.contains(family) != true
                && pinned[key] == nil
            if pin == key || isFirst {
                if choice == .firstUse { self[family][name] = key }
                return true
            }
            let (fault, remedy) =
                if let first {
                    (
                        "is not the key that is pinned, \(first)",
                        "if the node has a new key, as after a reboot: `wgplane trust \(name)` on this node"
                    )
                } else if pin == nil, choice == .firstUse, let former = pinned[key] {
                    (
                        "is the key that is pinned for \(former)",
                        "if it is the same node with another name: `wgplane trust \(former)` on this node"
                    )
                } else {
                    (
                        pin.map { "is not the key that is pinned, \($0)" } ?? "is not pinned",
                        "if it is the node's key, set the annotation \(NodeAnnotation.pinnedKey(family)) to it"
                    )
                }
            problems.append(
                Problem(
                    resource: "Node/\(name)", field: "metadata.annotations[\(NodeAnnotation.publicKey(family))]",
                    value: key.description, message: "\(fault), and is not used", remedy: remedy))
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
