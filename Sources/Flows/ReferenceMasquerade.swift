// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Model

/// The hooks of WireGuard's device, on plain values.
extension ReferenceModel {
    /// One half of a mapping, as the packet that it is looked up for bears it.
    struct Half: Sendable, Hashable {
        var source: IPAddress
        var destination: IPAddress
        var sourcePort: UInt16
        var destinationPort: UInt16
        var transport: UInt8
        var isOutgoing: Bool
    }

    struct Translation: Sendable, Hashable {
        var address: IPAddress
        var port: UInt16
    }

    /// Whether some mapping has another port than the packet's own.
    public var hasCollided: Bool { translations.contains { $0.key.isOutgoing && $0.key.sourcePort != $0.value.port } }

    /// Egress. `chosen`: the port that the program has taken where the packet's own was not free;
    /// the model says whether it may.
    public mutating func toWireGuard(_ input: Input, chosen: UInt16?) -> Outcome {
        let isHost = input.mark & PacketMark.host != 0
        if !isHost, input.mark & PacketMark.counted != 0 {
            return Outcome(verdict: .pass, mark: input.mark & ~PacketMark.counted, packet: input.bytes)
        }
        let mark = isHost ? 0 : input.mark
        let parsed = ParsedPacket(input.bytes, hasEthernet: input.hasEthernet)
        guard case .facts(let facts) = parsed else { return unparsed(parsed, input, mark: mark) }
        var packet = ReferencePacket(input.bytes, facts, hasEthernet: input.hasEthernet)
        let device = config[facts.source.family]
        if !isHost {
            packet.clampSegment(device?.maximumSegment ?? 0)
            guard let local = locals[facts.source], local.kind != .pod else {
                return Outcome(verdict: .pass, mark: mark, packet: packet.bytes)
            }
        }
        guard let tunnel = device?.address else { return Outcome(verdict: .drop, mark: mark) }
        let known = UInt16(bigEndian: UInt16(input.mark >> 16))
        if isHost, known != 0 {
            packet.rewrite(isSource: true, tunnel, port: known)
        } else if facts.isError {
            translateQuote(&packet, facts, isOutgoing: true)
            packet.rewrite(isSource: true, tunnel, port: nil)
        } else if facts.fragment == .later || facts.isICMP && !facts.isEchoRequest {
            packet.rewrite(isSource: true, tunnel, port: nil)
        } else {
            guard let mapping = mapping(for: facts, tunnel, chosen) else { return Outcome(verdict: .drop, mark: mark) }
            packet.rewrite(isSource: true, mapping.address, port: mapping.port)
        }
        return Outcome(verdict: .pass, mark: mark, packet: packet.bytes)
    }

    /// The mapping of what the node sends; nil: no port is free.
    private mutating func mapping(for facts: PacketFacts, _ tunnel: IPAddress, _ chosen: UInt16?) -> Translation? {
        let out = Half(
            source: facts.source, destination: facts.destination, sourcePort: facts.sourcePort,
            destinationPort: facts.destinationPort, transport: facts.transport, isOutgoing: true)
        if let known = translations[out] { return known }
        func answer(_ port: UInt16) -> Half {
            Half(
                source: facts.destination, destination: tunnel, sourcePort: facts.isICMP ? port : facts.destinationPort,
                destinationPort: facts.isICMP ? 0 : port, transport: facts.transport, isOutgoing: false)
        }
        var port = facts.sourcePort
        if translations[answer(port)] != nil {
            guard facts.hasPort, facts.source != tunnel, let chosen, config.masqueradePorts.contains(chosen),
                translations[answer(chosen)] == nil
            else { return nil }
            port = chosen
        }
        translations[answer(port)] = Translation(address: facts.source, port: facts.sourcePort)
        translations[out] = Translation(address: tunnel, port: port)
        return translations[out]
    }

