// SPDX-License-Identifier: Apache-2.0

public import Model

/// Where packets for a prefix go.
public enum RouteTarget: Sendable, Hashable, Codable {
    /// In a pool, and no node has it.
    case pool
    /// This node's.
    case local
    /// Another node's.
    case node(String)
}

/// Another node's WireGuard peer, of one family.
public struct PeerPlan: Sendable, Hashable {
    public var node: String
    public var publicKey: PublicKey
    /// Nil: the node is behind NAT, and its endpoint is learned from what it sends.
    public var endpoint: Endpoint?
    public var allowedIPs: Set<CIDR>
    /// The node's own address, from which it may speak to us beside its endpoint.
    public var address: IPAddress?

    public init(
        node: String, publicKey: PublicKey, endpoint: Endpoint?, allowedIPs: Set<CIDR>, address: IPAddress? = nil
    ) {
        self.node = node
        self.publicKey = publicKey
        self.endpoint = endpoint
        self.allowedIPs = allowedIPs
        self.address = address ?? endpoint?.address
    }
}

/// A pod of this node.
public struct LocalPod: Sendable, Hashable {
    /// `namespace/name`.
    public var name: String
    public var addresses: [IPAddress]
    /// What it may send from beside them.
    public var allowedSources: [CIDR] = []
}

/// What one node should have, of one family.
public struct FamilyPlan: Sendable, Hashable {
    /// By node.
    public var peers: [String: PeerPlan] = [:]
    public var routes: [CIDR: RouteTarget] = [:]
    /// Other nodes that have prefixes but no usable peer.
    public var unencrypted: Set<String> = []
    /// Nodes that the operator lets be reached in clear where there is no other way.
    public var exempt: Set<String> = []
    /// Whether the node has an underlay address, without which there is no device.
    public var hasUnderlay = false
}

extension FamilyPlan {
    /// In no order.
    public var pools: [CIDR] { routes.compactMap { $0.value == .pool ? $0.key : nil } }

    /// Adds pods' addresses, by node.
    fileprivate mutating func fold(_ addresses: [String: Set<CIDR>], node: String) {
        for (owner, cidrs) in addresses {
            for cidr in cidrs { routes[cidr] = owner == node ? .local : .node(owner) }
            peers[owner]?.allowedIPs.formUnion(cidrs)
        }
    }
}

/// What one node should have: a pure function of the resources.
public struct NodePlan: Sendable {
    public var node: String
    /// The settings in force, and where they come from.
    public var effective: EffectiveSettings
    public var settings: Settings { effective.settings }
    public var routeSource: RouteSource
    public var ipv4 = FamilyPlan()
    public var ipv6 = FamilyPlan()
    public var pods: [LocalPod] = []
    /// Nodes' own traffic is encrypted too: as the setting says, else on EKS and AKS.
    public private(set) var encryptsHosts = false
    /// Calico's own agent runs on this node.
    public private(set) var isBesideCalicoNode = false
    /// Seconds between keep-alive packets, 0: off.
    public private(set) var keepAlive: UInt16 = 0
    /// What AKS takes off the MTU beside WireGuard's overhead when hosts are encrypted.
    public private(set) var cloudOverhead: UInt32 = 0
    /// Who had each key first; handed to the next computation.
    public var keyOwners: [PublicKey: String]
    /// Keys that were seen first; handed to the next computation, and kept.
    public private(set) var keyPins: KeyPins
    public var problems: [Problem]
    /// Listening ports of nodes with a configuration of their own, and of all others.
    private var ports: [String: [AddressFamily: UInt16]] = [:]
    private var commonPorts: [AddressFamily: UInt16] = [:]

    public subscript(family: AddressFamily) -> FamilyPlan {
        get { family == .ipv4 ? ipv4 : ipv6 }
        set { if family == .ipv4 { ipv4 = newValue } else { ipv6 = newValue } }
    }

