// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
public import Model

/// One step of a packet's way.
public struct ExplainedHop: Sendable, Hashable, Codable {
    /// A map's entry that had a say.
    public struct Entry: Sendable, Hashable, Codable {
        public var map: String
        public var key: String
        public var value: String

        public init(map: String, key: String, value: String) {
            self.map = map
            self.key = key
            self.value = value
        }
    }

    public var node: String
    /// A hook (`from_pod`), `WireGuard`, `stack`, `network`.
    public var place: String
    /// Where that is.
    public var device: String
    /// `tunnel`, `pass`, `drop`, `encrypt`, `deliver`, `answer` (ICMP "too big").
    public var action: String
    /// As the programs count it.
    public var reason: String?
    /// In words.
    public var text: String
    public var entries: [Entry]

    public init(
        node: String, place: String, device: String, action: String, reason: String? = nil, text: String,
        entries: [Entry] = []
    ) {
        self.node = node
        self.place = place
        self.device = device
        self.action = action
        self.reason = reason
        self.text = text
        self.entries = entries
    }
}

/// Decides what the programs of one node would do with a flow's first packet: by the reference model, over the
/// contents of the node's maps.
public struct Explainer: Sendable {
    private let names: FlowNames
    private let owners: [Int: SlotOwner]
    private let destinations: [Int: Destination]
    private let routes: RouteLookup
    private let placed: [CIDR: RoutePlace]
    private let model: ReferenceModel

    public init(_ maps: NodeMaps, names: FlowNames) throws {
        self.names = names
        owners = try maps.destinations.slotOwners()
        let placed = try maps.routes.placedEntries()
        routes = RouteLookup(placed.mapValues(\.slot))
        self.placed = placed.mapValues(\.place)
        model = try ReferenceModel(maps)
        let slots = [DestinationSlot.outside, DestinationSlot.pool, DestinationSlot.local] + owners.keys
        destinations = Dictionary(uniqueKeysWithValues: slots.map { ($0, maps.destinations[$0]) })
    }

    public var config: DataplaneConfig { model.config }

    public func local(_ address: IPAddress) -> LocalAddress? { model.locals[address] }

    /// The node that an address is on; nil: outside all pools, or nobody's.
    public func node(of address: IPAddress) -> String? {
        if model.locals[address] != nil { return names.node }
        let slot = routes.slot(of: address)
        return slot == DestinationSlot.local ? names.node : owners[slot]?.node
    }

    /// What was decided, for who holds it against the programs.
    public struct Decision: Sendable {
        public var hook: Hook
        public var input: ReferenceModel.Input
        public var outcome: ReferenceModel.Outcome
    }

    // MARK: Out

    /// The first hook that a packet from this node meets. Nil: its source is no address of this node, or its family is
    /// off.
    public func firstDecision(_ packet: SyntheticPacket) -> Decision? {
        guard let local = model.locals[packet.source], model.config[packet.source.family] != nil else { return nil }
        var model = model
        if local.kind == .pod {
            let input = ReferenceModel.Input(
                bytes: packet.bytes(ethernet: true), hasEthernet: true, interface: local.interface)
            return Decision(hook: .fromPod, input: input, outcome: model.fromPod(input))
        }
        let input = ReferenceModel.Input(bytes: packet.bytes(ethernet: true), hasEthernet: true, interface: 0)
        return Decision(hook: .toUplink, input: input, outcome: model.toUplink(input))
    }

    /// What this node's programs do with a packet that begins here.
    public func outgoing(_ packet: SyntheticPacket) -> [ExplainedHop] {
        guard let first = firstDecision(packet) else { return [] }
        let isPod = first.hook == .fromPod
        let device = isPod ? names.device(first.input.interface) : "the uplink"
        var hops = [hop(first, packet, device: device)]
        guard first.outcome.verdict == .pass, isPod, slot(packet) != DestinationSlot.local else {
            if first.outcome.verdict == .redirect, first.outcome.isAnswer == false { hops.append(intoTunnel(packet)) }
            return hops
        }
        hops.append(
            ExplainedHop(
                node: node, place: "stack", device: "", action: "pass",
                text: "the kernel forwards it: routing, netfilter, kube-proxy's services"))
        var model = model
        let input = ReferenceModel.Input(
            bytes: first.outcome.packet ?? first.input.bytes, hasEthernet: true, mark: first.outcome.mark, interface: 0,
            ingress: first.input.interface)
        _ = model.fromPod(first.input)
        let second = Decision(hook: .toUplink, input: input, outcome: model.toUplink(input))
        hops.append(hop(second, packet, device: "the uplink"))
        if second.outcome.verdict == .redirect, !second.outcome.isAnswer { hops.append(intoTunnel(packet)) }
        return hops
    }

