// SPDX-License-Identifier: Apache-2.0

public import Model

/// Which node has which pod's address, where routes are made of pods' addresses: kept change by change, for there
/// may be a hundred thousand.
///
/// The rule is fixed, and the same for every order of arrival. Of two nodes that claim an address the first by name
/// has it; what `AddressRules` refuses, or what is another node's WireGuard address, nobody has.
public struct WorkloadAddresses: Sendable {
    /// By address the pod whose node has it.
    public private(set) var owners: [IPAddress: SharedPod] = [:]
    /// Counts changes of which nodes have addresses of a family.
    public private(set) var nodesVersion = 0
    /// Counts changes of what `problems` tells.
    public private(set) var problemsVersion = 0
    private var ipv4: [String: Set<CIDR>] = [:]
    private var ipv6: [String: Set<CIDR>] = [:]
    /// Addresses whose owner is another than at the last `takeChanges`, with the one that it was then.
    private var changes: [IPAddress: String?] = [:]
    /// All claims to addresses that have more than one, or that nobody may have.
    private var contested: [IPAddress: Set<ResourceKey>] = [:]
    private var rules: AddressRules
    /// WireGuard devices' own addresses.
    private var reserved: [CIDR: String]

    public init(_ cluster: ClusterState) {
        rules = AddressRules(cluster)
        reserved = Ownership(cluster, source: .workloadIPs).owners
        for pod in cluster.pods.sharedPods { claim(pod, cluster) }
    }

    /// Addresses by node, as prefixes of full length.
    public subscript(family: AddressFamily) -> [String: Set<CIDR>] { family == .ipv4 ? ipv4 : ipv6 }

    /// The node that has an address.
    public func node(of address: IPAddress) -> String? { owners[address]?.pod.node }

    /// Takes in that a pod has changed; `cluster` has it as it is now.
    mutating func replace(_ old: SharedPod?, by new: SharedPod?, _ cluster: ClusterState) {
        if let old, let new, old.pod.node == new.pod.node, old.pod.claims == new.pod.claims {
            for address in new.pod.claims where owners[address] === old { owners[address] = new }
            return
        }
        if let old { release(old, cluster) }
        if let new { claim(new, cluster) }
    }

    /// Takes in that nodes or pools have changed.
    public mutating func refresh(_ cluster: ClusterState) {
        let newRules = AddressRules(cluster)
        let newReserved = Ownership(cluster, source: .workloadIPs).owners
        guard newRules != rules || newReserved != reserved else { return }
        (rules, reserved) = (newRules, newReserved)
        for address in Array(contested.keys) { decide(address, cluster) }
        for (address, owner) in owners where refusal(of: address, owner.pod.node) != nil {
            if contested[address] == nil { contested[address] = [owner.pod.key] }
            decide(address, cluster)
        }
    }

    /// What has another owner since the last call, with the owner before.
    public mutating func takeChanges() -> [IPAddress: String?] {
        defer { changes = [:] }
        return changes
    }

    /// Claims that are not met. `cluster` has the pods.
    public func problems(_ cluster: ClusterState) -> [Problem] {
        var result: [Problem] = []
        for (address, keys) in contested {
            for key in keys {
                guard let pod = cluster.pods[key], pod.node != node(of: address) else { continue }
                guard let words = refusal(of: address, pod.node) ?? taken(address, pod) else { continue }
                result.append(
                    Problem(
                        resource: key.description, field: "status.podIPs", value: CIDR(host: address).description,
                        message: words.message, remedy: words.remedy))
            }
        }
        return result
    }

    private func taken(_ address: IPAddress, _ pod: PodResource) -> (message: String, remedy: String)? {
        node(of: address).map { Ownership.taken(from: pod.node, by: $0) }
    }

    private func refusal(of address: IPAddress, _ node: String) -> (message: String, remedy: String)? {
        let cidr = CIDR(host: address)
        if let words = rules.refusal(of: cidr) { return words }
        guard let owner = reserved[cidr], owner != node else { return nil }
        return Ownership.taken(from: node, by: owner)
    }

    // MARK: Claims

    private mutating func claim(_ new: SharedPod, _ cluster: ClusterState) {
        for address in new.pod.claims {
            if contested[address] != nil {
                contested[address]?.insert(new.pod.key)
            } else if let owner = owners[address] {
                contested[address] = [owner.pod.key, new.pod.key]
            } else if refusal(of: address, new.pod.node) != nil {
                contested[address] = [new.pod.key]
            } else {
                setOwner(address, new)
                continue
            }
            decide(address, cluster)
        }
    }

    private mutating func release(_ old: SharedPod, _ cluster: ClusterState) {
        for address in old.pod.claims {
            if contested[address] == nil {
                setOwner(address, nil)
            } else {
                contested[address]?.remove(old.pod.key)
                decide(address, cluster)
            }
        }
    }

    /// Decides anew who has a contested address.
    private mutating func decide(_ address: IPAddress, _ cluster: ClusterState) {
        guard let keys = contested[address] else { return }
        problemsVersion += 1
        let claimants = keys.compactMap { cluster.pods[shared: $0] }
            .filter { refusal(of: address, $0.pod.node) == nil && $0.pod.claims.contains(address) }
        setOwner(address, claimants.min { ($0.pod.node, $0.pod.key) < ($1.pod.node, $1.pod.key) })
        // Who claims it alone has it.
        if keys.isEmpty || keys.count == 1 && owners[address] != nil { contested[address] = nil }
    }

    private mutating func setOwner(_ address: IPAddress, _ owner: SharedPod?) {
        let before = node(of: address)
        owners[address] = owner
        guard before != owner?.pod.node else { return }
        if changes[address] == nil { changes[address] = .some(before) }
        let cidr = CIDR(host: address)
        if let before { update(address.family, before) { $0.remove(cidr) } }
        if let node = owner?.pod.node { update(address.family, node) { $0.insert(cidr) } }
    }

    private mutating func update(_ family: AddressFamily, _ node: String, _ change: (inout Set<CIDR>) -> Void) {
        func apply(_ table: inout [String: Set<CIDR>]) {
            let had = table[node] != nil
            change(&table[node, default: []])
            if table[node]?.isEmpty == true { table[node] = nil }
            if had != (table[node] != nil) { nodesVersion += 1 }
        }
        if family == .ipv4 { apply(&ipv4) } else { apply(&ipv6) }
    }
}

extension PodResource {
    /// Addresses that are its own, and its node's to route; none of one that runs no more, or has its node's address.
    var claims: Set<IPAddress> { isHostNetwork || isFinished || node.isEmpty ? [] : Set(addresses) }
}
