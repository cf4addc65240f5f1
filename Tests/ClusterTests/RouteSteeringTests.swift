// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
import Foundation
import Model
import Netlink
import Steering
import SystemDescriptors
import Testing

/// Route mode's rules and routes against the kernel, in a network namespace of their own.
@Suite("Route mode", .serialized)
struct RouteSteeringTests {
    static let folder = "/tmp/wgplane-test-route-\(getpid())"

    /// A plan with one peer that carries, one that does not, and a device of each family.
    private static func plan(
        _ index: UInt32, priority: UInt32 = 99, tables: [ClosedRange<UInt32>] = [1...250], isStrict: Bool = false,
        mark: UInt32 = 0x2000_0000
    ) throws -> SteeringPlan {
        var plan = SteeringPlan(
            config: DataplaneConfig(
                ipv4: .init(interface: index, listeningPort: 51820),
                ipv6: .init(interface: index, listeningPort: 51821),
                firewallMark: mark, isDirect: false))
        plan.config.isStrict = isStrict
        for (family, pool, own, first, second) in [
            (AddressFamily.ipv4, "10.48.0.0/16", "10.48.1.0/26", "10.48.2.0/26", "10.48.3.0/26"),
            (.ipv6, "fd48::/48", "fd48:0:0:1::/122", "fd48:0:0:2::/122", "fd48:0:0:3::/122"),
        ] {
            let keys = ["node2", "node3"].map { PeerSlotKey(node: $0, family: family) }
            plan.peers[keys[0]] = PeerSteering(publicKey: nil, endpoints: [], action: .tunnel, lanes: [index])
            plan.peers[keys[1]] = PeerSteering(publicKey: nil, endpoints: [], action: .clear, lanes: [])
            plan.routes[try #require(CIDR(pool))] = .pool
            plan.routes[try #require(CIDR(own))] = .local
            plan.routes[try #require(CIDR(first))] = .peer(keys[0])
            plan.routes[try #require(CIDR(second))] = .peer(keys[1])
        }
        plan.routing = RoutingPlan(
            priority: priority, tables: tables,
            devices: [
                .ipv4: .init(names: ["wg4"], interface: index, listeningPort: 51820, otherPort: 0),
                .ipv6: .init(names: ["wg4"], interface: index, listeningPort: 51821, otherPort: 0),
            ], podPrefixes: ["cali"], makesExceptions: false)
        return plan
    }

    /// A device that is up, and a body, in a namespace of their own.
    private func alone<Value: Sendable>(
        _ body: @escaping @Sendable (RouteSession, UInt32) throws -> Value
    ) throws -> Value {
        defer { try? FileManager.default.removeItem(atPath: Self.folder) }
        return try inNewNetworkNamespace {
            let session = try RouteSession()
            try session.createLink(named: "wg4", kind: "bridge")
            let link = try #require(try session.link(named: "wg4"))
            try session.setLink(link.index, up: true)
            return try body(session, link.index)
        }
    }

    private static func rules(_ session: RouteSession) throws -> [RoutingRule] {
        try AddressFamily.allCases.flatMap { try session.rules($0) }.filter { $0.origin == RouteSteering.origin }
    }

    /// Destination, type (1 device, 6 nowhere, 9 onward), of one table.
    private static func table(_ session: RouteSession, _ table: UInt32) throws -> [String: UInt8] {
        var result: [String: UInt8] = [:]
        for family in AddressFamily.allCases {
            for route in try session.routes(family, table: table) { result[route.destination.description] = route.type }
        }
        return result
    }

    @Test("rule and table are made, and a second time nothing is; all is taken away")
    func made() throws {
        try alone { session, index in
            var steering = try RouteSteering(stateFolder: Self.folder)
            let plan = try Self.plan(index)
            #expect(try steering.apply(plan).isEmpty && steering.isSettled && steering.table == 1)
            let rules = try Self.rules(session)
            #expect(rules.count == 2 && rules.allSatisfy { $0.priority == 99 && $0.isInverted && $0.table == 1 })
            let wanted: [String: UInt8] = [
                "10.48.1.0/26": 9, "10.48.2.0/26": 1, "10.48.3.0/26": 9, "fd48:0:0:1::/122": 9,
                "fd48:0:0:2::/122": 1, "fd48:0:0:3::/122": 9,
            ]
            #expect(try Self.table(session, 1) == wanted)
            let before = NetlinkWork.changes
            #expect(try steering.apply(plan).isEmpty)
            steering.resync()
            #expect(try steering.apply(plan).isEmpty)
            #expect(NetlinkWork.changes == before, "nothing differs, nothing is done")
            // The next agent takes it over.
            var next = try RouteSteering(stateFolder: Self.folder)
            #expect(try next.apply(plan).isEmpty && NetlinkWork.changes == before)
            try next.remove()
            #expect(try Self.rules(session).isEmpty && Self.table(session, 1).isEmpty)
            #expect(try FirewallTable(FirewallInspection.ownTable).present() == nil)
        }
    }

    @Test("what is altered by hand is mended at the next look")
    func mended() throws {
        try alone { session, index in
            var steering = try RouteSteering(stateFolder: Self.folder)
            let plan = try Self.plan(index)
            _ = try steering.apply(plan)
            let wanted = try Self.table(session, 1)
            let rules = try Self.rules(session)
            // A rule deleted, a wrong one that leads to our table, a route gone, one changed, one too many.
            try session.deleteRule(rules[0])
            var wrong = rules[0]
            wrong.priority = 50
            wrong.isInverted = false
            wrong.origin = 4
            try session.addRule(wrong)
            let gone = try #require(CIDR("10.48.2.0/26"))
            try session.deleteRoute(Route(gone, table: 1, type: 0, origin: 0))
            try session.replaceRoute(
                Route(try #require(CIDR("10.48.3.0/26")), index: index, table: 1, origin: RouteSteering.origin))
            try session.replaceRoute(
                Route(try #require(CIDR("10.48.9.0/26")), table: 1, type: 9, origin: RouteSteering.origin))
            try FirewallTable(FirewallInspection.ownTable).remove()
            #expect(try steering.apply(plan).isEmpty, "between two looks nobody knows")
            #expect(try Self.table(session, 1) != wanted)
            steering.resync()
            #expect(try steering.apply(plan).isEmpty)
            #expect(try Self.table(session, 1) == wanted)
            #expect(try Self.rules(session) == rules)
            #expect(try session.rules(.ipv4).allSatisfy { $0.priority != 50 })
            #expect(
                try FirewallTable(FirewallInspection.ownTable).present()?.keys.sorted() == [
                    "input", "output", "postrouting",
                ])
        }
    }

    @Test("priority, mark and table change without a moment between")
    func changes() throws {
        try alone { session, index in
            var steering = try RouteSteering(stateFolder: Self.folder)
            _ = try steering.apply(try Self.plan(index))
            _ = try steering.apply(try Self.plan(index, priority: 150))
            #expect(try Self.rules(session).map(\.priority) == [150, 150])
            // While the mark changes, packets with the one before go on.
            var plan = try Self.plan(index, priority: 150, mark: 0x1000_0000)
            plan.config.oldFirewallMark = 0x2000_0000
            _ = try steering.apply(plan)
            let both = try Self.rules(session).filter { $0.family == .ipv4 }
            #expect(both.map(\.priority) == [149, 150] && both.map(\.table) == [254, 1])
            #expect(both.map(\.mark) == [0x2000_0000, 0x1000_0000])
            plan.config.oldFirewallMark = 0
            plan.routing?.tables = [7...9]
            // Somebody else's table is not ours to take.
            try session.replaceRoute(Route(try #require(CIDR("192.0.2.0/24")), index: index, table: 7))
            _ = try steering.apply(plan)
            #expect(steering.table == 8)
            #expect(try Self.table(session, 1).isEmpty && Self.table(session, 8).count == 6)
            #expect(
                try Self.rules(session).allSatisfy { $0.table == 8 && $0.mark == 0x1000_0000 && $0.priority == 150 })
            #expect(try Self.table(session, 7).count == 1)
            // No table is free: said, and nothing is broken.
            plan.routing?.tables = [7...7]
            let problems = try steering.apply(plan)
            #expect(problems.contains { $0.field == "spec.routeTableRanges" }, "\(problems)")
        }
    }

    @Test("strict: what is promised and not carried leads nowhere, nodes' own addresses and exempt ones on")
    func strict() throws {
        try alone { session, index in
            var steering = try RouteSteering(stateFolder: Self.folder)
            var plan = try Self.plan(index, isStrict: true)
            let node = PeerSlotKey(node: "node3", family: .ipv4)
            let address = try #require(IPAddress("10.0.0.3"))
            plan.peers[node]?.endpoints = [Endpoint(address: address, port: 51820)]
            plan.routes[CIDR(host: address)] = .peer(node)
            _ = try steering.apply(plan)
            var table = try Self.table(session, 1)
            #expect(table["10.48.0.0/16"] == 6 && table["10.48.3.0/26"] == 6 && table["10.48.2.0/26"] == 1)
            #expect(table["10.0.0.3/32"] == 9)
            plan.peers[node]?.action = .exempt
            _ = try steering.apply(plan)
            table = try Self.table(session, 1)
            #expect(table["10.48.3.0/26"] == 9)
        }
    }
}
