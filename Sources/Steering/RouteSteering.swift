// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
public import Model
internal import Netlink
internal import Reconciler
internal import SystemDescriptors

/// Steering as Felix does it, without BPF: a routing rule for packets without WireGuard's mark
/// leads to a table with the peers' prefixes; rules of the firewall allow WireGuard's port and masquerade.
///
/// The table holds `PREFIX dev wireguard.cali` for what a peer carries, `throw PREFIX` for this node's own prefixes
/// and for those that go in clear, and in strict mode `blackhole PREFIX` for what must not. The rule comes when the
/// routes are there, and goes first when all goes.
public struct RouteSteering: SteeringBackend {
    /// Marks our routes and rules as ours (`RTPROT_…`, no number that `/etc/iproute2/rt_protos` names).
    public static let origin: UInt8 = 0x77

    /// Where a prefix leads.
    enum Way: Equatable, Sendable {
        case device(UInt32)
        /// On to the tables after ours.
        case onward
        case nowhere

        var type: UInt8 {
            switch self {
            case .device: 1
            case .onward: 9
            case .nowhere: 6
            }
        }
    }

    public private(set) var table: UInt32 = 0
    private var routes = Reconciler<CIDR, Way>()
    private var rules = Reconciler<RoutingRule, Bool>()
    private var firewall = HostFirewall()
    private var settings: KernelSettings
    private let session: RouteSession
    private var isStale = true
    private var isTableStale = false
    /// As they were when they could last be looked at.
    private var lastDevices: [AddressFamily: RoutingPlan.Device] = [:]
    /// The table is one that the plan allows.
    private var hasTable = false
    /// Nodes' own addresses are, or were a moment ago, in the table.
    private var encryptedHosts = false

    /// In the calling thread's network namespace. `stateFolder` keeps what kernel settings were before.
    public init(stateFolder: String) throws {
        session = try RouteSession()
        settings = KernelSettings(folder: stateFolder)
        encryptedHosts = settings.isChanged
    }

    /// Looks again at what is in place with the next `apply`.
    public mutating func resync() {
        isStale = true
        firewall.resync()
    }

    /// Looks again at our rules and our table with the next `apply`: the kernel has told of a change of some.
    public mutating func resyncTable() { isTableStale = true }

    public var nextRetry: ContinuousClock.Instant? {
        [routes.nextRetry, rules.nextRetry, firewall.nextRetry].compactMap { $0 }.min()
    }

    /// Whether all is in place that the last plan asked for.
    public var isSettled: Bool { table != 0 && hasTable && isRouted && firewall.isSettled }

    /// Which firewall holds our rules, for status.
    public var firewallKind: String { firewall.kind?.rawValue ?? "" }
    public var exceptions: [String] { firewall.exceptions }

    public mutating func apply(_ plan: SteeringPlan) throws -> [Problem] {
        guard let routing = plan.routing else { return [] }
        if isStale || !hasTable || !routing.tables.contains(where: { $0.contains(table) }) { try look(routing) }
        if isTableStale { try lookAtTable() }
        var problems: [Problem] = []
        if !hasTable {
            problems.append(
                Problem(
                    resource: "FelixConfiguration", field: "spec.routeTableRanges",
                    value: routing.tables.map { "\($0.lowerBound)-\($0.upperBound)" }.joined(separator: ","),
                    message: "has no table that is empty"
                        + (table == 0 ? ", so nothing is steered in route mode" : ", so table \(table) is kept"),
                    remedy: "name other tables, or empty one"))
            if table == 0 { return problems }
        }
        // What lets nodes' own packets come in while they are routed into the tunnel is there before, and goes
        // after.
        try loosenFilters(plan)
        if plan.config.encryptsHosts { try settings.set(Self.validMark, "1") }
        let words = [applyFirewall(plan, routing, keepsHosts: encryptedHosts)]
        applyRoutes(plan)
        if routes.errors.isEmpty { applyRules(plan, routing) }
        if encryptedHosts, !plan.config.encryptsHosts, isRouted {
            try settings.set(Self.validMark, nil)
            encryptedHosts = false
        }
        encryptedHosts = encryptedHosts || plan.config.encryptsHosts
        for words in (words + [applyFirewall(plan, routing, keepsHosts: encryptedHosts)]).compactMap({ $0 }).prefix(1) {
            problems.append(
                Problem(
                    resource: "Firewall", message: words,
                    remedy: "it is tried again; is the program there, and may it write this node's firewall?"))
        }
        problems += report()
        return problems
    }

    private var isRouted: Bool { routes.errors.isEmpty && rules.errors.isEmpty }

