// SPDX-License-Identifier: Apache-2.0

import BPF
import CBenchmark
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import Netlink
import Synchronization
import SystemDescriptors
import WireGuard

/// From pod to pod through the tunnel, beside the same two hosts joined by hand.
struct TunnelBenchmark: Benchmark {
    static let name = "tunnel"
    static let text = "throughput, packets and latency from pod to pod, beside the same hosts joined with wg and routes"

    private static func device(_ family: AddressFamily) -> (name: String, port: UInt16) {
        family == .ipv4 ? ("wghand4", 51900) : ("wghand6", 51901)
    }

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        try await AgentRig.with(context, families: [.ipv4, .ipv6]) { rig in
            let yardsticks = try YardstickPrograms("tunnel")
            defer { yardsticks.remove() }
            // Both sides' wireguard-go alike: the kernel's WireGuard would not wait behind who sends and receives.
            let precedence = Task { await Precedence.keep(rig.lab) }
            defer { precedence.cancel() }
            var measured: [String: [String: [Double]]] = [:]
            for round in 0...context.effort.pick(10, quick: 2) {
                for way in round % 2 == 0 ? ["agent", "hand"] : ["hand", "agent"] {
                    let values =
                        try await way == "agent"
                        ? measure(rig, yardsticks, context)
                        : joined(rig) { try await measure(rig, yardsticks, context) }
                    guard round > 0 else { continue }
                    for (name, value) in values { measured[name, default: [:]][way, default: []].append(value) }
                }
            }
            let cases: [(String, String, Goal)] = [
                ("TCP stream", "Mbit/s", .ratioAtLeast(0.98)),
                ("UDP of 64 B, arrived", "packets/s", .ratioAtLeast(0.98)),
                ("TCP request and answer", "µs", .ratioAtMost(1.02)),
            ]
            return try cases.flatMap { text, unit, goal in
                try AddressFamily.allCases.map { family in
                    let values = measured["\(text) \(family)"] ?? [:]
                    return try Result(
                        name, "\(context.wireguard), \(family): \(text)", values["agent"] ?? [], unit,
                        yardstick: ("joined by hand", values["hand"] ?? []), goal: goal)
                }
            }
        }
    }

    // MARK: The hosts joined by hand

    /// Switches the agents off, joins the hosts as wg(8) and ip(8) would, runs a body, and switches them on again.
    private static func joined<Value>(_ rig: AgentRig, _ body: () async throws -> Value) async throws -> Value {
        try await rig.encrypt(false)
        let keys = [PrivateKey.generate(), PrivateKey.generate()]
        for number in 1...2 {
            let other = 3 - number
            guard let peer = keys[other - 1].publicKey else { throw BenchmarkError("no key") }
            let own = keys[number - 1]
            let kind: BackendKind = rig.wireguard == "kernel" ? .kernel : .userspace
            try await Task.detachedThread {
                try rig.lab.place("node\(number)").run {
                    let backend = try BackendSelection.backend(kind)
                    let session = try RouteSession()
                    // A device for each family, over the underlay of that family, as the agent has them.
                    for family in AddressFamily.allCases {
                        let (name, port) = device(family)
                        try backend.create(device: name, mtu: 1420)
                        var change = PeerChange(peer)
                        change.endpoint = Endpoint(address: LabAddresses.node(other, family), port: port)
                        let pod = CIDR(host: LabAddresses.pod(other, 1, family))
                        change.allowedIPs = [pod]
                        try backend.apply(
                            DeviceChange(privateKey: own, listeningPort: port, peers: [change]), to: name)
                        guard let link = try session.link(named: name) else { throw BenchmarkError("no device") }
                        try session.setLink(link.index, up: true)
                        try session.replaceRoute(Route(pod, index: link.index))
                    }
                }
            }
        }
        let value: Value
        do {
            value = try await body()
        } catch {
            try? await rig.encrypt(true)
            throw error
        }
        for number in 1...2 {
            try await Task.detachedThread {
                try rig.lab.place("node\(number)").run {
                    for family in AddressFamily.allCases { try BackendSelection.delete(device: device(family).name) }
                }
            }
        }
        try await rig.encrypt(true)
        return value
    }

    // MARK: Loads

    private static func measure(_ rig: AgentRig, _ yardsticks: YardstickPrograms, _ context: BenchmarkContext)
        async throws -> [String: Double]
    {
        var values: [String: Double] = [:]
        let nanoseconds = UInt64(context.effort.pick(1500, quick: 1000)) * 1_000_000
        for family in AddressFamily.allCases {
            values["TCP stream \(family)"] = try await conversation(rig, family) {
                wgb_stream_receive($0)
            } sending: {
                wgb_stream_send($0, 128 << 10, nanoseconds)
            }.map { server, _ in Double(server.count) * 8e3 / Double(max(1, server.nanoseconds)) }
            let count = UInt64(context.effort.pick(3000, quick: 500))
            let times = Mutex<[UInt64]>([])
            _ = try await conversation(rig, family) {
                wgb_pong($0)
            } sending: { socket in
                var all = [UInt64](repeating: 0, count: Int(count))
                let result = wgb_ping(socket, count, &all)
                times.withLock { $0 = Array(all.prefix(Int(result.count))) }
                return result
            }.get()
            values["TCP request and answer \(family)"] = Figure.median(times.withLock { $0.map { Double($0) / 1e3 } })
            values["UDP of 64 B, arrived \(family)"] = try await datagrams(rig, family, yardsticks, nanoseconds)
        }
        return values
    }

    struct Conversation: Sendable {
        var server: wgb_result
        var client: wgb_result

        func get() throws -> (wgb_result, wgb_result) {
            for side in [client, server] where side.error != 0 {
                throw BenchmarkError("the conversation failed: errno \(side.error)")
            }
            guard server.count > 0 else { throw BenchmarkError("nothing came of the conversation") }
            return (server, client)
        }

        func map(_ body: (wgb_result, wgb_result) -> Double) throws -> Double {
            let (server, client) = try get()
            return body(server, client)
        }
    }

    /// A TCP connection from node1's pod to node2's.
    private static func conversation(
        _ rig: AgentRig, _ family: AddressFamily, _ serve: @escaping @Sendable (Int32) -> wgb_result,
        sending: @escaping @Sendable (Int32) -> wgb_result
    ) async throws -> Conversation {
        let isIPv6: Int32 = family == .ipv6 ? 1 : 0
        let (from, to) = (try rig.lab.place("node1-pod1"), try rig.lab.place("node2-pod1"))
        let address = LabAddresses.pod(2, 1, family).bytes
        let listener = try await Task.detachedThread { try to.run { wgb_tcp_listen(isIPv6) } }
        guard listener >= 0 else { throw BenchmarkError("cannot listen: errno \(-listener)") }
        defer { close(listener) }
        async let server = Task.detachedThread {
            let socket = wgb_tcp_accept(listener)
            guard socket >= 0 else { throw BenchmarkError("nobody came: errno \(-socket)") }
            defer { close(socket) }
            return serve(socket)
        }
        let client = try await Task.detachedThread {
            try from.run {
                let socket = wgb_tcp_connect(isIPv6, address)
                guard socket >= 0 else { throw BenchmarkError("cannot connect: errno \(-socket)") }
                defer { close(socket) }
                return sending(socket)
            }
        }
        return Conversation(server: try await server, client: client)
    }

    /// Datagrams a second that arrive at the pod, of as many as can be sent.
    private static func datagrams(
        _ rig: AgentRig, _ family: AddressFamily, _ yardsticks: YardstickPrograms, _ nanoseconds: UInt64
    ) async throws -> Double {
        let isIPv6: Int32 = family == .ipv6 ? 1 : 0
        let (from, to) = (try rig.lab.place("node1-pod1"), try rig.lab.place("node2-pod1"))
        let address = LabAddresses.pod(2, 1, family).bytes
        let payload: UInt32 = family == .ipv4 ? 36 : 16
        let pin = "\(yardsticks.layout.links)/sink"
        let program = try yardsticks.sink(isEthernet: true)
        return try await Task.detachedThread {
            try to.run {
                let index = try RouteSession().link(named: "eth0")?.index ?? 0
                let attachment = Attachment(
                    interface: index, direction: .ingress, mechanism: AttachmentMechanism.probe())
                try attachment.attach(program, pin: pin)
                defer { try? attachment.detach(pin: pin) }
                let before = try yardsticks.counted().packets
                let result = try from.run {
                    let socket = wgb_udp_socket(isIPv6, 0)
                    guard socket >= 0 else { throw BenchmarkError("no socket: errno \(-socket)") }
                    defer { close(socket) }
                    return wgb_udp_send(socket, isIPv6, address, 1, payload, .max, nanoseconds)
                }
                if result.error != 0 { throw BenchmarkError("cannot send: errno \(result.error)") }
                // What is under way arrives within a moment.
                var arrived: UInt64 = 0
                while true {
                    let now = try yardsticks.counted().packets - before
                    if now == arrived, now > 0 { break }
                    arrived = now
                    sleepMicroseconds(20_000)
                    if now == 0, try yardsticks.counted().packets == before { break }
                }
                guard arrived > 0 else { throw BenchmarkError("\(family): no datagram arrived") }
                return Double(arrived) * 1e9 / Double(result.nanoseconds)
            }
        }
    }
}