    /// Ingress.
    public mutating func fromWireGuard(_ input: Input) -> Outcome {
        let pass = Outcome(verdict: .pass, mark: input.mark, packet: input.bytes)
        let drop = Outcome(verdict: .drop, mark: input.mark)
        let parsed = ParsedPacket(input.bytes, hasEthernet: input.hasEthernet)
        guard case .facts(var facts) = parsed else { return pass }
        var packet = ReferencePacket(input.bytes, facts, hasEthernet: input.hasEthernet)
        let local = locals[facts.destination]
        if local?.kind == .tunnel {
            guard restore(&packet, &facts) else { return drop }
        }
        packet.clampSegment(config[facts.source.family]?.maximumSegment ?? 0)
        let own = key(facts, interface: input.interface)
        var takesStack = false
        if let flow = flows[own] {
            takesStack = flow.takesStack
            account(own, facts)
        } else {
            flows[own] = Flow(slot: slot(of: facts.destination), tcpFlags: facts.tcpFlags)
        }
        let mtu = Int(local?.mtu ?? 0)
        let fits = mtu == 0 || packet.size(segment: input.segment) <= mtu
        guard let local, local.kind == .pod, local.interface != 0, config.isDirect, !takesStack,
            facts.fragment == .whole, facts.hopLimit > 1, !facts.isError, fits
        else { return Outcome(verdict: .pass, mark: input.mark, packet: packet.bytes) }
        packet.hop()
        let type: [UInt8] = facts.source.family == .ipv4 ? [8, 0] : [0x86, 0xdd]
        let addresses = local.farEnd?.bytes ?? [UInt8](repeating: 0, count: 12)
        return Outcome(
            verdict: .redirect, mark: local.farEnd == nil ? input.mark : 0, packet: addresses + type + packet.bytes)
    }

    /// Undoes a masquerade in the packet and in what is known of it; false: it is dropped.
    private mutating func restore(_ packet: inout ReferencePacket, _ facts: inout PacketFacts) -> Bool {
        if facts.fragment == .later {
            guard let address = fragments[FragmentName(facts)] else { return false }
            if address != facts.destination {
                packet.rewrite(isSource: false, address, port: nil)
                facts.destination = address
            }
            return true
        }
        if facts.isError {
            if let address = translateQuote(&packet, facts, isOutgoing: false) {
                packet.rewrite(isSource: false, address, port: nil)
                facts.destination = address
            }
            return true
        }
        let half = Half(
            source: facts.source, destination: facts.destination, sourcePort: facts.sourcePort,
            destinationPort: facts.destinationPort, transport: facts.transport, isOutgoing: false)
        let name = FragmentName(facts)
        guard let found = translations[half] else {
            if facts.fragment == .first { fragments[name] = facts.destination }
            return true
        }
        if facts.fragment == .first { fragments[name] = found.address }
        packet.rewrite(isSource: false, found.address, port: found.port)
        facts.destination = found.address
        if facts.isICMP { facts.sourcePort = found.port } else { facts.destinationPort = found.port }
        return true
    }

    /// Translates what an ICMP error quotes; the address that its mapping writes, nil without one.
    @discardableResult
    private func translateQuote(
        _ packet: inout ReferencePacket, _ facts: PacketFacts, isOutgoing: Bool
    ) -> IPAddress? {
        guard let quote = packet.quote else { return nil }
        let half = Half(
            source: quote.destination, destination: quote.source,
            sourcePort: quote.isICMP ? quote.sourcePort : quote.destinationPort,
            destinationPort: quote.isICMP ? 0 : quote.sourcePort, transport: quote.transport, isOutgoing: isOutgoing)
        guard let found = translations[half] else { return nil }
        packet.rewriteQuote(quote, isSource: !isOutgoing, found.address, port: found.port)
        return found.address
    }
}

/// What the fragments of one datagram share.
struct FragmentName: Sendable, Hashable {
    var source: IPAddress
    var destination: IPAddress
    var identification: UInt32
    /// Of IPv4; a later fragment of IPv6 may name another header.
    var transport: UInt8

    init(_ facts: PacketFacts) {
        source = facts.source
        destination = facts.destination
        identification = facts.identification
        transport = facts.source.family == .ipv4 ? facts.transport : 0
    }
}
