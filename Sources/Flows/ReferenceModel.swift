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

    /// A packet as a hook sees it.
    public struct Input: Sendable {
        public var bytes: [UInt8]
        public var hasEthernet: Bool
        public var mark: UInt32
        /// Device where the hook is.
        public var interface: UInt32
        /// Device that it came in by; 0: the node itself.
        public var ingress: UInt32
        /// `gso_size`, 0: one segment.
        public var segment: UInt32

        public init(
            bytes: [UInt8], hasEthernet: Bool, mark: UInt32 = 0, interface: UInt32, ingress: UInt32 = 0,
            segment: UInt32 = 0
        ) {
            self.bytes = bytes
            self.hasEthernet = hasEthernet
            self.mark = mark
            self.interface = interface
            self.ingress = ingress
            self.segment = segment
        }
    }

    public struct Outcome: Sendable, Hashable {
        public var verdict: Verdict
        /// `skb->mark` afterwards.
        public var mark: UInt32
        /// Nil: dropped.
        public var packet: [UInt8]?
        /// The packet is an ICMP answer, which is limited in number: it may be a drop too.
        public var isAnswer = false
        /// How it went, or why it was dropped, as the programs count it; nil: they do not, or the model does not say.
        public var reason: Reason?

        static func drop(_ reason: Reason, mark: UInt32) -> Outcome {
            Outcome(verdict: .drop, mark: mark, reason: reason)
        }
    }

    public var config: DataplaneConfig
    public var routes: [CIDR: Int]
    public var locals: [IPAddress: LocalAddress]
    public var endpoints: Set<IPAddress>
    /// UDP ports of this node that somebody listens on.
    public var listeningPorts: Set<UInt16> = []
    public var actions: [Int: DestinationAction]
    public var checkedInterfaces: Set<UInt32> = []
    public var allowedSources: Set<AllowedSource> = []
    var flows: [FlowKey: Flow] = [:]
    var translations: [Half: Translation] = [:]
    var fragments: [FragmentName: IPAddress] = [:]

    struct Flow: Sendable {
        var slot: Int
        var takesStack = false
        var tcpFlags: UInt8 = 0
        var isHost = false
        var isPassed = false
        var isPromised = false
        var isExempt = false
        var isSpoofed = false
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

    func key(_ facts: PacketFacts, interface: UInt32) -> FlowKey {
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
            if facts.isICMP {
                (key.sourcePort, key.destinationPort) = (
                    facts.sourcePort, UInt16(facts.icmpType) << 8 | UInt16(facts.icmpCode)
                )
            }
        }
        return key
    }

    // MARK: Hooks

    func unparsed(_ packet: ParsedPacket, _ input: Input, mark: UInt32) -> Outcome {
        if packet == .malformed, config.isStrict { return .drop(.dropUnparsable, mark: mark) }
        return Outcome(verdict: .pass, mark: mark, packet: input.bytes)
    }

    public mutating func fromPod(_ input: Input) -> Outcome {
        let parsed = ParsedPacket(input.bytes, hasEthernet: input.hasEthernet)
        func drop(_ reason: Reason) -> Outcome { .drop(reason, mark: input.mark) }
        if parsed == .wrapped { return drop(.dropUnparsable) }
        guard case .facts(let facts) = parsed else { return unparsed(parsed, input, mark: input.mark) }
        guard let device = config[facts.source.family] else {
            return Outcome(verdict: .pass, mark: input.mark, packet: input.bytes)
        }
        let flow = decide(facts, interface: input.interface, reply: 0, isPod: true, isCounted: false)
        if flow.isSpoofed { return drop(.dropSpoofed) }
        let action = actions[flow.slot] ?? .clear
        if action == .drop, !flow.isPassed { return drop(.dropNoTunnel) }
        if action == .tunnel, !flow.isPassed {
            if config.isDirect, facts.fragment == .whole, facts.hopLimit > 1 {
                var packet = ReferencePacket(input.bytes, facts, hasEthernet: input.hasEthernet)
                if device.mtu != 0, packet.size(segment: input.segment) > Int(device.mtu), !facts.maySplit {
                    guard let answer = packet.tooBig(mtu: device.mtu, from: device.address) else {
                        return drop(.dropTooBigQuiet)
                    }
                    return Outcome(verdict: .redirect, mark: input.mark, packet: answer, isAnswer: true)
                }
                packet.hop()
                packet.clampSegment(device.maximumSegment)
                return redirect(flow, packet.bytes)
            }
        } else if flow.slot != DestinationSlot.local, isStrictLeak(flow) {
            return drop(.dropClear)
        }
        return Outcome(
            verdict: .pass, mark: input.mark & ~PacketMark.host | PacketMark.counted, packet: input.bytes)
    }

    public mutating func toUplink(_ input: Input) -> Outcome {
        let mark = input.mark & ~PacketMark.counted
        let parsed = ParsedPacket(input.bytes, hasEthernet: input.hasEthernet)
        guard case .facts(let facts) = parsed else { return unparsed(parsed, input, mark: mark) }
        let pass = Outcome(verdict: .pass, mark: mark, packet: input.bytes)
        func drop(_ reason: Reason) -> Outcome { .drop(reason, mark: mark) }
        guard let device = config[facts.source.family] else { return pass }
        let isMarked = [config.firewallMark, config.oldFirewallMark].contains { $0 != 0 && mark & $0 == $0 }
        let isOuter =
            isMarked && facts.transport == 17
            && (facts.fragment == .later || device.listens(on: facts.sourcePort))
            && endpoints.contains(facts.destination)
        if isOuter { return pass }
        if input.ingress != 0, locals[facts.source] == nil,
            [config.ipv4?.interface, config.ipv6?.interface].contains(input.ingress),
            slot(of: facts.destination) != DestinationSlot.outside
        {
            return drop(.dropNotHere)
        }
        let flow = decide(
            facts, interface: input.ingress, reply: input.interface, isPod: false,
            isCounted: input.mark & PacketMark.counted != 0)
        let action = actions[flow.slot] ?? .clear
        if action == .drop { return drop(.dropNoTunnel) }
        var packet = ReferencePacket(input.bytes, facts, hasEthernet: input.hasEthernet)
        if action == .tunnel, !flow.isPassed {
            if device.mtu != 0, packet.size(segment: input.segment) > Int(device.mtu), !facts.maySplit,
                facts.fragment == .whole
            {
                guard let answer = packet.tooBig(mtu: device.mtu, from: nil) else { return drop(.dropTooBigQuiet) }
                // To whom it came from, or in again by the uplink.
                let answerMark = input.ingress == 0 ? PacketMark.counted : mark
                return Outcome(verdict: .redirect, mark: answerMark, packet: answer, isAnswer: true)
            }
            packet.clampSegment(device.maximumSegment)
            return redirect(flow, packet.bytes)
        }
        if flow.slot == DestinationSlot.outside {
            return config.isStrict && carriesPods(packet) ? drop(.dropEncapsulated) : pass
        }
        return isStrictLeak(flow) ? drop(.dropClear) : pass
    }

    public mutating func fromUplink(_ input: Input) -> Outcome {
        let pass = Outcome(verdict: .pass, mark: input.mark & ~PacketMark.counted, packet: input.bytes)
        func drop(_ reason: Reason) -> Outcome { .drop(reason, mark: input.mark) }
        if input.mark & PacketMark.counted != 0 { return pass }
        let parsed = ParsedPacket(input.bytes, hasEthernet: input.hasEthernet)
        if parsed == .wrapped, config.isStrict { return drop(.dropUnparsable) }
        guard case .facts(let facts) = parsed else { return unparsed(parsed, input, mark: input.mark) }
        guard let device = config[facts.source.family] else { return pass }
        let local = locals[facts.destination]
        if let local, facts.transport == 17, local.kind != .pod {
            let isKnown = endpoints.contains(facts.source)
            if facts.fragment == .later {
                if isKnown { return pass }
            } else if device.listens(on: facts.destinationPort) {
                guard isKnown || config.admitsAnybody else { return drop(.dropUnknownEndpoint) }
                guard device.otherPort != 0, !listeningPorts.contains(facts.destinationPort) else { return pass }
                let isOwn = facts.destinationPort == device.listeningPort
                let port = isOwn ? device.otherPort : device.listeningPort
                guard listeningPorts.contains(port) else { return pass }
                var packet = ReferencePacket(input.bytes, facts, hasEthernet: input.hasEthernet)
                packet.rewrite(isSource: false, facts.destination, port: port)
                return Outcome(verdict: .pass, mark: pass.mark, packet: packet.bytes)
            }
        }
        let source = slot(of: facts.source)
        if wasPromised(facts, local, source) {
            if config.isStrict { return drop(.dropClearArrived) }
        } else if source == DestinationSlot.outside,
            carriesPods(ReferencePacket(input.bytes, facts, hasEthernet: input.hasEthernet)), config.isStrict
        {
            return drop(.dropEncapsulated)
        }
        guard local != nil else { return pass }
        let own = key(facts, interface: input.interface)
        if flows[own] != nil {
            account(own, facts)
        } else if source >= DestinationSlot.firstPeer, flows[reversed(facts, interface: 0)] == nil {
            flows[own] = Flow(slot: slot(of: facts.destination), tcpFlags: facts.tcpFlags)
        }
        return pass
    }

    // MARK: What is promised

    private func isExemptSlot(_ slot: Int) -> Bool { actions[slot] == .exempt }

    private func wasPromised(_ facts: PacketFacts, _ local: LocalAddress?, _ source: Int) -> Bool {
        if source == DestinationSlot.outside || isExemptSlot(source) { return false }
        if let local, local.kind != .pod, !config.encryptsHosts,
            slot(of: facts.destination) == DestinationSlot.outside
        {
            return false
        }
        if local == nil, slot(of: facts.destination) == DestinationSlot.outside { return false }
        return !(config.encryptsHosts && endpoints.contains(facts.source) && isExemptPort(facts))
    }

    private func carriesPods(_ packet: ReferencePacket) -> Bool {
        guard let (source, destination) = packet.inner(vxlanPorts: config.vxlanPorts), config[source.family] != nil
        else { return false }
        return [source, destination].map(slot(of:)).allSatisfy { $0 >= DestinationSlot.pool && !isExemptSlot($0) }
    }

    private func isExemptPort(_ facts: PacketFacts) -> Bool {
        if facts.source.family == .ipv6, facts.transport == 58 { return (133...137).contains(facts.icmpType) }
        guard facts.fragment == .whole, facts.transport == 6 || facts.transport == 17 else { return false }
        return config.exemptPorts.contains {
            $0.transport == facts.transport
                && ($0.ports.contains(facts.sourcePort) || $0.ports.contains(facts.destinationPort))
        }
    }

    private func isStrictLeak(_ flow: Flow) -> Bool {
        flow.slot != DestinationSlot.outside && actions[flow.slot] != .exempt && !flow.isExempt && flow.isPromised
            && config.isStrict
    }

    // MARK: Decision

    private func redirect(_ flow: Flow, _ packet: [UInt8]) -> Outcome {
        Outcome(
            verdict: .redirect, mark: PacketMark.counted | (flow.isHost ? PacketMark.host : 0), packet: packet,
            reason: .tunnelled)
    }

    mutating func account(_ key: FlowKey, _ facts: PacketFacts) {
        if facts.startsConnection {
            flows[key]?.tcpFlags = facts.tcpFlags
        } else {
            flows[key]?.tcpFlags |= facts.tcpFlags
        }
    }

    private mutating func decide(
        _ facts: PacketFacts, interface: UInt32, reply: UInt32, isPod: Bool, isCounted: Bool
    ) -> Flow {
        let own = key(facts, interface: interface)
        let known = flows[own]
        if let known, !facts.startsConnection {
            if !isCounted { account(own, facts) }
            return known
        }
        var flow = Flow(slot: slot(of: facts.destination))
        if isPod, config.checksSources, isSpoofed(facts, interface) {
            flow.isPassed = true
            flow.isSpoofed = true
            return flow
        }
        judgeSource(facts, interface: interface, reply: reply, &flow)
        if isPod, locals[facts.source] == nil { flow.isPromised = true }
        if known == nil, flow.slot == DestinationSlot.outside, !isPod { return flow }
        // What the host begins in clear stays so.
        let action = actions[flow.slot] ?? .clear
        if flow.isHost, flow.slot != DestinationSlot.outside {
            let hasTunnelAddress = config[facts.source.family]?.address == facts.source
            let beginsInClear = [.clear, .draining].contains(action) && !config.isStrict && !hasTunnelAddress
            if action == .exempt || beginsInClear { flow.isPassed = true }
        }
        flow.tcpFlags = known?.tcpFlags ?? (isCounted ? 0 : facts.tcpFlags)
        flows[own] = flow
        if known != nil, !isCounted { account(own, facts) }
        // The stack's answers come by the stack.
        if !isPod, config.isDirect, action == .tunnel, !flow.isPassed, !flow.isHost, !facts.isICMP,
            let device = config[facts.source.family]
        {
            let back = reversed(facts, interface: device.interface)
            flows[back, default: Flow(slot: DestinationSlot.local)].takesStack = true
        }
        return flow
    }

    private func isSpoofed(_ facts: PacketFacts, _ interface: UInt32) -> Bool {
        if let local = locals[facts.source], local.kind == .pod, [0, interface].contains(local.interface) {
            return false
        }
        guard checkedInterfaces.contains(interface) else { return false }
        let isLinkBusiness =
            facts.source.isLinkLocal && facts.source.family == .ipv6
            || facts.source.isUnspecified
                && (facts.source.family == .ipv6
                    ? facts.transport == 58 : facts.transport == 17 && facts.destinationPort == 67)
        return !isLinkBusiness
            && !allowedSources.contains { $0.interface == interface && $0.prefix.contains(facts.source) }
    }

    private func judgeSource(
        _ facts: PacketFacts, interface: UInt32, reply: UInt32, _ flow: inout Flow
    ) {
        guard let local = locals[facts.source] else {
            let source = slot(of: facts.source)
            flow.isPassed = interface == 0 || source != DestinationSlot.local
            flow.isPromised = source != DestinationSlot.outside
            return
        }
        if local.kind == .pod {
            flow.isPromised = true
            flow.isPassed = local.interface != 0 && interface != 0 && local.interface != interface
            return
        }
        flow.isHost = true
        if config.encryptsHosts, endpoints.contains(facts.destination), isExemptPort(facts) {
            flow.isPassed = true
            flow.isExempt = true
        } else if local.kind == .tunnel {
            flow.isPromised = true
        } else {
            flow.isPassed = continues(facts, reply: reply)
            flow.isPromised = !flow.isPassed
        }
    }

    /// Whether the host answers, or goes on with, what began in clear.
    private func continues(_ facts: PacketFacts, reply: UInt32) -> Bool {
        if facts.isICMP { return facts.isEcho && !facts.isEchoRequest }
        let out = Half(
            source: facts.source, destination: facts.destination, sourcePort: facts.sourcePort,
            destinationPort: facts.destinationPort, transport: facts.transport, isOutgoing: true)
        if facts.fragment != .whole || translations[out] != nil { return false }
        if facts.transport == 6 {
            if facts.startsConnection { return false }
            if !config.isStrict { return true }
        }
        guard reply != 0, let begun = flows[reversed(facts, interface: reply)] else { return false }
        return facts.transport != 6 || begun.tcpFlags & 2 != 0
    }
}