    private mutating func applyFirewall(
        _ plan: SteeringPlan, _ routing: RoutingPlan, keepsHosts: Bool
    ) -> String? {
        var kept = plan
        kept.config.encryptsHosts = plan.config.encryptsHosts || keepsHosts
        var devices = routing.devices
        for family in plan.preserved where devices[family] == nil { devices[family] = lastDevices[family] }
        lastDevices = devices
        var full = routing
        full.devices = devices
        return firewall.apply(Self.chains(kept, full), exceptions: routing.makesExceptions)
    }

    private static let validMark = "net/ipv4/conf/all/src_valid_mark"

    /// What comes in clear from an address that our table leads into the tunnel, of a peer that does not
    /// encrypt yet, or of a node's own under host encryption, has its reverse path there. For WireGuard's
    /// packets that is looked up with the mark; ARP has none, so that a strict filter on the uplinks (1)
    /// would refuse to answer other nodes: there it is loose (2).
    private mutating func loosenFilters(_ plan: SteeringPlan) throws {
        let isStrict = KernelSettings.value("net/ipv4/conf/all/rp_filter") == "1"
        for name in Set(plan.hooks.filter { $0.hook == .toUplink }.map(\.device)) {
            let setting = "net/ipv4/conf/\(name)/rp_filter"
            let own = KernelSettings.value(setting)
            if own == "1" || own == "0" && isStrict { try settings.set(setting, "2") }
        }
    }

    // MARK: What is there

    /// Reads rules and routes; chooses the table: the one that has ours, else the first that is empty.
    private mutating func look(_ routing: RoutingPlan) throws {
        var taken: Set<UInt32> = [253, 254, 255]
        var ours: [UInt32: [CIDR: Way]] = [:]
        var present: [RoutingRule: Bool] = [:]
        for family in AddressFamily.allCases {
            for route in try session.routes(family) where route.table != 255 {
                guard route.origin == Self.origin else {
                    taken.insert(route.table)
                    continue
                }
                ours[route.table, default: [:]][route.destination] = Self.way(route)
            }
            for rule in try session.rules(family) {
                if Self.isOurs(rule) { present[rule] = true } else if rule.table != table { taken.insert(rule.table) }
            }
        }
        let allowed = routing.tables
        func isAllowed(_ table: UInt32) -> Bool { allowed.contains { $0.contains(table) } }
        let candidates = ours.keys.sorted().filter(isAllowed)
        let before = table
        let found =
            candidates.contains(table) && !taken.contains(table)
            ? table
            : candidates.first { !taken.contains($0) } ?? allowed.lazy.flatMap { $0 }.first { !taken.contains($0) }
        // Where there is no other, the one that steers now goes on.
        hasTable = found != nil
        table = found ?? table
        routes.adopt(ours[table] ?? [:])
        // Rules that look our table up are ours to judge, whoever made them.
        for family in AddressFamily.allCases {
            for rule in try session.rules(family) where rule.table == table && !rule.hasMore { present[rule] = true }
        }
        rules.adopt(present)
        stale = Set(ours.keys).subtracting([table])
        if before != 0, before != table { stale.insert(before) }
        isStale = false
        isTableStale = false
    }

    /// Reads our table and the rules; what is in others stays as it is believed to be.
    private mutating func lookAtTable() throws {
        var present: [CIDR: Way] = [:]
        var found: [RoutingRule: Bool] = [:]
        for family in AddressFamily.allCases {
            for route in try session.routes(family, table: table) where route.origin == Self.origin {
                present[route.destination] = Self.way(route)
            }
            for rule in try session.rules(family) where Self.isOurs(rule) || rule.table == table && !rule.hasMore {
                found[rule] = true
            }
        }
        routes.adopt(present)
        rules.adopt(found)
        isTableStale = false
    }

    private static func way(_ route: Route) -> Way {
        route.type == 9 ? .onward : route.type == 6 ? .nowhere : .device(route.index)
    }

    /// Tables that we have routes in and use no more.
    private var stale: Set<UInt32> = []

    private static func isOurs(_ rule: RoutingRule) -> Bool { rule.origin == origin }

    // MARK: Routes and rules

    private mutating func applyRoutes(_ plan: SteeringPlan) {
        var wanted = Self.ways(plan)
        // Of a family whose device cannot be looked at now all stays.
        for (cidr, way) in routes.applied where plan.preserved.contains(cidr.family) {
            wanted[cidr] = wanted[cidr] ?? way
        }
        let session = session
        let table = table
        routes.update(to: wanted) { try session.replaceRoute(Self.route($0, $1, table)) }
        routes.prune(to: wanted) { try session.deleteRoute(Self.route($0, nil, table)) }
    }

    private static func route(_ cidr: CIDR, _ way: Way?, _ table: UInt32) -> Route {
        var index: UInt32 = 0
        if case .device(let device) = way { index = device }
        return Route(cidr, index: index, table: table, type: way?.type ?? 0, origin: origin)
    }

