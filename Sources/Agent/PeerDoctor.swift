// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
public import Datastore
internal import DesiredState
internal import Flows
internal import Foundation
internal import Model
internal import SystemDescriptors
internal import WireGuard

/// Why packets to another node do not get through: from what is published to what comes back, with probes of its own.
public struct PeerDoctor: Sendable {
    /// One thing that was looked at, in the order in which a packet needs them.
    public struct Step: Sendable, Codable {
        public enum Verdict: String, Sendable, Codable {
            case ok
            case failed
            /// Cannot be told, or does not matter after what has failed.
            case skipped
        }

        public var step: String
        /// `IPv4`, `IPv6`; empty: both.
        public var family: String
        public var verdict: Verdict
        public var found: String
        /// What to do; empty when nothing.
        public var remedy: String
    }

    private let view: NodeView
    private let cluster: ClusterState

    public init(_ view: NodeView, snapshot: Snapshot) {
        self.view = view
        cluster = ClusterState(snapshot.manifests.values)
    }

    /// Steps of one examination; after one that failed, the rest of its family is skipped.
    private struct Course {
        var steps: [Step] = []
        var family: String
        var hasFailed = false

        mutating func note(_ step: String, _ isRight: Bool?, _ found: String, _ remedy: String = "") {
            let verdict: Step.Verdict = hasFailed || isRight == nil ? .skipped : isRight == true ? .ok : .failed
            steps.append(
                Step(
                    step: step, family: family, verdict: verdict, found: found,
                    remedy: verdict == .failed ? remedy : ""))
            if verdict == .failed { hasFailed = true }
        }
    }

    /// Blocks, for some seconds. Throws when the node is not known, or WireGuard is switched off here.
    public func examine(_ peer: String) throws -> [Step] {
        guard let node = cluster.nodes[peer] else {
            throw ProblemsError(
                Problem(
                    resource: "Node", field: "--peer", value: peer, message: "is no node that the datastore knows",
                    remedy: "see `wgplane get nodes`"))
        }
        guard peer != view.node else {
            throw ProblemsError(
                Problem(
                    resource: "Node", field: "--peer", value: peer, message: "is this node", remedy: "name another"))
        }
        let report = try view.report()
        let families = AddressFamily.allCases.filter { report[$0] != nil }
        guard !families.isEmpty else {
            throw ProblemsError(
                Problem(
                    resource: "Agent", field: "mode", value: report.mode, message: "WireGuard is switched off here",
                    remedy:
                        "enable it, `wgplane patch felixconfiguration default -p '{\"spec\":{\"wireguardEnabled\":true}}'`"
                ))
        }
        var course = Course(family: "")
        course.note(
            "agent", view.isAgentRunning, view.isAgentRunning ? "runs" : "does not run: nothing follows changes",
            "start it with `wgplane agent`")
        course.note(
            "datastore", report.datastoreState == "ready", report.datastoreState, "see problems in `wgplane status`")
        var steps = course.steps
        for family in families { steps += try examine(node, family, report) }
        return steps
    }

    private func examine(_ node: NodeResource, _ family: AddressFamily, _ report: StatusReport) throws -> [Step] {
        var course = Course(family: family.description)
        guard let told = report[family] else { return [] }
        published(node, family, told, &course)
        try programmed(node, family, told, report, &course)
        if report.mode == "ebpf" { try steered(node, family, told, report, &course) }
        try probe(node, family, told, report, &course)
        return course.steps
    }

    // MARK: What is there

    private func published(
        _ node: NodeResource, _ family: AddressFamily, _ told: StatusReport.Family, _ course: inout Course
    ) {
        let annotation = NodeAnnotation.publicKey(family)
        let own = cluster.nodes[view.node]?.publicKeys[family]
        course.note(
            "own key published", own != nil && own == told.publicKey,
            own == nil
                ? "Node/\(view.node) has no annotation \(annotation)" : own == told.publicKey ? "yes" : "another key",
            "the others cannot know this node: does the agent run, and may it write its Node?")
        course.note(
            "peer's key published", node.publicKeys[family] != nil,
            node.publicKeys[family].map { "\($0)" } ?? "Node/\(node.name) has no annotation \(annotation)",
            "is WireGuard enabled for \(node.name), and does its agent run? See `wgplane status` there")
    }