    private func intoTunnel(_ packet: SyntheticPacket) -> ExplainedHop {
        let device = model.config[packet.source.family]
        let isHost = model.locals[packet.source].map { $0.kind != .pod } ?? false
        let address = device?.address
        let writes = isHost && address != packet.source
        return ExplainedHop(
            node: node, place: Hook.toWireGuard.name, device: names.device(device?.interface ?? 0), action: "pass",
            reason: writes ? Reason.masqueraded.name : nil,
            text: writes
                ? "the node's own address becomes the tunnel's, \(address?.description ?? "none yet")"
                : "the source stays as it is",
            entries: writes
                ? [.init(map: "config", key: "address", value: address?.description ?? "none")] : [])
    }

    // MARK: In

    /// What this node's programs do with a packet for it: `encrypted`: it came out of WireGuard.
    public func incoming(_ packet: SyntheticPacket, encrypted: Bool) -> [ExplainedHop] {
        guard let decision = arrivingDecision(packet, encrypted: encrypted) else { return [] }
        let device = encrypted ? names.device(decision.input.interface) : "the uplink"
        return [hop(decision, packet, device: device)]
    }

    /// What the hook decides that a packet meets which arrives here. Nil: its family is off.
    public func arrivingDecision(_ packet: SyntheticPacket, encrypted: Bool) -> Decision? {
        guard let device = model.config[packet.source.family] else { return nil }
        var model = model
        if encrypted {
            let input = ReferenceModel.Input(
                bytes: packet.bytes(ethernet: false), hasEthernet: false, interface: device.interface)
            return Decision(hook: .fromWireGuard, input: input, outcome: model.fromWireGuard(input))
        }
        let input = ReferenceModel.Input(bytes: packet.bytes(ethernet: true), hasEthernet: true, interface: 0)
        return Decision(hook: .fromUplink, input: input, outcome: model.fromUplink(input))
    }

    // MARK: Words

    private var node: String { names.node ?? "this node" }

    private func slot(_ packet: SyntheticPacket) -> Int { routes.slot(of: packet.destination) }

    private func hop(_ decision: Decision, _ packet: SyntheticPacket, device: String) -> ExplainedHop {
        let outcome = decision.outcome
        var action = "pass"
        switch outcome.verdict {
        case .drop: action = "drop"
        case .redirect: action = outcome.isAnswer ? "answer" : decision.hook == .fromWireGuard ? "deliver" : "tunnel"
        case .pass:
            if decision.hook == .fromWireGuard, model.locals[packet.destination] != nil { action = "deliver" }
        }
        return ExplainedHop(
            node: node, place: decision.hook.name, device: device, action: action, reason: outcome.reason?.name,
            text: text(decision, packet, action), entries: entries(decision, packet))
    }

    private func text(_ decision: Decision, _ packet: SyntheticPacket, _ action: String) -> String {
        if let reason = decision.outcome.reason, decision.outcome.verdict == .drop { return reason.text }
        let slot = slot(packet)
        switch (decision.hook, action) {
        case (_, "tunnel"): return "goes into the tunnel to \(owners[slot]?.node ?? "a peer")"
        case (_, "answer"): return "is larger than the tunnel's MTU: the sender is told so by ICMP"
        case (.fromWireGuard, _):
            return "decrypted, and \(action == "deliver" ? "given to its destination" : "left to the stack")"
        case (.fromUplink, _):
            let source = routes.slot(of: packet.source)
            return source >= DestinationSlot.firstPeer
                ? "arrives in clear, which is counted" : "is none of the data plane's business"
        case (.fromPod, _) where slot == DestinationSlot.local: return "is for a pod of this node"
        case (.fromPod, _) where model.config.isDirect == false && destinations[slot]?.action == .tunnel:
            return "is marked, and steered where it leaves the node (steering path Stack)"
        default: return leaving(slot)
        }
    }

