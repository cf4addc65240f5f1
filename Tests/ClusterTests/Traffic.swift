// SPDX-License-Identifier: Apache-2.0

import Agent
import Foundation
import Lab
import Model
import Netlink
import SystemDescriptors
import Testing

/// What this kernel can, found by trying.
enum KernelTraits {
    /// tc can drop one packet of so many (cls_matchall and act_gact).
    static var hasTap: Bool {
        (try? inNewNetworkNamespace {
            let commands = [
                "ip link set lo up", "tc qdisc add dev lo clsact",
                "tc filter add dev lo egress matchall action gact pass random determ drop 100",
            ]
            return try commands.allSatisfy {
                let words = $0.split(separator: " ").map(String.init)
                return try ProgramLaunch(words, environment: currentEnvironment(), ownSession: false).run() == 0
            }
        }) ?? false
    }

    /// A virtual machine's that goes with the tests.
    static var ownsClock: Bool { ProcessInfo.processInfo.environment["WGPLANE_OWN_MACHINE"] == "1" }

    /// A device can be renamed while it is up (Linux 6.2).
    static var renamesLive: Bool {
        (try? inNewNetworkNamespace {
            let session = try RouteSession()
            try session.createLink(named: "probe", kind: "bridge")
            guard let link = try session.link(named: "probe") else { return false }
            try session.setLink(link.index, up: true)
            try session.setLink(link.index, name: "renamed")
            return true
        }) ?? false
    }
}

/// What a starved wireguard-go has let overflow on the nodes, as the kernel counts it: datagrams in its sockets'
/// buffers, packets in its devices' queues. The kernel's WireGuard has neither.
func userspaceOverflows(_ lab: Lab) async throws -> Int {
    var sum = 0
    for node in lab.nodeNames() where lab.status(node)?.backend == "userspace" {
        let text = try await Cluster.execute(lab, node, ["cat", "/proc/net/snmp", "/proc/net/snmp6"]).output
        let lines = text.split(separator: "\n").map { $0.split(whereSeparator: \.isWhitespace) }
        let udp = lines.filter { $0.first == "Udp:" }
        if udp.count == 2, let column = udp[0].firstIndex(of: "RcvbufErrors") { sum += Int(udp[1][column]) ?? 0 }
        if let line = lines.first(where: { $0.first == "Udp6RcvbufErrors" }) { sum += Int(line[1]) ?? 0 }
        for device in ["wireguard.cali", "wg-v6.cali", "wg0"] {
            let path = "/sys/class/net/\(device)/statistics/tx_dropped"
            let count = try await Cluster.execute(lab, node, ["cat", path])
            if count.status == 0 { sum += Int(count.output.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 0 }
        }
    }
    return sum
}

/// No datagram is missing but those that a wireguard-go that got no processor has let overflow.
func expectNoLoss(_ result: Traffic.Result, _ lab: Lab) async throws {
    let overflows = try await userspaceOverflows(lab)
    let lost = result.datagrams.reduce(0) { $0 + $1.report.lost }
    let missing = result.datagrams.filter { $0.report.lost > 0 }.map { "\($0.name): \($0.report.missing)" }
    #expect(lost <= overflows, "\(result.summary); \(overflows) overflows of wireguard-go; \(missing)")
}

/// Numbered datagrams and streams between all pods of a lab, until stopped.
final class Traffic: Sendable {
    struct Result: Sendable {
        var datagrams: [(name: String, report: LossReport)]
        var streams: [(name: String, report: StreamReport)]
        var summary: String {
            let sent = datagrams.reduce(0) { $0 + $1.report.sent }
            let lost = datagrams.reduce(0) { $0 + $1.report.lost }
            let gap = datagrams.map(\.report.longestGap).max() ?? 0
            let bytes = streams.reduce(0) { $0 + $1.report.returned }
            return
                "\(sent) datagrams of \(datagrams.count) probes, \(lost) lost, longest gap \(Int(gap)) ms; \(bytes) bytes of \(streams.count) streams"
        }
    }

    private let servers: [EchoServer]
    private let probes: [(name: String, probe: LossProbe)]
    private let streams: [(name: String, probe: StreamProbe)]

    private init(servers: [EchoServer], probes: [(String, LossProbe)], streams: [(String, StreamProbe)]) {
        self.servers = servers
        self.probes = probes.map { (name: $0.0, probe: $0.1) }
        self.streams = streams.map { (name: $0.0, probe: $0.1) }
    }

    /// `interval` of each probe in microseconds.
    static func start(_ lab: Lab, interval: UInt32) async throws -> Traffic {
        let pods = await lab.state.pods
        let interval = interval * UInt32(Lab.patience)
        return try await Task.detachedThread {
            let servers = try pods.map {
                try EchoServer(
                    in: lab.place($0.name), port: Prober.port, isIPv6: lab.spec.families.map { $0 == .ipv6 })
            }
            var probes: [(String, LossProbe)] = []
            var streams: [(String, StreamProbe)] = []
            for source in pods {
                for target in pods where target.node != source.node {
                    for address in target.addresses {
                        let name = "\(source.name) to \(target.name) \(address.family)"
                        let place = try lab.place(source.name)
                        probes.append((name, try LossProbe(in: place, to: address.bytes, interval: interval)))
                        streams.append((name, try StreamProbe(in: place, to: address.bytes, interval: interval)))
                    }
                }
            }
            return Traffic(servers: servers, probes: probes, streams: streams)
        }
    }

    /// Datagrams without an answer yet.
    func missing() -> Int { probes.reduce(0) { $0 + $1.probe.report.lost } }

    /// Waits until each probe has sent some more.
    func goesOn(_ lab: Lab) async throws {
        let sent = probes.map(\.probe.sent)
        try await lab.wait("traffic goes on") { zip(probes, sent).allSatisfy { $0.probe.sent > $1 + 20 } }
    }

    func stop() async -> Result {
        let (probes, streams, servers) = (probes, streams, servers)
        let result = try? await Task.detachedThread {
            let datagrams = probes.map { (name: $0.name, report: $0.probe.stop()) }
            let carried = streams.map { (name: $0.name, report: $0.probe.stop()) }
            for server in servers { server.stop() }
            return Result(datagrams: datagrams, streams: carried)
        }
        return result ?? Result(datagrams: [], streams: [])
    }
}
