// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Foundation
import Model
import Netlink
import SystemDescriptors
import Testing

/// The kernel's interfaces in a namespace of their own.
@Suite("Kernel interfaces", .serialized)
struct KernelInterfaceTests {
    /// Runs a body in a new network namespace, which goes with it.
    static func inNamespace<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
        try inNewNetworkNamespace(body)
    }

    @Test("links, addresses, routes, rules and neighbours: made, read back, taken away")
    func rtnetlink() throws {
        try Self.inNamespace {
            let session = try RouteSession()
            try session.createVethPair(
                "left", mtu: 1400, hardwareAddress: [2, 0, 0, 0, 0, 7], peer: "right", peerMTU: 1300)
            let left = try #require(try session.link(named: "left"))
            #expect(
                left.kind == "veth" && left.mtu == 1400 && !left.isUp && left.hardwareAddress == [2, 0, 0, 0, 0, 7])
            #expect(try session.link(named: "right")?.mtu == 1300)
            #expect(try session.link(named: "nobody") == nil)
            try session.setLink(left.index, up: true, mtu: 1350)
            #expect(try session.link(named: "left")?.mtu == 1350)
            for (text, length, next) in [("10.9.0.1", 24, "10.9.0.7"), ("fd09::1", 64, "fd09::7")] {
                let address = try #require(IPAddress(text))
                let gateway = try #require(IPAddress(next))
                try session.addAddress(address, prefixLength: length, index: left.index)
                try session.addAddress(address, prefixLength: length, index: left.index)
                #expect(
                    try session.addresses().filter { $0.address == address && $0.prefixLength == length }.count == 1)
                let prefix = try #require(CIDR(address.family == .ipv4 ? "10.77.0.0/16" : "fd77::/32"))
                try session.replaceRoute(Route(prefix, index: left.index, gateway: gateway))
                try session.replaceRoute(Route(prefix, table: 100, type: 9))
                let routes = try session.routes(address.family).filter { $0.destination == prefix }
                #expect(Set(routes.map(\.table)) == [254, 100])
                #expect(routes.first { $0.table == 254 }?.gateway == gateway)
                try session.deleteRoute(Route(prefix, index: left.index, gateway: gateway))
                try session.deleteRoute(Route(prefix, index: left.index, gateway: gateway))
                try session.replaceNeighbour(gateway, index: left.index, hardwareAddress: [2, 0, 0, 0, 0, 9])
                let found = try session.neighbours(address.family).first { $0.address == gateway }
                #expect(found?.hardwareAddress == [2, 0, 0, 0, 0, 9] && found?.index == left.index)
                try session.deleteAddress(address, prefixLength: length, index: left.index)
                try session.deleteAddress(address, prefixLength: length, index: left.index)
                #expect(try session.rules(address.family).first?.priority == 0)
            }
            try session.deleteLink(named: "left")
            try session.deleteLink(named: "left")
            #expect(try session.link(named: "right") == nil)
        }
    }

    @Test("the kernel's refusal is told in its words")
    func refusal() throws {
        let text = try Self.inNamespace {
            let session = try RouteSession()
            let error = #expect(throws: NetlinkError.self) { try session.createLink(named: "x", kind: "no-such-kind") }
            let again = #expect(throws: NetlinkError.self) { try session.setLink(4711, up: true) }
            return "\(String(describing: error)) \(String(describing: again))"
        }
        #expect(text.contains("create no-such-kind device x") && text.contains("Unknown device type"), "\(text)")
        #expect(text.contains("No such device"))
    }

    @Test("changes are told; what is queued is one tick")
    func events() async throws {
        let files = NamespaceFiles(network: "/tmp/wgplane-ns-\(UUID().uuidString)")
        defer { files.remove() }
        try files.create {}
        let events = try files.run { try NetlinkEvents(groups: NetlinkEvents.nodeGroups) }
        var ticks = events.ticks.makeAsyncIterator()
        _ = await ticks.next()
        try files.run {
            let session = try RouteSession()
            for number in 0..<20 { try session.createLink(named: "d\(number)", kind: "bridge") }
        }
        _ = await ticks.next()
        events.drain()
        try files.run { try RouteSession().deleteLink(named: "d1") }
        #expect(await ticks.next() != nil)
    }

    @Test("maps: single, batch, iteration while entries go, per CPU; another layout is refused by name")
    func maps() throws {
        let layout = PinLayout(root: "/sys/fs/bpf/wgplane-test-\(getpid())-maps")
        defer { try? layout.remove() }
        try layout.create()
        let programs = try DataplanePrograms(layout)
        #expect(programs.all.count == 5)
        let map = try BPFMap<UInt32, UInt32>(pinned: layout.map("route_addresses4"), name: "route_addresses4")
        for number in UInt32(0)..<10_000 { try map.update(number, number &* 3) }
        #expect(try map.lookup(77) == 231 && map.lookup(10_000) == nil)
        #expect(throws: BPFError.self) { try map.update(77, 1, flags: 1) }
        let entries = try map.entries()
        #expect(entries.count == 10_000 && entries.filter { $0.value != $0.key &* 3 }.isEmpty)
        #expect(try Set(map.keys()).count == 10_000)
        #expect(try map.lookupAndDelete(77) == 231 && map.lookupAndDelete(77) == nil)
        #expect(try !map.delete(77) && map.delete(78))
        // Others delete while we look: what stays is told, and once.
        let going = Task.detached {
            for number in stride(from: UInt32(0), to: 10_000, by: 2) { _ = try map.delete(number) }
        }
        let keys = try map.keys()
        _ = going
        #expect(Set(keys).count == keys.count && Set(keys).isSuperset(of: stride(from: 101, to: 10_000, by: 2)))
        let counters = try BPFMap<UInt32, UInt128>(pinned: layout.map("counters"), name: "counters")
        #expect(try counters.lookupPerCPU(0)?.count == possibleCPUs)
        let error = #expect(throws: BPFError.self) {
            _ = try BPFMap<UInt64, UInt64>(pinned: layout.map("route_addresses4"), name: "route_addresses4")
        }
        #expect("\(String(describing: error))".contains("map route_addresses4 has another layout"))
        let missing = #expect(throws: BPFError.self) { _ = try NodeMaps(PinLayout(root: "/sys/fs/bpf/nowhere")) }
        #expect("\(String(describing: missing))".contains("/sys/fs/bpf/nowhere"))
    }

    @Test("a second agent's start adopts the maps as they are")
    func adoption() throws {
        let layout = PinLayout(root: "/sys/fs/bpf/wgplane-test-\(getpid())-adopt")
        defer { try? layout.remove() }
        try layout.create()
        _ = try DataplanePrograms(layout)
        let first = try NodeMaps(layout)
        let prefix = try #require(CIDR("10.1.0.0/16"))
        try first.routes.update(prefix, slot: 9)
        first.destinations.setAction(9, .tunnel)
        first.destinations.raiseGeneration(9)
        _ = try DataplanePrograms(layout)
        let second = try NodeMaps(layout)
        #expect(try second.routes.entries() == [prefix: 9])
        #expect(second.destinations[9].action == .tunnel && second.destinations[9].generation == 1)
    }
}
