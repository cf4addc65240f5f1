// SPDX-License-Identifier: Apache-2.0

public import DataplaneMaps
public import Model

/// The decisions of the programs on plain values: what tests hold the programs against.
///
/// It has the maps' contents as dictionaries and remembers flows as the programs do, and
/// it decides one packet at a time.
public struct ReferenceModel: Sendable {
    public enum Verdict: Sendable, Hashable {
        case pass
        case redirect
        case drop
    }

    public struct Outcome: Sendable, Hashable {
        public var verdict: Verdict
        /// `skb->mark` afterwards.
        public var mark: UInt32
    }

    public var config: DataplaneConfig
    public var routes: [CIDR: Int]
    public var locals: [IPAddress: LocalAddress]
    public var endpoints: Set<IPAddress>
    public var actions: [Int: DestinationAction]
    private var flows: [FlowKey: Flow] = [:]
    /// The host's own tuples that have a mapping.
    private var masqueraded: Set<FlowKey> = []

    private struct Flow: Sendable {
        var slot: Int
        var isHost = false
        var isPassed = false
    }

    public init(
        config: DataplaneConfig, routes: [CIDR: Int], locals: [IPAddress: LocalAddress], endpoints: Set<IPAddress>,
        actions: [Int: DestinationAction]
    ) {
        self.config = config
        self.routes = routes
        self.locals = locals
        self.endpoints = endpoints
        self.actions = actions
    }

    /// The slot of the longest prefix that has an address.
    func slot(of address: IPAddress) -> Int {
        (0...address.family.bitWidth).reversed().lazy
            .compactMap { CIDR(masking: address, prefixLength: $0).flatMap { routes[$0] } }.first
            ?? DestinationSlot.outside
    }

    private func key(_ facts: PacketFacts, interface: UInt32) -> FlowKey {
        var key = FlowKey(
            source: facts.source, destination: facts.destination, transport: facts.transport, interface: interface)
        if facts.fragment == .whole {
            key.sourcePort = facts.sourcePort
            key.destinationPort = facts.destinationPort
            // In a packet of IPv4, ICMPv6's number is just a number; and the other way round.
            if facts.isICMP { key.destinationPort = UInt16(facts.icmpType) << 8 | UInt16(facts.icmpCode) }
        }
        return key
    }

    private func reversed(_ facts: PacketFacts, interface: UInt32) -> FlowKey {
        var key = FlowKey(
            source: facts.destination, destination: facts.source, transport: facts.transport, interface: interface)
        if facts.fragment == .whole {
            (key.sourcePort, key.destinationPort) = (facts.destinationPort, facts.sourcePort)
        }
        return key
    }

    // MARK: Hooks

    public mutating func fromPod(_ packet: ParsedPacket, mark: UInt32, interface: UInt32) -> Outcome {
        guard case .facts(let facts) = packet, config[facts.source.family] != nil else {
            return Outcome(verdict: .pass, mark: mark)
        }
        let flow = decide(facts, interface: interface, reply: 0, outside: true)
        let action = actions[flow.slot] ?? .clear
        if action == .drop, !flow.isPassed { return Outcome(verdict: .drop, mark: mark) }
        if action == .tunnel, !flow.isPassed, config.isDirect { return redirect(flow) }
        return Outcome(verdict: .pass, mark: mark & ~PacketMark.host | PacketMark.counted)
    }

    public mutating func toUplink(
        _ packet: ParsedPacket, mark: UInt32, interface: UInt32, ingress: UInt32
    ) -> Outcome {
        let cleared = mark & ~PacketMark.counted
        guard case .facts(let facts) = packet, let device = config[facts.source.family] else {
            return Outcome(verdict: .pass, mark: cleared)
        }
        let isOuter =
            cleared & config.firewallMark == config.firewallMark && facts.transport == 17
            && (facts.fragment == .later || facts.sourcePort == device.listeningPort)
            && endpoints.contains(facts.destination)
        if isOuter { return Outcome(verdict: .pass, mark: cleared) }
        if ingress != 0, [config.ipv4?.interface, config.ipv6?.interface].contains(ingress),
            slot(of: facts.destination) != DestinationSlot.outside
        {
            return Outcome(verdict: .drop, mark: cleared)
        }
        let flow = decide(facts, interface: ingress, reply: interface, outside: false)
        switch actions[flow.slot] ?? .clear {
        case .drop: return Outcome(verdict: .drop, mark: cleared)
        case .tunnel where !flow.isPassed: return redirect(flow)
        default: return Outcome(verdict: .pass, mark: cleared)
        }
    }

    public mutating func fromUplink(_ packet: ParsedPacket, mark: UInt32, interface: UInt32) -> Outcome {
        let pass = Outcome(verdict: .pass, mark: mark)
        guard case .facts(let facts) = packet, let device = config[facts.source.family],
            let local = locals[facts.destination]
        else { return pass }
        if facts.transport == 17, local.kind != .pod, facts.fragment != .later,
            facts.destinationPort == device.listeningPort
        {
            return endpoints.contains(facts.source) ? pass : Outcome(verdict: .drop, mark: mark)
        }
        let own = key(facts, interface: interface)
        if flows[own] == nil, slot(of: facts.source) >= DestinationSlot.firstPeer,
            flows[reversed(facts, interface: 0)] == nil || facts.isICMP
        {
            flows[own] = Flow(slot: slot(of: facts.destination))
        }
        return pass
    }

    // MARK: Decision

    private func redirect(_ flow: Flow) -> Outcome {
        Outcome(verdict: .redirect, mark: PacketMark.counted | (flow.isHost ? PacketMark.host : 0))
    }

    private mutating func decide(_ facts: PacketFacts, interface: UInt32, reply: UInt32, outside: Bool) -> Flow {
        let own = key(facts, interface: interface)
        if let known = flows[own], !facts.startsConnection { return known }
        var flow = Flow(slot: slot(of: facts.destination))
        if flows[own] == nil, flow.slot == DestinationSlot.outside, !outside {
            flow.isPassed = true
            return flow
        }
        (flow.isHost, flow.isPassed) = judgeSource(facts, interface: interface, reply: reply)
        // What the host begins in clear stays so.
        let action = actions[flow.slot] ?? .clear
        if flow.isHost, flow.slot != DestinationSlot.outside, action == .clear || action == .draining {
            flow.isPassed = true
        }
        flows[own] = flow
        return flow
    }

    private func judgeSource(
        _ facts: PacketFacts, interface: UInt32, reply: UInt32
    ) -> (isHost: Bool, isPassed: Bool) {
        guard let local = locals[facts.source] else {
            return (false, interface == 0 || slot(of: facts.source) != DestinationSlot.local)
        }
        if local.kind == .pod {
            return (false, local.interface != 0 && interface != 0 && local.interface != interface)
        }
        if interface != 0 { return (false, true) }
        if local.kind == .tunnel { return (true, false) }
        let continues: Bool
        if facts.transport == 6 {
            continues = !facts.startsConnection && !masqueraded.contains(key(facts, interface: 0))
        } else if facts.isICMP {
            continues = facts.isEcho && !facts.isEchoRequest
        } else {
            continues = reply != 0 && flows[reversed(facts, interface: reply)] != nil
        }
        return (true, continues)
    }
}
