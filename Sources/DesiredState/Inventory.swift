// SPDX-License-Identifier: Apache-2.0

public import Model

/// The cluster as far as this node's agent has been told of it.
///
/// A kind is known from its first whole list on. A list that is empty, or much shorter than what was there, is held
/// back: a datastore that was restored from another backup, or lost its disk, must not switch a cluster off.
public struct Inventory: Sendable {
    public private(set) var cluster = ClusterState()
    /// This node's own resource, whole.
    public private(set) var ownNode: Manifest?
    /// Counts contents that differ, but those of other nodes' pods.
    public private(set) var version = 0
    /// Counts contents of pods that differ.
    public private(set) var podVersion = 0
    /// Pods' addresses, while routes are made of them; see `followWorkloads`.
    public private(set) var workloads: WorkloadAddresses?
    /// Kinds that have been told whole.
    public private(set) var known: Set<ResourceKind> = []
    /// Which pods have been told whole.
    public private(set) var podScope: PodScope?
    /// What is wrong with the datastore's own content.
    public private(set) var contentProblems: [Problem] = []
    /// False when there is content that cannot be read and of which nothing is known.
    public private(set) var isContentComplete = true
    /// Kinds that are known from an earlier agent's memory only.
    public private(set) var stale: Set<ResourceKind> = []
    /// By kind, the keys that are gone as the datastore says, and how many it says are left.
    public private(set) var held: [ResourceKind: Held] = [:]
    private let node: String

    /// What an earlier agent has known, of kinds that nobody has told of yet.
    private var memory: [ResourceKey: ResourceEntry] = [:]
    private var memoryScope = PodScope.own
    /// Which key each node had last as an earlier agent's traces tell, by node's name, until nodes are told of.
    private var lastKeys: [AddressFamily: [String: PublicKey]] = [:]

    public struct Held: Sendable, Hashable {
        /// What the datastore does not tell of any more, and is kept.
        public var gone: Set<ResourceKey>
        /// How many there were.
        public var baseline: Int
    }

    public init(node: String) { self.node = node }

    /// Whether every kind has been told whole once: before that nothing may be decided.
    public var isReady: Bool { known.count == ResourceKind.allCases.count }

    /// False when something is not known that was there or may be: then nothing may be taken away for being absent.
    public var isComplete: Bool { isReady && isContentComplete && held.isEmpty && stale.isEmpty }

    /// Of the resources, of the datastore's content, and of what is held back.
    public var problems: [Problem] {
        contentProblems
            + held.sorted { $0.key < $1.key }.map { kind, held in
                Problem(
                    resource: kind.rawValue, field: "list", value: "\(held.baseline - held.gone.count)",
                    message: "the datastore tells of \(held.baseline - held.gone.count) of \(held.baseline) "
                        + "\(kind.plural) that were there, and what is missing is kept",
                    remedy: "is it the right datastore, and is it whole? if so, set massDeletion to Apply")
            }
    }

    /// Takes in what was told. `acceptsMassDeletion`: the operator lets short lists be true.
    public mutating func apply(_ changes: ResourceChanges, acceptsMassDeletion: Bool = false) {
        if let problems = changes.problems, problems != contentProblems {
            contentProblems = problems
            version += 1
        }
        if let isComplete = changes.isComplete, isComplete != isContentComplete {
            isContentComplete = isComplete
            version += 1
        }
        if let own = changes.ownNode { ownNode = own }
        for (key, entry) in changes.entries {
            if let entry {
                put(key, entry)
                held[key.kind]?.gone.remove(key)
            } else if !changes.whole.contains(key.kind), cluster[key] != nil {
                // A word of its own is believed; what a whole list does not name is looked at as a whole.
                remove(key)
                if held[key.kind]?.gone.remove(key) != nil { held[key.kind]?.baseline -= 1 }
            }
        }
        for kind in changes.whole { takeWhole(kind, changes) }
        for (kind, held) in held where acceptsMassDeletion || held.gone.isEmpty { release(kind) }
    }

    /// Has pods' addresses kept, or not any more.
    public mutating func followWorkloads(_ isOn: Bool) {
        guard isOn != (workloads != nil) else { return }
        workloads = isOn ? WorkloadAddresses(cluster) : nil
        workloadsVersion = version
    }

    /// Looks at the rules for pods' addresses again, where what they are made of may have changed.
    public mutating func refreshWorkloads() {
        guard workloadsVersion != version else { return }
        workloads?.refresh(cluster)
        workloadsVersion = version
    }

    /// Pods' addresses that have another node since the last call, with the node before.
    public mutating func takeWorkloadChanges() -> [IPAddress: String?] { workloads?.takeChanges() ?? [:] }

    /// Keeps what an earlier agent has known: first lists are held against it, and `recall` uses it.
    public mutating func remember(_ resources: [ResourceKey: ResourceEntry], podScope: PodScope) {
        memory = resources.filter { !known.contains($0.key.kind) }
        memoryScope = podScope
    }

    /// Works on what is remembered, of kinds that nobody has told of yet: nothing is taken away for not being among it.
    /// False: there is nothing to work on.
    public mutating func recall() -> Bool {
        guard !isReady, !memory.isEmpty else { return false }
        stale = Set(ResourceKind.allCases).subtracting(known)
        for (key, entry) in memory where stale.contains(key.kind) { set(key, withLastKeys(entry, key)) }
        if stale.contains(.pod) { podScope = memoryScope }
        known = Set(ResourceKind.allCases)
        memory = [:]
        version += 1
        return true
    }

