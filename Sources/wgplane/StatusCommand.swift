// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import DataplaneMaps
import Foundation
import Model
import WireGuard

struct StatusCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Shows this node's devices, peers, steering, counters and problems.",
        usage: "wgplane status [options]",
        discussion: "Reads the kernel and the agent's last report: works with the agent dead, and says so.")

    @OptionGroup var source: ViewOptions
    @OptionGroup var output: OutputOptions
    @Flag(help: "Only tell by the exit status whether an agent runs and has its datastore's word.") var ready = false
    @Flag(help: "Only tell by the exit status whether an agent runs.") var live = false

    /// The JSON form; `schema` 1.
    struct Answer: Encodable {
        struct Peer: Encodable {
            var node: String?
            var publicKey: PublicKey
            var endpoint: String?
            var allowedIPs: [CIDR]
            var latestHandshake: Int64?
            var receivedBytes: UInt64
            var sentBytes: UInt64
            var persistentKeepalive: UInt16
            var state: String?
            var action: String?
        }

        struct Device: Encodable {
            var name: String
            var family: String
            var publicKey: PublicKey?
            var address: IPAddress?
            var listeningPort: UInt16
            var firewallMark: UInt32
            var mtu: UInt32
            var peers: [Peer]
        }

        struct Counter: Encodable {
            var reason: String
            var hook: String
            var packets: UInt64
            var bytes: UInt64
            var isDrop: Bool
        }

        var schema = 1
        var node: String
        var agentRunning: Bool
        var report: StatusReport
        var devices: [Device]
        var counters: [Counter]
    }

    func run() async throws {
        let view = try source.view()
        if ready || live { return try probe(view) }
        let answer = try answer(view)
        if try Output.structured(answer, output.format) { return }
        if view.isArchive { print("as of \(view.date.formatted(.iso8601))") }
        printTable(answer, at: view.date)
    }

    /// For the probes of a pod or unit.
    private func probe(_ view: NodeView) throws {
        let node = source.node.options.node
        guard view.isAgentRunning else {
            throw ProblemsError(
                Problem(resource: "Agent", field: "node", value: node, message: "does not run", remedy: "see its log"))
        }
        guard ready else { return }
        let report = try view.report()
        let state = report.datastoreState
        // Away later is no reason to take a node out of service: its data plane goes on.
        guard state != "waiting", !report.routeSource.isEmpty else {
            throw ProblemsError(
                Problem(
                    resource: "Agent", field: "datastore", value: state, message: "has heard nothing yet",
                    remedy: "see `wgplane status`"))
        }
    }

    private func answer(_ view: NodeView) throws -> Answer {
        let report = try view.report()
        var devices: [Answer.Device] = []
        for family in AddressFamily.allCases {
            guard let told = report[family], let (_, state) = try view.device(told.device) else { continue }
            let byKey = Dictionary(told.peers.map { ($0.publicKey, $0) }, uniquingKeysWith: { first, _ in first })
            let peers = state.peers.map { key, peer in
                Answer.Peer(
                    node: byKey[key]?.node, publicKey: key, endpoint: peer.endpoint?.description,
                    allowedIPs: peer.allowedIPs.sorted(), latestHandshake: peer.lastHandshake,
                    receivedBytes: peer.receivedBytes, sentBytes: peer.sentBytes, persistentKeepalive: peer.keepAlive,
                    state: byKey[key]?.state, action: byKey[key]?.action)
            }
            devices.append(
                Answer.Device(
                    name: told.device, family: family.description, publicKey: state.publicKey, address: told.address,
                    listeningPort: state.listeningPort, firewallMark: state.firewallMark, mtu: told.mtu,
                    peers: peers.sorted { ($0.node ?? "~", $0.publicKey) < ($1.node ?? "~", $1.publicKey) }))
        }
        let counters = (try? view.maps().counters.readAll()) ?? []
        return Answer(
            node: report.node, agentRunning: view.isAgentRunning, report: report, devices: devices,
            counters: counters.map {
                .init(
                    reason: $0.reason.name, hook: $0.hook.name, packets: $0.value.packets, bytes: $0.value.bytes,
                    isDrop: $0.reason.isDrop)
            })
    }

    private func printTable(_ answer: Answer, at date: Date) {
        let report = answer.report
        print("node: \(answer.node)")
        print(
            "  agent: \(answer.agentRunning ? "running (process \(report.process))" : "not running; the data plane goes on")"
        )
        print("  mode: \(report.mode) (\(report.modeReason))")
        print("  datastore: \(report.datastore) (\(report.datastoreState)), routes from \(report.routeSource)")
        if report.mode != "disabled" {
            if report.mode == "ebpf" {
                print("  WireGuard: \(report.backend), programs attached by \(report.attachment)")
                print("  steering path: \(report.steeringPath) (\(report.steeringPathReason))")
            } else {
                print("  WireGuard: \(report.backend), routing table \(report.routeTable), rules in \(report.firewall)")
            }
            if !report.firewallExceptions.isEmpty {
                print("  let in before: \(report.firewallExceptions.joined(separator: ", "))")
            }
            let leaks = answer.counters.filter { ["clear", "clear_encapsulated", "clear_arrived"].contains($0.reason) }
            let total = leaks.reduce(0) { $0 + $1.packets }
            print(
                "  strict mode: \(report.strictMode ? "on" : "off"), packets in clear that were to be encrypted: \(total)"
            )
            print("  host encryption: \(report.hostEncryption ? "on" : "off")")
        }
        for device in answer.devices { printDevice(device, report, at: date) }
        let hooks = Dictionary(grouping: report.attachments, by: \.device).sorted { $0.key < $1.key }
        if !hooks.isEmpty {
            print("\nprograms:")
            for (device, list) in hooks { print("  \(device): \(list.map(\.hook).joined(separator: ", "))") }
        }
        let said = report.settings.filter { $0.origin != "default" }
        if !said.isEmpty {
            print("\nsettings:")
            for setting in said { print("  \(setting.name): \(setting.value) (\(setting.origin))") }
        }
        if !answer.counters.isEmpty {
            print("\ncounters:")
            Output.table(
                ["  REASON", "HOOK", "PACKETS", "BYTES"],
                answer.counters.map { ["  " + $0.reason, $0.hook, "\($0.packets)", "\($0.bytes)"] })
        }
        print("\nproblems:\(report.problems.isEmpty ? " none" : "")")
        for problem in report.problems { print("  \(problem.severity.rawValue): \(problem)") }
    }

    private func printDevice(_ device: Answer.Device, _ report: StatusReport, at date: Date) {
        print("\ninterface: \(device.name)")
        print("  public key: \(device.publicKey?.description ?? "none")")
        print("  private key: (hidden)")
        print("  listening port: \(device.listeningPort)")
        print("  fwmark: 0x\(String(device.firewallMark, radix: 16))")
        print("  address: \(device.address?.description ?? "none yet")")
        print("  mtu: \(device.mtu)")
        let now = Int64(date.timeIntervalSince1970)
        for peer in device.peers {
            print("\npeer: \(peer.publicKey)")
            print("  node: \(peer.node ?? "unknown") (\(peer.state ?? "retiring"), \(peer.action ?? "clear"))")
            if let endpoint = peer.endpoint { print("  endpoint: \(endpoint)") }
            let allowed = peer.allowedIPs.map(\.description).joined(separator: ", ")
            print("  allowed ips: \(allowed.isEmpty ? "(none)" : allowed)")
            if let handshake = peer.latestHandshake {
                let ago = Output.duration(now - handshake)
                print("  latest handshake: \(ago == "now" ? ago : ago + " ago")")
            }
            print(
                "  transfer: \(Output.bytes(peer.receivedBytes)) received, \(Output.bytes(peer.sentBytes)) sent")
            if peer.persistentKeepalive != 0 {
                print("  persistent keepalive: every \(Output.duration(Int64(peer.persistentKeepalive)))")
            }
        }
        let family = device.family == "IPv4" ? report.ipv4 : report.ipv6
        if let clear = family?.unencryptedNodes, !clear.isEmpty {
            print("\n  in clear (\(device.family)): \(clear.joined(separator: ", "))")
        }
    }
}
