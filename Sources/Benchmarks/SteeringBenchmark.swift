// SPDX-License-Identifier: Apache-2.0

import CBenchmark
import Foundation
import Model
import SystemDescriptors

/// What a load is made of.
struct Load: Hashable, Sendable {
    enum Direction: Hashable, Sendable { case toTunnel, fromTunnel }
    var family: AddressFamily
    var direction: Direction
    /// Of the IP packet.
    var size: Int
    /// How many such packets the kernel carries as one; 1: no GSO.
    var segments = 1
    /// How many destinations, in turn.
    var targets = 1

    var text: String {
        let way = direction == .toTunnel ? "pod to tunnel" : "tunnel to pod"
        return "\(family), \(way), \(size) B" + (segments > 1 ? ", GSO of \(segments)" : "")
    }

    private var headers: Int { family == .ipv4 ? 28 : 48 }
    var payload: Int { size - headers }
    /// What a packet's UDP payload is when many are one.
    var buffer: Int { payload * segments }
}

/// A load on the rig, whose packets are counted where they end.
struct LoadRunner {
    let rig: SteeringRig

    /// Nanoseconds a packet on one processor, by the clock, while nothing else is to run there. Throws when packets are lost.
    func cost(_ load: Load, _ mode: SteeringRig.Mode, _ cluster: SteeringRig.Cluster, count: Int) throws -> Double {
        try rig.enter(mode, cluster)
        _ = try run(load, cluster, count: max(64, count / 20))
        // The least of many short runs: the machine is not quiet for long.
        return try rig.gauge.least(of: 12) { try run(load, cluster, count: count / 20) }
    }

    private func run(_ load: Load, _ cluster: SteeringRig.Cluster, count: Int) throws -> Double {
        let before = try rig.yardsticks.counted()
        let result = load.direction == .toTunnel ? try send(load, cluster, count) : try receive(load, count)
        guard result.error == 0 else { throw BenchmarkError("\(load.text): errno \(result.error)") }
        let sent = Int(result.count) * load.segments
        var arrived = 0
        // What is under way arrives within a moment.
        for _ in 0..<50 {
            arrived = Int(try rig.yardsticks.counted().packets - before.packets)
            if arrived >= sent { break }
            sleepMicroseconds(1000)
        }
        guard Double(arrived) >= Double(sent) * 0.999 else {
            throw BenchmarkError("\(load.text): \(sent) packets were sent and \(arrived) arrived")
        }
        return Double(result.nanoseconds) / Double(arrived)
    }

    private func send(_ load: Load, _ cluster: SteeringRig.Cluster, _ count: Int) throws -> wgb_result {
        // All over the cluster: as many flows, whatever its size.
        let addresses = (0..<load.targets).flatMap { number in
            if cluster.pods > 0 {
                return SteeringRig.farPod(load.family, number * (cluster.pods / load.targets)).bytes
            }
            let node = 1 + number * max(1, cluster.nodes / load.targets) % cluster.nodes
            return SteeringRig.address(load.family, node, UInt128(9 + number / cluster.nodes)).bytes
        }
        let isIPv6: Int32 = load.family == .ipv6 ? 1 : 0
        return try SteeringRig.pod.run {
            try SteeringRig.pin()
            let socket = wgb_udp_socket(isIPv6, load.segments > 1 ? UInt16(load.payload) : 0)
            guard socket >= 0 else { throw BenchmarkError("no socket: errno \(-socket)") }
            defer { close(socket) }
            return wgb_udp_send(
                socket, isIPv6, addresses, load.targets, UInt32(load.buffer), UInt64(count / load.segments), 0)
        }
    }

    private func receive(_ load: Load, _ count: Int) throws -> wgb_result {
        let packet = Self.packet(
            SteeringRig.address(load.family, 1, 9), SteeringRig.podAddress(load.family), payload: load.buffer,
            isPartial: load.segments > 1)
        let tun = rig.tun
        return try SteeringRig.node.run {
            try SteeringRig.pin()
            return wgb_tun_receive(
                tun, packet, packet.count, load.segments > 1 ? UInt16(load.payload) : 0,
                load.family == .ipv4 ? 20 : 40, UInt64(count / load.segments))
        }
    }

    /// An IP packet with UDP; `isPartial`: of the checksum only the pseudo header, as offloads want it.
    private static func packet(
        _ source: IPAddress, _ destination: IPAddress, payload: Int, isPartial: Bool
    ) -> [UInt8] {
        func word(_ value: Int) -> [UInt8] { [UInt8(value >> 8 & 255), UInt8(value & 255)] }
        var segment = word(40000) + word(9999) + word(8 + payload) + [0, 0] + [UInt8](repeating: 0, count: payload)
        let pseudo = source.bytes + destination.bytes + [0, 0] + word(segment.count) + [0, 17]
        let sum = internetChecksum(isPartial ? pseudo : pseudo + segment)
        segment.replaceSubrange(6..<8, with: word(Int(isPartial ? ~sum : sum)))
        if source.family == .ipv6 {
            return [0x60, 0, 0, 0] + word(segment.count) + [17, 64] + source.bytes + destination.bytes + segment
        }
        var header = [0x45, 0] + word(20 + segment.count) + [0, 1, 0x40, 0, 64, 17, 0, 0] + source.bytes
        header += destination.bytes
        header.replaceSubrange(10..<12, with: word(Int(internetChecksum(header))))
        return header + segment
    }
}