    static func ways(_ plan: SteeringPlan) -> [CIDR: Way] {
        var wanted: [CIDR: Way] = [:]
        // Nodes' own addresses are never led nowhere: their ARP would not be answered any more.
        let nodes = Set(plan.peers.values.flatMap(\.endpoints).map { CIDR(host: $0.address) })
        var targets = plan.routes
        for (address, owner) in plan.workloads?.owners ?? [:] {
            if let target = plan.workloads?.target(address, owner) {
                targets[CIDR(host: address)] = targets[CIDR(host: address)] ?? target
            }
        }
        for (cidr, target) in targets {
            switch target {
            // What nobody has, and has no other way: promised all the same.
            case .pool: if plan.config.isStrict { wanted[cidr] = wanted[cidr] ?? .nowhere }
            case .local: wanted[cidr] = .onward
            case .peer(let key):
                guard let peer = plan.peers[key] else {
                    wanted[cidr] = plan.config.isStrict ? .nowhere : .onward
                    continue
                }
                if peer.action == .tunnel, let lane = peer.lanes.first {
                    wanted[cidr] = .device(lane)
                } else {
                    let isPromised = plan.config.isStrict && peer.action != .exempt && !nodes.contains(cidr)
                    wanted[cidr] = isPromised ? .nowhere : .onward
                }
            }
        }
        // A pod here of whose address no resource tells yet is here all the same.
        if plan.config.isStrict {
            for address in plan.routing?.localAddresses ?? [] where wanted[CIDR(host: address)] == nil {
                wanted[CIDR(host: address)] = .onward
            }
        }
        return wanted
    }

    private mutating func applyRules(_ plan: SteeringPlan, _ routing: RoutingPlan) {
        var wanted: [RoutingRule: Bool] = [:]
        let marks = [plan.config.firewallMark, plan.config.oldFirewallMark].filter { $0 != 0 }
        for family in routing.devices.keys {
            // While the mark changes, packets with the other one go on first.
            for mark in marks.dropFirst() where routing.priority > 1 {
                wanted[
                    RoutingRule(
                        family: family, priority: routing.priority - 1, table: 254, mark: mark, mask: mark,
                        origin: Self.origin)] = true
            }
            wanted[
                RoutingRule(
                    family: family, priority: routing.priority, table: table, mark: marks[0], mask: marks[0],
                    isInverted: true, origin: Self.origin)] = true
        }
        for rule in rules.applied.keys where plan.preserved.contains(rule.family) { wanted[rule] = true }
        let session = session
        rules.update(to: wanted) { rule, _ in try session.addRule(rule) }
        rules.prune(to: wanted) { try session.deleteRule($0) }
        guard rules.errors.isEmpty, !stale.isEmpty else { return }
        try? Self.emptyTables(session) { $0 != table }
        stale = []
    }

    private func report() -> [Problem] {
        routes.errors.map {
            Problem(
                resource: "Route/\($0.key)", field: "table \(table)", message: $0.value,
                remedy: "it is tried again; see `ip route show table \(table)`")
        }
            + rules.errors.map {
                Problem(
                    resource: "Rule/\($0.key.priority)", field: "table \(table)", message: $0.value,
                    remedy: "it is tried again; see `ip rule`")
            }
    }

    // MARK: Removal

    public mutating func remove() throws { try Self.removeAll(stateFolder: settings.folder) }

    /// Looks again at the firewall alone.
    public mutating func resyncFirewall() { firewall.resync() }

    /// Takes away whatever an agent of any time has left: rules, then routes, then the firewall's part, unless
    /// somebody else sees to that.
    public static func removeAll(stateFolder: String, keepsFirewall: Bool = false) throws {
        let session = try RouteSession()
        var wasThere = false
        for family in AddressFamily.allCases {
            guard let rules = try? session.rules(family) else { continue }
            for rule in rules where isOurs(rule) {
                try session.deleteRule(rule)
                wasThere = true
            }
        }
        // Who has found the rule a moment ago still looks into the table, where strict mode has blackholes.
        if wasThere { sleepMicroseconds(10_000) }
        try emptyTables(session) { _ in true }
        if !keepsFirewall { try HostFirewall.removeAll() }
        var settings = KernelSettings(folder: stateFolder)
        try settings.restore()
    }

    /// Whether there are rules of ours.
    public static func isThere() -> Bool {
        guard let session = try? RouteSession() else { return false }
        return AddressFamily.allCases.contains { (try? session.rules($0))?.contains(where: isOurs) == true }
    }

    private static func emptyTables(_ session: RouteSession, where isMeant: (UInt32) -> Bool) throws {
        for family in AddressFamily.allCases {
            guard let routes = try? session.routes(family) else { continue }
            for route in routes where route.origin == origin && isMeant(route.table) { try session.deleteRoute(route) }
        }
    }
}