    private func programmed(
        _ node: NodeResource, _ family: AddressFamily, _ told: StatusReport.Family, _ report: StatusReport,
        _ course: inout Course
    ) throws {
        let device = try view.device(told.device)?.1
        course.note(
            "device", device != nil, device == nil ? "\(told.device) is not there" : told.device,
            "the agent makes it again within 10 s; see its log")
        let key = node.publicKeys[family]
        let carrier = told.peers.first { $0.node == node.name }?.carrier ?? key
        let peer = carrier.flatMap { device?.peers[$0] }
        course.note(
            "peer programmed", peer != nil,
            peer.map { "\($0.allowedIPs.count) allowed IPs, endpoint \($0.endpoint?.description ?? "unknown")" }
                ?? "\(told.device) has no peer with that key",
            "see problems in `wgplane status`: two nodes may claim one key")
        let missing = addresses(of: node, family).first { address in
            !(peer?.allowedIPs.contains { $0.contains(address) } ?? false)
        }
        course.note(
            "allowed IPs", missing == nil, missing.map { "\($0) is in none of them" } ?? "have its pods and its device",
            "see problems in `wgplane status`: the address may be in another node's block too")
        let age = peer?.lastHandshake.flatMap { $0 == 0 ? nil : Int64(Date().timeIntervalSince1970) - Int64($0) }
        // A probe asks for one: this alone is no fault.
        course.note("handshake", age == nil ? nil : true, age.map { "\($0) s ago" } ?? "none yet")
    }

    private func steered(
        _ node: NodeResource, _ family: AddressFamily, _ told: StatusReport.Family, _ report: StatusReport,
        _ course: inout Course
    ) throws {
        let hooks = Set(report.attachments.map(\.hook))
        let wanted = ["from_uplink", "from_wireguard", "to_uplink", "to_wireguard"].filter { !hooks.contains($0) }
        course.note(
            "programs attached", wanted.isEmpty,
            wanted.isEmpty ? "at every kind of hook" : "none at \(wanted.joined(separator: ", "))",
            "does spec.bpfDataIfacePattern match the uplinks? See problems in `wgplane status`")
        let maps = try view.maps()
        let routes = RouteLookup(try maps.routes.entries())
        let owners = try maps.destinations.slotOwners()
        let address = addresses(of: node, family).first
        let slot = address.map { routes.slot(of: $0) }
        let action = slot.map { maps.destinations[$0].action.name } ?? "unknown"
        let owner = slot.flatMap { owners[$0]?.node }
        course.note(
            "steering", address == nil ? nil : owner == node.name && action == "tunnel",
            address.map { "\($0) is \(owner.map { "\($0)'s" } ?? "nobody's"), \(action)" }
                ?? "it has no pods and no device's address",
            owner == node.name
                ? "packets wait for a handshake: the steps below say where it stops"
                : "see `wgplane explain`, and which node has the block")
    }

    /// Its device's address, then its pods'.
    private func addresses(of node: NodeResource, _ family: AddressFamily) -> [IPAddress] {
        let pods = cluster.pods.values.filter { $0.node == node.name && !$0.isHostNetwork && !$0.isFinished }
            .flatMap(\.addresses).filter { $0.family == family }.sorted()
        return [node.interfaceAddresses[family]].compactMap { $0 } + pods
    }

    // MARK: What passes

    /// Echo requests sent, and how long each waits for its answer.
    private static let probes = (count: 5, patience: UInt64(400_000_000))

    private func probe(
        _ node: NodeResource, _ family: AddressFamily, _ told: StatusReport.Family, _ report: StatusReport,
        _ course: inout Course
    ) throws {
        guard let target = addresses(of: node, family).first else {
            return course.note("probe", nil, "there is no address of it to ask")
        }
        let before = try transfer(node, family, told)
        var seen: [Hook: [TraceEvent]] = [:]
        var answers = 0
        if report.mode == "ebpf" {
            let filter = TraceFilter(destination: CIDR(host: target), transport: family == .ipv4 ? 1 : 58)
            try PacketTracer(view, filter: filter, names: [:]).session { read, _ in
                answers = try ask(target)
                for trace in try read(50) { seen[trace.event.hook, default: []].append(trace) }
            }
        } else {
            answers = try ask(target)
        }
        let after = try awaitAnswer(node, family, told, before)
        let count = Self.probes.count
        if report.mode == "ebpf" {
            hook(.toUplink, seen, "steered into the tunnel", .redirect, target, &course)
            hook(.toWireGuard, seen, "into the WireGuard device", .pass, target, &course)
        }
        let sent = after.sent - min(before.sent, after.sent)
        course.note(
            "encrypted and sent", sent > 0, "WireGuard has sent \(sent) bytes to \(node.name)",
            "is there a route to its endpoint, and does a firewall here drop UDP port \(told.listeningPort)? See `ip route get` and nftables' output chains"
        )
        let received = after.received - min(before.received, after.received)
        course.note(
            "answer received", answers > 0 || Self.hasAnswered(before.received, after.received),
            "WireGuard has received \(received) bytes from \(node.name)",
            "no UDP comes back: check firewalls and security groups between the nodes for UDP port \(node.listeningPorts[family] ?? told.listeningPort), and run `wgplane doctor --peer \(view.node)` on \(node.name)"
        )
        if report.mode == "ebpf", answers > 0 { hook(.fromWireGuard, seen, "decrypted", nil, target, &course) }
        course.note(
            "answered", answers > 0, "\(answers) of \(count) echo requests to \(target)",
            "the tunnel works: does \(target) answer echo requests, and does its node's firewall let them in?")
        if answers > 0, answers < count {
            course.steps.append(
                Step(
                    step: "loss", family: course.family, verdict: .failed, found: "\(count - answers) of \(count)",
                    remedy: "see `wgplane drops` on both nodes, and the underlay for loss"))
        }
    }