    /// - Parameters:
    ///   - cluster: all resources.
    ///   - node: this node's name.
    ///   - ownKeys: the public keys of this node's devices; nobody else may claim them.
    ///   - keyOwners: who had each key before.
    ///   - keyPins: keys that were seen first.
    ///   - overrides: settings of this node said outside the datastore.
    ///   - inForce: this node's settings until now.
    ///   - workloads: pods' addresses, where they are kept beside the plan: its routes and allowed IPs are without
    ///     them then. Nil: they are in it.
    public init(
        _ cluster: ClusterState, node: String, ownKeys: [AddressFamily: PublicKey] = [:],
        keyOwners: [PublicKey: String] = [:], keyPins: KeyPins = KeyPins(), overrides: [SettingOverride] = [],
        inForce: Settings? = nil,
        workloads: WorkloadAddresses? = nil
    ) {
        var problems = cluster.problems
        self.node = node
        effective = EffectiveSettings(
            felix: cluster.configurations(of: .felixConfiguration),
            dataplane: cluster.configurations(of: .dataplaneConfiguration), node: node, overrides: overrides,
            inForce: inForce, problems: &problems)
        let settings = effective.settings
        routeSource = settings.routeSource ?? cluster.automaticRouteSource
        let ownership = Ownership(cluster, source: routeSource)
        problems += ownership.problems
        let isByWorkloads = routeSource == .workloadIPs
        let folded = isByWorkloads && workloads == nil ? WorkloadAddresses(cluster) : nil
        problems += folded?.problems(cluster) ?? []
        self.keyOwners = [:]
        self.keyPins = keyPins
        self.problems = []
        if cluster.nodes[node] == nil {
            problems.append(
                Problem(
                    resource: "Node/\(node)", message: "is not in the datastore, so this node has no endpoint",
                    remedy: "create it, or name another with --node"))
        }
        if let said = settings.keyPinning { self.keyPins.choice = said }
        if let choice = self.keyPins.choice, choice != .disabled, settings.strictMode != .enabled {
            problems.append(
                Problem(
                    .warning, resource: "DataplaneConfiguration", field: "spec.wireguardKeyPinning",
                    value: choice.rawValue,
                    message: "without strict mode lets packets to a node whose key is not believed go in clear",
                    remedy: "set wireguardStrictMode: Enabled"))
        }
        keepAlive = cluster.nodes[node]?.keepAlive ?? settings.keepAlive
        let ownPods = cluster.pods.values.filter { $0.node == node && !$0.isFinished }
        isBesideCalicoNode = ownPods.contains(where: \.isCalicoNode)
        let provider = cluster.nodes[node]?.provider ?? ""
        encryptsHosts = settings.hostEncryption ?? ["aws", "azure"].contains(provider)
        cloudOverhead = encryptsHosts && provider == "azure" ? 100 : 0
        for pod in ownPods where !pod.isHostNetwork {
            pods.append(
                LocalPod(
                    name: pod.description, addresses: pod.addresses,
                    allowedSources: settings.sourceSpoofing == .any ? pod.allowedSources : []))
        }
        pods.sort { $0.name < $1.name }
        // A node's own configuration may give it another port.
        let felix = cluster.configurations(of: .felixConfiguration)
        for name in cluster.nodes.keys where felix.contains(where: { $0.key.name == "node.\(name)" }) {
            let other = Settings(felix: felix, dataplane: [], node: name)
            ports[name] = [.ipv4: other.ipv4.listeningPort, .ipv6: other.ipv6.listeningPort]
        }
        let common = Settings(felix: felix.filter { $0.key.name == "default" }, dataplane: [], node: "")
        commonPorts = [.ipv4: common.ipv4.listeningPort, .ipv6: common.ipv6.listeningPort]
        var history = keyOwners
        for (key, name) in self.keyPins.owners(cluster) { history[key] = name }
        for key in ownKeys.values { history[key] = node }
        for family in AddressFamily.allCases {
            self[family] = plan(family, cluster, ownership, history, &problems)
            guard isByWorkloads else { continue }
            if let folded { self[family].fold(folded[family], node: node) }
            let owners = (folded ?? workloads)?[family].keys.filter { self[family].peers[$0] == nil && $0 != node }
            self[family].unencrypted.formUnion(owners ?? [])
        }
        self.problems = Array(Set(problems)).sorted()
    }

