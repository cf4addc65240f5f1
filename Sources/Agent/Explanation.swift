// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
public import Datastore
internal import DesiredState
internal import Foundation
public import Flows
public import Model
internal import Netlink
internal import WireGuard

/// A packet's way from one address to another, hop by hop (`schema` 1).
public struct Explanation: Sendable, Codable {
    public var schema = 1
    public var source: IPAddress
    public var destination: IPAddress
    public var sourceName: String?
    public var destinationName: String?
    /// IP protocol number.
    public var transport: UInt8
    public var sourcePort: UInt16
    public var destinationPort: UInt16
    /// `ebpf`, `route`, `disabled`.
    public var mode: String
    /// `tunnel`, `clear`, `drop`, `local`, `outside`.
    public var verdict: String
    /// Why it is dropped, or what to look at.
    public var reason: String?
    public var hops: [ExplainedHop]
    public var notes: [String]
}

/// Explains a node's packets, and with the resources, or another node's view, those of the far end.
public struct NodeExplainer: Sendable {
    private let view: NodeView
    private let names: [IPAddress: String]
    private let snapshot: Snapshot?
    private let far: NodeView?

    /// `far`: the node at the other end, if it can be looked at; else `snapshot` says what it should do.
    public init(_ view: NodeView, names: [IPAddress: String], snapshot: Snapshot?, far: NodeView? = nil) {
        self.view = view
        self.names = names
        self.snapshot = snapshot
        self.far = far
    }

    private func explainer(_ view: NodeView) throws -> Explainer {
        try Explainer(
            view.maps(),
            names: FlowNames(addresses: names, interfaces: view.interfaceNames(), node: view.node))
    }

    public func explain(_ packet: SyntheticPacket) throws -> Explanation {
        let report = try view.report()
        var result = Explanation(
            source: packet.source, destination: packet.destination, sourceName: names[packet.source],
            destinationName: names[packet.destination], transport: packet.transport, sourcePort: packet.sourcePort,
            destinationPort: packet.destinationPort, mode: report.mode, verdict: "outside", hops: [], notes: [])
        if !view.isAgentRunning {
            result.notes.append("no agent runs on \(view.node): this is what the data plane does without one")
        }
        switch report.mode {
        case "ebpf": try explainPrograms(packet, report, &result)
        case "route": try explainRoutes(packet, report, &result)
        default:
            result.verdict = "clear"
            result.notes.append("WireGuard is switched off on \(view.node) (\(report.modeReason)): nothing steers")
        }
        return result
    }

    // MARK: eBPF mode

    private func explainPrograms(
        _ packet: SyntheticPacket, _ report: StatusReport, _ result: inout Explanation
    ) throws {
        let explainer = try explainer(view)
        guard explainer.config[packet.source.family] != nil else {
            result.verdict = "clear"
            result.notes.append("\(packet.source.family) is switched off on \(view.node)")
            return
        }
        guard explainer.local(packet.source) != nil else {
            try explainArrival(packet, explainer, report, &result)
            return
        }
        result.hops = explainer.outgoing(packet)
        let decided = result.hops.last { ["tunnel", "drop", "answer"].contains($0.action) }
        guard decided?.action == "tunnel" else {
            result.verdict =
                decided?.action == "drop" || decided?.action == "answer" ? "drop" : passing(packet, explainer)
            result.reason = decided?.reason
            return
        }
        try goThroughWireGuard(packet, report, &result)
    }

    private func passing(_ packet: SyntheticPacket, _ explainer: Explainer) -> String {
        if explainer.local(packet.destination) != nil { return "local" }
        return explainer.node(of: packet.destination) == nil ? "outside" : "clear"
    }

    private func explainArrival(
        _ packet: SyntheticPacket, _ explainer: Explainer, _ report: StatusReport, _ result: inout Explanation
    ) throws {
        guard explainer.local(packet.destination) != nil else {
            result.notes.append(
                "neither \(packet.source) nor \(packet.destination) is an address of \(view.node): its programs see such a packet at most in passing"
            )
            if let node = explainer.node(of: packet.source) {
                result.notes.append("\(packet.source) is on \(node): ask there, or with an archive of it (--from)")
            }
            return
        }
        let node = explainer.node(of: packet.source)
        if let node { result.notes.append("\(packet.source) is on \(node): what it sends is decided there") }
        let carried = try receivingPeer(packet, report)
        let encrypted = explainer.incoming(packet, encrypted: true)
        var clear = explainer.incoming(packet, encrypted: false)
        for index in clear.indices { clear[index].text = "if it came in clear instead: it \(clear[index].text)" }
        result.hops = [carried] + encrypted + clear
        result.verdict = clear.last?.action == "drop" ? "tunnel" : carried.action == "drop" ? "drop" : "tunnel"
        result.reason = carried.action == "drop" ? "no peer may send from \(packet.source)" : nil
    }

