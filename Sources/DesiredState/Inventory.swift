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
    /// Counts contents that differ.
    public private(set) var version = 0
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

    public struct Held: Sendable, Hashable {
        public var gone: Set<ResourceKey>
        public var left: Int
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
                    resource: kind.rawValue, field: "list", value: "\(held.left)",
                    message: "the datastore tells of \(held.left) of \(held.left + held.gone.count) "
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
                held[key.kind]?.noteReturn(of: key)
            } else if changes.whole.contains(key.kind) {
                // What a whole list does not name is looked at as a whole.
                continue
            } else if held[key.kind] != nil {
                held[key.kind]?.noteLoss(of: key)
            } else {
                remove(key)
            }
        }
        for kind in changes.whole { takeWhole(kind, changes) }
        if acceptsMassDeletion || !held.isEmpty { release(all: acceptsMassDeletion) }
    }

    /// Takes in what an earlier agent has known, of kinds that nobody has told of yet. Nothing is taken away for not
    /// being among it, and whole lists are held against it.
    public mutating func recall(_ resources: [ResourceKey: ResourceEntry], podScope: PodScope) {
        stale = Set(ResourceKind.allCases).subtracting(known)
        for (key, entry) in resources where stale.contains(key.kind) { cluster.set(key, to: entry) }
        if stale.contains(.pod) { self.podScope = podScope }
        known = Set(ResourceKind.allCases)
        version += 1
    }

    private mutating func takeWhole(_ kind: ResourceKind, _ changes: ResourceChanges) {
        if known.insert(kind).inserted { version += 1 }
        if stale.remove(kind) != nil { version += 1 }
        if kind == .pod, podScope != changes.podScope {
            podScope = changes.podScope
            version += 1
        }
        let present = cluster.keys(of: kind)
        // What is told without being there is nil, and is gone.
        let gone = present.filter { (changes.entries[$0] ?? nil) == nil }
        let left = present.count - gone.count
        held[kind] = gone.isEmpty ? nil : Held(gone: gone, left: left)
        if held[kind]?.isSuspect == false { release(kind) }
    }

    /// Lets go what is not suspect any more.
    private mutating func release(all: Bool) {
        for (kind, held) in held where all || !held.isSuspect { release(kind) }
    }

    private mutating func release(_ kind: ResourceKind) {
        for key in held[kind]?.gone ?? [] { remove(key) }
        held[kind] = nil
        version += 1
    }

    private mutating func put(_ key: ResourceKey, _ entry: ResourceEntry) {
        guard cluster[key] != entry || key == ownNodeKey else { return }
        cluster.set(key, to: entry)
        version += 1
    }

    private mutating func remove(_ key: ResourceKey) {
        if key == ownNodeKey { ownNode = nil }
        cluster.set(key, to: nil)
        version += 1
    }

    private var ownNodeKey: ResourceKey { ResourceKey(.node, node) }
}

extension Inventory.Held {
    /// A list that is empty, or has a tenth of what was there, where there was more than a handful.
    var isSuspect: Bool { left == 0 || gone.count + left >= 10 && left * 10 <= gone.count + left }

    fileprivate mutating func noteReturn(of key: ResourceKey) {
        if gone.remove(key) != nil { left += 1 }
    }

    fileprivate mutating func noteLoss(of key: ResourceKey) {
        if gone.insert(key).inserted { left = max(0, left - 1) }
    }
}