    /// WireGuard's counters once something has come back. Where nobody answers the probes, WireGuard itself does, with
    /// a keep-alive ten seconds after data (KEEPALIVE_TIMEOUT).
    private func awaitAnswer(
        _ node: NodeResource, _ family: AddressFamily, _ told: StatusReport.Family,
        _ before: (sent: UInt64, received: UInt64)
    ) throws -> (sent: UInt64, received: UInt64) {
        // wireguard-go counts a moment later.
        sleepMicroseconds(50_000)
        let deadline = monotonicNanoseconds() + 12_000_000_000
        var now = try transfer(node, family, told)
        while now.sent > before.sent, !Self.hasAnswered(before.received, now.received),
            monotonicNanoseconds() < deadline
        {
            sleepMicroseconds(100_000)
            now = try transfer(node, family, told)
        }
        return now
    }

    /// Its own initiations of handshakes do not say that the peer hears us.
    private static func hasAnswered(_ before: UInt64, _ after: UInt64) -> Bool {
        after > before && (after - before) % initiation != 0
    }

    /// Bytes of a handshake's initiation (WireGuard, section 5.4.2).
    private static let initiation: UInt64 = 148

    private func hook(
        _ hook: Hook, _ seen: [Hook: [TraceEvent]], _ step: String, _ wanted: TraceEvent.Verdict?,
        _ target: IPAddress, _ course: inout Course
    ) {
        let traces = seen[hook] ?? []
        let right = traces.filter { wanted == nil ? $0.verdict != .drop : $0.verdict == wanted }
        let wrong = traces.first { trace in !right.contains(trace) }
        let words = wrong.map { "\($0.verdict.name)\($0.event.reason.map { ", \($0.name)" } ?? "")" }
        course.note(
            step, !right.isEmpty,
            right.isEmpty
                ? words.map { "\(hook.name): \($0)" } ?? "\(hook.name) has seen none" : "\(hook.name): \(right.count)",
            wrong == nil
                ? "is the program attached? See `wgplane status`; does a route or a rule lead \(target) elsewhere? See `ip route get \(target)`"
                : "see `wgplane explain \(view.node) \(target) --proto icmp` for the entry that decides")
    }

    private func transfer(
        _ node: NodeResource, _ family: AddressFamily, _ told: StatusReport.Family
    ) throws -> (sent: UInt64, received: UInt64) {
        let key = told.peers.first { $0.node == node.name }?.carrier ?? node.publicKeys[family]
        let peer = try key.flatMap { try view.device(told.device)?.1.peers[$0] }
        return (peer?.sentBytes ?? 0, peer?.receivedBytes ?? 0)
    }

    /// Answers to echo requests from this node.
    private func ask(_ target: IPAddress) throws -> Int {
        let isIPv6 = target.family == .ipv6
        let socket = try InternetSocket(.icmp, isIPv6: isIPv6, timeoutMilliseconds: 100)
        var answers = 0
        for number in 0..<Self.probes.count {
            let identifier = UInt16.random(in: 1...UInt16.max)
            let request = EchoMessage.request(identifier, Array("wgplane doctor \(number)".utf8), isIPv6: isIPv6)
            // A route that is missing says so at once.
            guard (try? socket.send(request, to: SocketAddress(target.bytes))) != nil else { continue }
            let deadline = monotonicNanoseconds() + Self.probes.patience
            while monotonicNanoseconds() < deadline {
                guard let (answer, _) = try? socket.receive() else { continue }
                if EchoMessage.isReply(answer, identifier, isIPv6: isIPv6) {
                    answers += 1
                    break
                }
            }
        }
        return answers
    }
}