    // MARK: WireGuard

    private func goThroughWireGuard(
        _ packet: SyntheticPacket, _ report: StatusReport, _ result: inout Explanation
    ) throws {
        let hop = try sendingPeer(packet, report)
        result.hops.append(hop)
        result.verdict = hop.action == "drop" ? "drop" : "tunnel"
        result.reason = hop.reason
        if hop.action != "drop" { try explainFarEnd(packet, report, &result) }
    }

    private func peers(
        _ report: StatusReport, _ family: AddressFamily
    ) throws -> (device: String, peers: [PublicKey: PeerState], nodes: [PublicKey: String]) {
        guard let told = report[family], let (_, state) = try view.device(told.device) else { return ("", [:], [:]) }
        let nodes = Dictionary(told.peers.map { ($0.publicKey, $0.node) }, uniquingKeysWith: { first, _ in first })
        return (told.device, state.peers, nodes)
    }

    /// The peer whose allowed IPs have an address, by the longest prefix.
    private static func owner(
        of address: IPAddress, _ peers: [PublicKey: PeerState]
    ) -> (key: PublicKey, prefix: CIDR, state: PeerState)? {
        peers.flatMap { key, state in
            state.allowedIPs.filter { $0.contains(address) }.map { (key: key, prefix: $0, state: state) }
        }.max { $0.prefix.prefixLength < $1.prefix.prefixLength }
    }

    private func sendingPeer(_ packet: SyntheticPacket, _ report: StatusReport) throws -> ExplainedHop {
        let (device, peers, nodes) = try peers(report, packet.destination.family)
        guard let found = Self.owner(of: packet.destination, peers) else {
            return ExplainedHop(
                node: view.node, place: "WireGuard", device: device, action: "drop", reason: "no_peer",
                text:
                    "no peer of \(device.isEmpty ? "the device" : device) has \(packet.destination) among its allowed IPs"
            )
        }
        let endpoint = found.state.endpoint?.description ?? "unknown yet"
        let isUnreachable = found.state.endpoint == nil
        return ExplainedHop(
            node: view.node, place: "WireGuard", device: device, action: isUnreachable ? "drop" : "encrypt",
            reason: isUnreachable ? "no_endpoint" : nil,
            text: isUnreachable
                ? "the peer's endpoint is not known: it must speak first"
                : "encrypted for \(nodes[found.key] ?? "a peer") and sent to \(endpoint)",
            entries: [
                .init(map: device, key: "allowed ips \(found.prefix)", value: "peer \(found.key)"),
                .init(map: device, key: "endpoint", value: endpoint),
                .init(map: device, key: "latest handshake", value: handshake(found.state)),
            ])
    }

    private func receivingPeer(_ packet: SyntheticPacket, _ report: StatusReport) throws -> ExplainedHop {
        let (device, peers, nodes) = try peers(report, packet.source.family)
        guard let found = Self.owner(of: packet.source, peers) else {
            return ExplainedHop(
                node: view.node, place: "WireGuard", device: device, action: "drop", reason: "no_peer",
                text: "no peer may send from \(packet.source): WireGuard drops what is decrypted with that source")
        }
        return ExplainedHop(
            node: view.node, place: "WireGuard", device: device, action: "decrypt",
            text: "taken from \(nodes[found.key] ?? "a peer") alone",
            entries: [
                .init(map: device, key: "allowed ips \(found.prefix)", value: "peer \(found.key)"),
                .init(map: device, key: "latest handshake", value: handshake(found.state)),
            ])
    }

    private func handshake(_ peer: PeerState) -> String {
        guard let last = peer.lastHandshake else { return "never" }
        return "\(max(0, Int64(view.date.timeIntervalSince1970) - last)) s ago"
    }