    /// Keeps which key each node had last, by node's name: newer than what is remembered.
    public mutating func rememberKeys(_ keys: [AddressFamily: [String: PublicKey]]) {
        if !known.contains(.node) { lastKeys = keys }
    }

    private func withLastKeys(_ entry: ResourceEntry, _ key: ResourceKey) -> ResourceEntry {
        guard key.name != node, case .node(var other)? = entry.resource else { return entry }
        var result = entry
        for (family, owners) in lastKeys { other.publicKeys[family] = owners[key.name] ?? other.publicKeys[family] }
        result.resource = .node(other)
        return result
    }

    private mutating func takeWhole(_ kind: ResourceKind, _ changes: ResourceChanges) {
        let isFirst = known.insert(kind).inserted
        let wasStale = stale.remove(kind) != nil
        if isFirst || wasStale { version += 1 }
        if kind == .pod, podScope != changes.podScope {
            podScope = changes.podScope
            version += 1
        }
        let present = cluster.keys(of: kind)
        let listed = changes.entries.lazy.filter { $0.key.kind == kind && $0.value != nil }.count
        var gone = present.filter { (changes.entries[$0] ?? nil) == nil }
        var baseline = max(present.count, held[kind]?.baseline ?? 0)
        if isFirst {
            let before = memory.filter { $0.key.kind == kind && (kind != .pod || memoryScope == changes.podScope) }
            baseline = max(baseline, before.count)
            if isHeld(kind, listed, of: baseline, changes) {
                for (key, entry) in before where cluster[key] == nil {
                    set(key, entry)
                    gone.insert(key)
                }
            }
            memory = memory.filter { $0.key.kind != kind }
            if kind == .node { lastKeys = [:] }
        }
        guard !gone.isEmpty else { return held[kind] = nil }
        let keeps = isHeld(kind, listed, of: baseline, changes)
        held[kind] = Held(gone: gone, baseline: baseline)
        if !keeps { release(kind) }
    }

    /// Whether a list is not believed: one that is empty, or has a tenth of what was there, where that was more than a
    /// handful; then until it has half of it. A node's own pods may all be gone, after a reboot for example.
    private func isHeld(_ kind: ResourceKind, _ listed: Int, of baseline: Int, _ changes: ResourceChanges) -> Bool {
        guard baseline > 0, kind != .pod || changes.podScope == .all else { return false }
        if held[kind] != nil { return listed * 2 < baseline }
        return listed == 0 || baseline >= Self.handful && listed * 10 <= baseline
    }

    /// Whether so few are left of a kind that a memory of `count` would be held against them, or soon; see `isHeld`.
    public func hasLostHalf(of count: Int, _ kind: ResourceKind) -> Bool {
        let left = cluster.count(of: kind)
        return left == 0 ? count > 0 : count >= Self.handful && left * 2 < count
    }

    private mutating func release(_ kind: ResourceKind) {
        for key in held[kind]?.gone ?? [] { remove(key) }
        held[kind] = nil
        version += 1
    }

    private mutating func put(_ key: ResourceKey, _ told: ResourceEntry) {
        let entry = keepingKeys(told, key)
        guard cluster[key] != entry || key == ownNodeKey else { return }
        set(key, entry)
    }

    /// A node's key that cannot be read takes the one before it away from nobody.
    private func keepingKeys(_ entry: ResourceEntry, _ key: ResourceKey) -> ResourceEntry {
        guard case .node(var node)? = entry.resource, !node.unreadableKeys.isEmpty else { return entry }
        var result = entry
        for family in node.unreadableKeys {
            guard let before = lastKey(key, family) else { continue }
            node.publicKeys[family] = before
            for index in result.problems.indices
            where result.problems[index].field == "metadata.annotations[\(NodeAnnotation.publicKey(family))]" {
                result.problems[index].message += " (its last good value stays in force)"
            }
        }
        result.resource = .node(node)
        return result
    }

    /// Of a node that nobody has told of yet, as an earlier agent has known it.
    private func lastKey(_ key: ResourceKey, _ family: AddressFamily) -> PublicKey? {
        if let known = cluster.nodes[key.name] { return known.publicKeys[family] }
        if let last = lastKeys[family]?[key.name] { return last }
        guard case .node(let remembered)? = memory[key]?.resource else { return nil }
        return remembered.publicKeys[family]
    }

    private mutating func remove(_ key: ResourceKey) {
        if key == ownNodeKey { ownNode = nil }
        set(key, nil)
    }

    private mutating func set(_ key: ResourceKey, _ entry: ResourceEntry?) {
        guard key.kind == .pod else {
            cluster.set(key, to: entry)
            version += 1
            return
        }
        let (before, hadProblems) = (cluster.pods[shared: key], cluster.hasProblems(key))
        cluster.set(key, to: entry)
        let after = cluster.pods[shared: key]
        workloads?.replace(before, by: after, cluster)
        podVersion += 1
        // The plan has this node's pods, and what is wrong with any.
        if before?.pod.node == node || after?.pod.node == node || hadProblems || cluster.hasProblems(key) {
            version += 1
        }
    }

    private static let handful = 10
    private var ownNodeKey: ResourceKey { ResourceKey(.node, node) }
    private var workloadsVersion = 0
}