    private mutating func plan(
        _ family: AddressFamily, _ cluster: ClusterState, _ ownership: Ownership, _ history: [PublicKey: String],
        _ problems: inout [Problem]
    ) -> FamilyPlan {
        var plan = FamilyPlan()
        plan.hasUnderlay = cluster.nodes[node]?.addresses[family] != nil
        for pool in cluster.pools.values where !pool.isDisabled && pool.cidr.family == family {
            plan.routes[pool.cidr] = .pool
        }
        var prefixes: [String: Set<CIDR>] = [:]
        for (cidr, owner) in ownership.owners where cidr.family == family {
            prefixes[owner, default: []].insert(cidr)
            plan.routes[cidr] = owner == node ? .local : .node(owner)
        }
        let valid = keyPins.believed(
            validKeys(family, cluster, history, &problems), family, cluster, own: node, &problems)
        let hosts = hostAddresses(Set(valid.keys), family, cluster, &problems)
        for (name, key) in valid {
            keyOwners[key] = name
            guard name != node, let other = cluster.nodes[name] else { continue }
            let endpoint = endpoint(of: other, family)
            guard let address = other.addresses[family], endpoint != nil || other.endpoints[family] == .learned else {
                problems.append(
                    Problem(
                        resource: "Node/\(name)", field: "status.addresses",
                        message: "has no InternalIP of \(family), so its WireGuard has no endpoint and is not used",
                        remedy: "add the address, or the annotation \(NodeAnnotation.nodeAddress(family))"))
                continue
            }
            var allowed = prefixes[name] ?? []
            if hosts.contains(name) {
                allowed.insert(CIDR(host: address))
                // Both nodes encrypt what they send themselves: the other knows it by now.
                if encryptsHosts { plan.routes[CIDR(host: address)] = .node(name) }
            }
            plan.peers[name] = PeerPlan(
                node: name, publicKey: key, endpoint: endpoint, allowedIPs: allowed, address: address)
        }
        // Of nodes without WireGuard only: an annotation that was forgotten exempts nobody else, nor does a key that is
        // refused or cannot be read.
        let exempt = cluster.nodes.values.filter {
            $0.isStrictModeExempt && $0.publicKeys[family] == nil && !$0.unreadableKeys.contains(family)
        }
        plan.exempt = Set(exempt.map(\.name)).subtracting(keyPins.names(family, cluster))
        plan.unencrypted = Set(prefixes.keys).subtracting(plan.peers.keys).subtracting([node])
        return plan
    }

    /// Nodes whose device has their own address, which is what they send from then. An address has one node, the first by
    /// name; ours, and those of pods, have none.
    private func hostAddresses(
        _ names: Set<String>, _ family: AddressFamily, _ cluster: ClusterState, _ problems: inout [Problem]
    ) -> Set<String> {
        let claims = names.sorted().compactMap { name -> (node: String, address: IPAddress)? in
            guard name != node, let other = cluster.nodes[name], let address = other.addresses[family],
                other.interfaceAddresses[family] == address
            else { return nil }
            return (name, address)
        }
        guard !claims.isEmpty else { return [] }
        let rules = AddressRules(cluster)
        var owners: [IPAddress: String] = [:]
        if let own = cluster.nodes[node]?.addresses[family] { owners[own] = node }
        var result: Set<String> = []
        for claim in claims {
            let words =
                owners[claim.address].map { Ownership.taken(from: claim.node, by: $0) }
                ?? rules.refusal(ofHost: claim.address, sharesPools: routeSource == .workloadIPs)
            if let words {
                problems.append(
                    Problem(
                        resource: "Node/\(claim.node)",
                        field: "metadata.annotations[\(NodeAnnotation.interfaceAddress(family))]",
                        value: claim.address.description, message: words.message, remedy: words.remedy))
                continue
            }
            owners[claim.address] = claim.node
            result.insert(claim.node)
        }
        return result
    }

    /// As the operator says; else the node's own address, and the port that its agent tells of. Nil: it
    /// has no address, or is to be learned.
    private func endpoint(of other: NodeResource, _ family: AddressFamily) -> Endpoint? {
        let port =
            other.listeningPorts[family] ?? ports[other.name]?[family] ?? commonPorts[family]
            ?? settings[family].listeningPort
        switch other.endpoints[family] {
        case .learned: return nil
        case .at(let address, let own): return Endpoint(address: address, port: own ?? port)
        case nil: return other.addresses[family].map { Endpoint(address: $0, port: port) }
        }
    }

    /// Keys by node, without those that two nodes claim: who had a key first keeps it;
    /// when nobody knows who that was, nobody has it.
    private func validKeys(
        _ family: AddressFamily, _ cluster: ClusterState, _ history: [PublicKey: String], _ problems: inout [Problem]
    ) -> [String: PublicKey] {
        var claimants: [PublicKey: [String]] = [:]
        for other in cluster.nodes.values {
            if let key = other.publicKeys[family] { claimants[key, default: []].append(other.name) }
        }
        for (key, owner) in history where owner == node {
            if claimants[key]?.contains(node) == false { claimants[key]?.append(node) }
        }
        var valid: [String: PublicKey] = [:]
        for (key, names) in claimants {
            if names.count == 1 {
                valid[names[0]] = key
                continue
            }
            let first = history[key].flatMap { names.contains($0) ? $0 : nil }
            if let first { valid[first] = key }
            for name in names.sorted() where name != first {
                let others = names.filter { $0 != name }.sorted().joined(separator: ", ")
                problems.append(
                    Problem(
                        resource: "Node/\(name)",
                        field: "metadata.annotations[\(NodeAnnotation.publicKey(family))]", value: key.description,
                        message: "is claimed by node \(others) too"
                            + (first == nil
                                ? ", and neither is used" : ", who had it first, and is not used for this node"),
                        remedy:
                            "remove the annotation from the node that does not own the key; its agent writes its own"))
            }
        }
        return valid
    }
}