    // MARK: The far end

    private func explainFarEnd(
        _ packet: SyntheticPacket, _ report: StatusReport, _ result: inout Explanation
    ) throws {
        if let far {
            let explainer = try explainer(far)
            let other = NodeExplainer(far, names: names, snapshot: snapshot)
            result.hops.append(try other.receivingPeer(packet, try far.report()))
            result.hops += explainer.incoming(packet, encrypted: true)
            if let last = result.hops.last(where: { $0.node == far.node && $0.action == "drop" }) {
                result.verdict = "drop"
                result.reason = last.reason
            }
            return
        }
        guard let snapshot else { return }
        let cluster = ClusterState(snapshot.manifests.values)
        let routes = NodePlan(cluster, node: view.node)[packet.destination.family].routes
        let covering = routes.filter { $0.key.contains(packet.destination) }
        let best = covering.max { $0.key.prefixLength < $1.key.prefixLength }
        guard case .node(let node)? = best?.value else { return }
        var keys: [AddressFamily: PublicKey] = [:]
        for family in AddressFamily.allCases {
            keys[family] = cluster.nodes[node]?.publicKeys[family]
        }
        let plan = NodePlan(cluster, node: node, ownKeys: keys)
        guard let peer = plan[packet.source.family].peers[view.node] else {
            result.hops.append(
                ExplainedHop(
                    node: node, place: "WireGuard", device: "", action: "drop", reason: "no_peer",
                    text: "as the resources say, \(node) has no peer \(view.node): it would not decrypt this"))
            result.verdict = "drop"
            result.reason = "no_peer"
            return
        }
        let allowed = peer.allowedIPs.first { $0.contains(packet.source) }
        result.hops.append(
            ExplainedHop(
                node: node, place: "WireGuard", device: "", action: allowed == nil ? "drop" : "decrypt",
                reason: allowed == nil ? "no_peer" : nil,
                text: allowed == nil
                    ? "as the resources say, \(node) does not take \(packet.source) from \(view.node)"
                    : "as the resources say, decrypted and delivered by \(node)",
                entries: allowed.map {
                    [.init(map: "allowed ips", key: $0.description, value: "peer \(peer.publicKey)")]
                } ?? []))
        if allowed == nil {
            result.verdict = "drop"
            result.reason = "no_peer"
        }
    }

    // MARK: Route mode

    private func explainRoutes(
        _ packet: SyntheticPacket, _ report: StatusReport, _ result: inout Explanation
    ) throws {
        let (rules, routes) = try view.routing(packet.destination.family)
        guard let rule = rules.first(where: { $0.table == report.routeTable && $0.isInverted }) else {
            result.verdict = "clear"
            result.hops = [
                ExplainedHop(
                    node: view.node, place: "rule", device: "", action: "pass",
                    text: "there is no rule that leads to table \(report.routeTable)")
            ]
            return
        }
        let matching = routes.filter { $0.table == report.routeTable && $0.destination.contains(packet.destination) }
        let best = matching.max { $0.destination.prefixLength < $1.destination.prefixLength }
        result.hops = [
            ExplainedHop(
                node: view.node, place: "rule", device: "", action: "pass",
                text: "packets that are not WireGuard's own are looked up in table \(rule.table)",
                entries: [
                    .init(
                        map: "ip rule", key: "\(rule.priority)",
                        value: "not from all fwmark 0x\(String(rule.mark, radix: 16)) lookup \(rule.table)")
                ])
        ]
        let device = best.flatMap { view.interfaceNames()[$0.interface] } ?? ""
        func add(_ action: String, _ text: String, _ kind: String) {
            result.hops.append(
                ExplainedHop(
                    node: view.node, place: "table \(rule.table)", device: device, action: action, text: text,
                    entries: best.map { [.init(map: "route", key: $0.destination.description, value: kind)] } ?? []))
        }
        switch best?.type {
        case 1:
            add("tunnel", "goes into the tunnel", "dev \(device)")
            try goThroughWireGuard(packet, report, &result)
        case 6:
            add("drop", "strict mode: what has no tunnel is dropped", "blackhole")
            result.verdict = "drop"
            result.reason = "blackhole"
        default:
            add("pass", "the table leaves it to the next rule: in clear", best == nil ? "none" : "throw")
            result.verdict = "clear"
        }
    }
}