/// Packets of a pod through the node into the tunnel's device, and back, beside route mode and plain forwarding.
struct SteeringBenchmark: Benchmark {
    static let name = "steering"
    static let text = "time a packet of one processor between a pod and the tunnel's device, without the sender's own"

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        try await Task.detachedThread {
            try SteeringRig.with { rig in
                let runner = LoadRunner(rig: rig)
                return try modes(runner, context) + sizes(runner, context)
            }
        }
    }

    private static func loads(_ family: AddressFamily) -> [Load] {
        [Load.Direction.toTunnel, .fromTunnel].flatMap { direction in
            [
                Load(family: family, direction: direction, size: 64),
                Load(family: family, direction: direction, size: 1400),
                Load(family: family, direction: direction, size: 1400, segments: 40),
            ]
        }
    }

    private static func modes(_ runner: LoadRunner, _ context: BenchmarkContext) throws -> [Result] {
        var results: [Result] = []
        let cluster = SteeringRig.Cluster(nodes: 100)
        for load in AddressFamily.allCases.flatMap(loads) {
            let count = context.effort.pick(load.segments > 1 ? 2_000_000 : 400_000, quick: 100_000)
            var turns = Alternation()
            for mode in [SteeringRig.Mode.sender, .plain, .route, .ebpf] {
                turns.add("\(mode)") { try runner.cost(load, mode, cluster, count: count) }
            }
            let values = try turns.run(repeats: context.effort.repeats)
            func rate(_ mode: SteeringRig.Mode) throws -> [Double] {
                try values.net("\(mode)", less: "sender").map { 1e3 / $0 }
            }
            results.append(
                try Result(
                    name, load.text, try rate(.ebpf), "Mpackets/CPU-s", yardstick: ("route mode", try rate(.route)),
                    goal: .ratioAtLeast(2)))
            results.append(
                try Result(
                    name, load.text + ", beside no encryption", try rate(.ebpf), "Mpackets/CPU-s",
                    yardstick: ("plain forwarding, unencrypted", try rate(.plain))))
            results.append(
                try Result(
                    name, load.text + ", with the sender", (values["\(SteeringRig.Mode.ebpf)"] ?? []).map { 1e3 / $0 },
                    "Mpackets/s",
                    yardstick: ("route mode", (values["\(SteeringRig.Mode.route)"] ?? []).map { 1e3 / $0 })))
        }
        return results
    }

    /// The cost does not grow with the cluster.
    private static func sizes(_ runner: LoadRunner, _ context: BenchmarkContext) throws -> [Result] {
        var results: [Result] = []
        for family in AddressFamily.allCases {
            // A block has no room for many more.
            let load = Load(family: family, direction: .toTunnel, size: 64, targets: 32)
            let clusters = [
                SteeringRig.Cluster(nodes: 1), .init(nodes: 100), .init(nodes: 5000), .init(nodes: 5000, pods: 100_000),
            ]
            let count = context.effort.pick(400_000, quick: 100_000)
            var turns = Alternation()
            turns.add("sender") { try runner.cost(load, .sender, clusters[0], count: count) }
            for cluster in clusters {
                turns.add("\(cluster)") { try runner.cost(load, .ebpf, cluster, count: count) }
            }
            let values = try turns.run(repeats: context.effort.repeats)
            for cluster in clusters.dropFirst() {
                let pods = cluster.pods > 0 ? ", 100,000 pods' addresses" : ""
                results.append(
                    try Result(
                        name, "\(load.text), 32 flows, \(cluster.nodes) nodes\(pods)",
                        try values.net("\(cluster)", less: "sender"),
                        "ns",
                        yardstick: ("one node", try values.net("\(clusters[0])", less: "sender")),
                        goal: .ratioAtMost(1.1)))
            }
        }
        return results
    }
}

/// What counting flows adds to steering.
struct AccountingBenchmark: Benchmark {
    static let name = "accounting"
    static let text = "steering with the counters of flows, and without; events off"

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        try await Task.detachedThread {
            try SteeringRig.with { rig in
                let runner = LoadRunner(rig: rig)
                let cluster = SteeringRig.Cluster(nodes: 100)
                return try AddressFamily.allCases.map { family in
                    let load = Load(family: family, direction: .toTunnel, size: 64, targets: 64)
                    let count = context.effort.pick(400_000, quick: 100_000)
                    var turns = Alternation()
                    for mode in [SteeringRig.Mode.sender, .ebpf, .uncounted] {
                        turns.add("\(mode)") { try runner.cost(load, mode, cluster, count: count) }
                    }
                    let values = try turns.run(repeats: context.effort.repeats)
                    return try Result(
                        name, "\(load.text), 64 flows", try values.net("ebpf", less: "sender"), "ns",
                        yardstick: ("without", try values.net("uncounted", less: "sender")),
                        goal: .ratioAtMost(1.1))
                }
            }
        }
    }
}