    private func leaving(_ slot: Int) -> String {
        if slot == DestinationSlot.outside { return "is for nobody in a pool: left as it is" }
        if slot == DestinationSlot.pool {
            return "is for a pool's address that is nobody's: left to the stack, in clear"
        }
        let name = owners[slot]?.node ?? "its node"
        switch destinations[slot]?.action {
        case .clear: return "goes in clear: \(name) has no WireGuard, or has not shaken hands yet"
        case .exempt: return "goes in clear by the operator's choice"
        case .draining: return "goes in clear: WireGuard of \(name) is going away"
        default: return "is left to the stack"
        }
    }

    private func entries(_ decision: Decision, _ packet: SyntheticPacket) -> [ExplainedHop.Entry] {
        var result: [ExplainedHop.Entry] = []
        let suffix = packet.source.family == .ipv4 ? "4" : "6"
        func add(local address: IPAddress) {
            guard let local = model.locals[address] else { return }
            result.append(
                .init(
                    map: "locals\(suffix)", key: address.description,
                    value: "\(local.kind)\(local.interface == 0 ? "" : " at \(names.device(local.interface))")"))
        }
        func add(route address: IPAddress) {
            guard let (prefix, slot) = routes.route(to: address) else {
                return result.append(
                    .init(map: "route_prefixes\(suffix)", key: address.description, value: "none: outside"))
            }
            let place = placed[prefix] ?? .prefix
            let map = place == .address ? "route_addresses" : place == .block ? "route_blocks" : "route_prefixes"
            result.append(.init(map: map + suffix, key: prefix.description, value: name(slot)))
            let destination = destinations[slot]
            let lanes = destination?.lanes.map { names.device($0) }.joined(separator: " ") ?? ""
            result.append(
                .init(
                    map: "destinations", key: name(slot),
                    value: (destination?.action.name ?? "clear") + (lanes.isEmpty ? "" : " by \(lanes)")))
        }
        switch decision.hook {
        case .fromPod:
            add(local: packet.source)
            if decision.outcome.reason != .dropSpoofed { add(route: packet.destination) }
        case .fromWireGuard: add(local: packet.destination)
        case .fromUplink:
            add(local: packet.destination)
            add(route: packet.source)
        default:
            add(local: packet.source)
            add(route: packet.destination)
        }
        if decision.outcome.verdict == .drop, model.config.isStrict {
            result.append(.init(map: "config", key: "strict", value: "true"))
        }
        return result
    }

    private func name(_ slot: Int) -> String {
        switch slot {
        case DestinationSlot.outside: "outside"
        case DestinationSlot.pool: "pool"
        case DestinationSlot.local: "local"
        default: owners[slot]?.node ?? "slot \(slot)"
        }
    }
}

extension ReferenceModel {
    /// The model of a node as its maps are: as for flows that begin now.
    public init(_ maps: NodeMaps) throws {
        let owners = try maps.destinations.slotOwners()
        let slots = [DestinationSlot.outside, DestinationSlot.pool, DestinationSlot.local] + owners.keys
        self.init(
            config: try maps.config.read().0, routes: try maps.routes.entries(), locals: try maps.locals.entries(),
            endpoints: Set(try maps.endpoints.entries().keys),
            actions: Dictionary(uniqueKeysWithValues: slots.map { ($0, maps.destinations[$0].action) }))
        checkedInterfaces = try maps.interfaces.entries()
        allowedSources = try maps.allowedSources.entries()
        for (key, entry) in try maps.masquerade.entries() {
            let half = Half(
                source: key.source, destination: key.destination, sourcePort: key.sourcePort,
                destinationPort: key.destinationPort, transport: key.transport, isOutgoing: key.isOutgoing)
            translations[half] = Translation(address: entry.address, port: entry.port)
        }
    }
}
