// SPDX-License-Identifier: Apache-2.0

internal import Model
public import Netlink
internal import Reconciler

/// Our rules in the node's own firewall: in a table of nf_tables of our own, or in chains of our
/// own in iptables' tables where the node uses those.
public struct HostFirewall {
    public private(set) var kind: FirewallKind?
    private var applied: FirewallChains = [:]
    private var hasExceptions = false
    /// Nothing is known of what is in place.
    private var isStale = true
    private var retryAt: ContinuousClock.Instant?
    private var failure: String?
    /// Where an exception has been put, for status.
    public private(set) var exceptions: [String] = []

    /// Programs that it may start.
    public static let programs = Iptables.programs

    public init() {}

    /// Looks again at what is in place with the next `apply`, if something should be.
    public mutating func resync() { if hasExceptions || !applied.isEmpty { isStale = true } }

    /// The same where nobody tells of changes: the kernel notifies of nf_tables, not of legacy iptables.
    public mutating func resyncUntold() { if kind == .iptablesLegacy { resync() } }

    public var nextRetry: ContinuousClock.Instant? { retryAt }

    /// Whether it has rules of ours.
    public var hasRules: Bool { applied.values.contains { !$0.isEmpty } }

    /// Whether the firewall is as it was last asked for.
    public var isSettled: Bool { failure == nil }

    /// Makes it hold these chains. `exceptions`: what of `input` and `output` is also put before
    /// other people's rules that would drop it.
    public mutating func apply(_ chains: FirewallChains, exceptions wantsExceptions: Bool) -> String? {
        guard isStale || chains != applied || wantsExceptions != hasExceptions || failure != nil else { return nil }
        if let retryAt, retryAt > .now, chains == applied { return failure }
        do {
            try place(chains, wantsExceptions)
            failure = nil
            retryAt = nil
        } catch {
            failure = "\(error)"
            retryAt = .now + .seconds(1)
        }
        applied = chains
        hasExceptions = wantsExceptions
        isStale = false
        return failure
    }

    private mutating func place(_ chains: FirewallChains, _ wantsExceptions: Bool) throws {
        let before = kind
        let kind = try FirewallKind.inUse()
        self.kind = kind
        let split = try Self.split(chains, kind)
        for family in AddressFamily.allCases where kind != .tables {
            let rules = split.inIptables[family] ?? [:]
            let tool = Iptables(kind: kind, family: family, chains: split.there[family] ?? [])
            if !rules.isEmpty {
                try tool.apply(rules)
            } else if kind.mayHaveChains(prefix: Iptables.prefix) {
                try tool.remove()
            }
        }
        let table = try FirewallTable(FirewallInspection.ownTable)
        if split.inTables.isEmpty {
            try table.remove()
        } else if try table.present() != FirewallTable.comments(split.inTables) {
            try table.replace(split.inTables)
        }
        // Chains in the other iptables, of a time when the node used that.
        if before != kind {
            for other in [FirewallKind.iptablesNFT, .iptablesLegacy] where other != kind {
                try Self.removeIptables(other)
            }
        }
        try placeExceptions(wantsExceptions ? chains : [:])
    }

    /// Which rules go into iptables' tables, where those are there, and which into our own.
    private static func split(_ chains: FirewallChains, _ kind: FirewallKind) throws -> (
        there: [AddressFamily: Set<String>], inIptables: [AddressFamily: FirewallChains], inTables: FirewallChains
    ) {
        let there = try kind.iptablesChains()
        var inIptables: [AddressFamily: FirewallChains] = [:]
        var inTables: FirewallChains = [:]
        for (hook, rules) in chains {
            for rule in rules {
                let families = rule.family.map { [$0] } ?? AddressFamily.allCases
                let taking = families.filter {
                    !rule.needsTables && there[$0]?.contains(Iptables.place(hook).callerTitle) == true
                }
                for family in taking { inIptables[family, default: [:]][hook, default: []].append(rule) }
                guard taking.count < families.count else { continue }
                var own = rule
                if let left = families.first(where: { !taking.contains($0) }), !taking.isEmpty {
                    own.matches.insert(.family(left), at: 0)
                }
                inTables[hook, default: []].append(own)
            }
        }
        return (there, inIptables, inTables)
    }

    private mutating func placeExceptions(_ chains: FirewallChains) throws {
        var wanted: [ForeignChain: [FirewallRule]] = [:]
        for hook in [FirewallHook.input, .output] where chains[hook]?.isEmpty == false {
            for chain in try FirewallExceptions.dropping(hook) where !FirewallExceptions.isIptables(chain) {
                wanted[chain] = chains[hook, default: []].compactMap { Self.exception($0, in: chain) }
            }
        }
        try FirewallExceptions().set(wanted)
        exceptions = wanted.keys.map(\.description).sorted()
    }

    /// The rule as a chain of that family takes it; nil: its packets never come there.
    private static func exception(_ rule: FirewallRule, in chain: ForeignChain) -> FirewallRule? {
        guard let family = rule.family else { return rule }
        guard chain.families.contains(family) else { return nil }
        var result = rule
        if chain.families.count == 1 { result.matches.removeAll { $0 == .family(family) } }
        return result
    }

    private static func removeIptables(_ kind: FirewallKind) throws {
        guard kind.mayHaveChains(prefix: Iptables.prefix) else { return }
        for (family, chains) in try kind.iptablesChains() where !chains.isEmpty {
            try Iptables(kind: kind, family: family, chains: chains).remove()
        }
    }

    /// Takes all of it away, whichever agent has put it there.
    public static func removeAll() throws {
        // A kernel without nfnetlink has neither.
        if let table = try? FirewallTable(FirewallInspection.ownTable) { try table.remove() }
        if let exceptions = try? FirewallExceptions() { try exceptions.set([:]) }
        for kind in [FirewallKind.iptablesNFT, .iptablesLegacy] { try removeIptables(kind) }
    }
}
