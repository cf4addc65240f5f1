// SPDX-License-Identifier: Apache-2.0

public import BPF
public import DataplaneMaps
internal import Logging
public import Model
internal import Netlink
internal import Reconciler

/// Steering by the TC programs: fills their maps and attaches them.
///
/// Order makes before it breaks: slots, endpoints, addresses, routes, then the
/// slots' actions, then the programs; what is wanted no more goes after what is new is there.
/// The maps are pinned and outlive the agent; the next one adopts them as they are.
public struct EBPFSteering: SteeringBackend {
    public let maps: NodeMaps
    public let mechanism: AttachmentMechanism
    let layout: PinLayout
    private var programs: DataplanePrograms
    private var slots = SlotAssignment()
    var routes = Reconciler<CIDR, PlacedRoute>()
    var addresses = AddressRoutes()
    var locals = Reconciler<IPAddress, LocalAddress>()
    var endpoints = Reconciler<IPAddress, EndpointValue>()
    var hooks = Reconciler<HookPoint, UInt32>()
    var sources = Reconciler<AllowedSource, Bool>()
    var interfaces = Reconciler<UInt32, Bool>()
    private var config: DataplaneConfig?
    /// Peers whose slots and whose endpoints are as they should be; nil: that is to be seen.
    var preparedPeers: [PeerSlotKey: PeerSteering]?
    private var endpointPeers: [PeerSlotKey: PeerSteering]?
    /// Routes of the plan that are as they should be; nil: that is to be seen.
    private var settledRoutes: [CIDR: SteeringTarget]?
    /// As devices are called now.
    var names: [UInt32: String] = [:]
    /// What earlier agents have left that this one does not use is gone.
    private var hasSwept = false

    struct EndpointValue: Equatable, Sendable {
        var endpoint: Endpoint
        var slot: Int
    }

    /// Loads the programs, and adopts the pinned maps of an earlier agent.
    public init(layout: PinLayout, mechanism: AttachmentMechanism) throws {
        self.mechanism = mechanism
        self.layout = layout
        try layout.create()
        layout.shareMaps()
        programs = try DataplanePrograms(layout, mechanism: mechanism)
        maps = try NodeMaps(layout)
        try adopt()
        addresses.adopt(try maps.routes.addressEntries())
    }

    /// How programs are attached where this is chosen; throws where the kernel has it not.
    public static func mechanism(_ attachment: AttachmentChoice) throws -> AttachmentMechanism {
        switch attachment {
        case .auto: return AttachmentMechanism.probe()
        case .tcx:
            guard AttachmentMechanism.probe() == .tcx else {
                throw BPFError.unsupported(feature: "tcx, which bpfAttachType TCX asks for", minimumKernel: "6.6")
            }
            return .tcx
        case .tc: return .clsact
        }
    }

    private mutating func adopt() throws {
        (preparedPeers, endpointPeers, settledRoutes) = (nil, nil, nil)
        let before = slots
        slots = SlotAssignment(try maps.destinations.slotOwners(), count: maps.destinations.count)
        if !slots.agrees(with: before) { addresses.noteSlots() }
        maps.destinations.setAction(DestinationSlot.outside, .clear)
        maps.destinations.setAction(DestinationSlot.pool, .clear)
        maps.destinations.setAction(DestinationSlot.local, .stack)
        routes.adopt(try maps.routes.placedPrefixes().mapValues { PlacedRoute(slot: $0.slot, place: $0.place) })
        locals.adopt(try maps.locals.entries())
        sources.adopt(Dictionary(uniqueKeysWithValues: try maps.allowedSources.entries().map { ($0, true) }))
        interfaces.adopt(Dictionary(uniqueKeysWithValues: try maps.interfaces.entries().map { ($0, true) }))
        endpoints.adopt(
            try maps.endpoints.entries().mapValues { EndpointValue(endpoint: $0.endpoint, slot: $0.slot) })
        let (written, generation) = try maps.config.read()
        config = generation == 0 ? nil : written
    }

    /// Routes of single addresses as they were put into the map: slots.
    public var placedAddresses: [IPAddress: UInt32] { addresses.applied }

    /// Forgets what it believes of the maps and devices, so that the next `apply` mends drift.
    /// `changed`: whose routes differ from `placedAddresses`, where that has been seen already.
    public mutating func resync(changed: [IPAddress]? = nil) throws {
        try maps.restorePins(layout)
        try adopt()
        addresses.adopt(changes: try addressChanges(seen: changed))
        hooks.adopt(try attachedHooks())
    }

    /// Lets the plan's peers speak WireGuard to us, before any is told to: a handshake
    /// whose answer is refused is tried again only after five seconds.
    public mutating func admit(_ plan: SteeringPlan) throws {
        var problems: [Problem] = []
        try prepareSlots(plan, &problems)
        let table = maps
        guard !hasEndpoints(plan) else { return }
        endpoints.update(to: wantedEndpoints(plan)) { try table.endpoints.update($1.endpoint, slot: $1.slot) }
    }

    /// What has been seen may be older than what was written last: few are read anew, else all.
    private func addressChanges(seen: [IPAddress]?) throws -> [IPAddress: UInt32?] {
        guard let seen, seen.count < 1024 else { return try maps.routes.addressChanges(since: addresses.applied) }
        var changes: [IPAddress: UInt32?] = [:]
        for address in seen { changes[address] = .some(try maps.routes.ownSlot(of: address).map(UInt32.init)) }
        return changes
    }

    public mutating func apply(_ plan: SteeringPlan) throws -> [Problem] { try apply(plan) {} }

    /// `beforePods` is called when what steers at the uplinks is in place and pods' devices have nothing new yet.
    public mutating func apply(_ plan: SteeringPlan, beforePods: () -> Void) throws -> [Problem] {
        var problems: [Problem] = []
        var wantedConfig = plan.config.keeping(plan.preserved, of: config)
        chooseBlockLengths(plan, &wantedConfig)
        // Those of the other attachment work until all of ours are in place.
        wantedConfig.isClsact = config?.isClsact ?? (mechanism == .clsact)
        try write(wantedConfig)
        try prepareSlots(plan, &problems)
        applyAddresses(plan)
        applyRoutes(plan)
        for (key, peer) in plan.peers {
            if let slot = slots[key] { maps.destinations.setAction(slot, peer.action) }
        }
        // Programs of another version know what their own maps know, until ours know it all.
        if !hasSwept, plan.preserved.isEmpty, isWritten { layout.takeOverLinks() }
        applyHooks(plan, beforePods)
        if hooks.errors.isEmpty, plan.preserved.isEmpty {
            wantedConfig.isClsact = mechanism == .clsact
            try write(wantedConfig)
            removeStrayLinks(plan)
        }
        if hooks.errors.isEmpty, plan.preserved.isEmpty, !hasSwept, isWritten {
            hasSwept = true
            try layout.removeOtherVersions()
            try removeStrayFilters(plan)
        }
        try releaseSlots(plan)
        problems += report()
        return problems
    }

    private mutating func write(_ wanted: DataplaneConfig) throws {
        guard config != wanted else { return }
        try maps.config.write(wanted)
        config = wanted
    }

    /// Whether the programs are those that may ask conntrack.
    public var canAskConntrack: Bool { programs.mayAskConntrack }

    // MARK: Slots

    private mutating func prepareSlots(_ plan: SteeringPlan, _ problems: inout [Problem]) throws {
        let changed = plan.peers.filter { preparedPeers?[$0.key] != $0.value }
        guard !changed.isEmpty || preparedPeers?.count != plan.peers.count else { return }
        (preparedPeers, settledRoutes) = (nil, nil)
        var isWhole = true
        for (key, peer) in changed.sorted(by: { $0.key < $1.key }) {
            let owner = SlotOwner(node: key.node, family: key.family, publicKey: peer.publicKey)
            guard let slot = slots.assign(key) else {
                problems.append(
                    Problem(
                        resource: "Node/\(key.node)",
                        message: "has no place among the destinations, and is not steered",
                        remedy: "at most \(maps.destinations.count - DestinationSlot.firstPeer) peers are possible"))
                isWhole = false
                continue
            }
            if slots.owner(slot)?.node != key.node { addresses.noteSlots() }
            if slots.owner(slot) != owner {
                try maps.destinations.setOwner(slot, owner)
                slots.setOwner(slot, owner)
            }
            // Lanes are never taken away: the slot's word says tunnel until its action is set, and
            // a program that has read the word reads the lanes after it.
            if !peer.lanes.isEmpty {
                maps.destinations.setLanes(slot, family: key.family, interfaces: peer.lanes)
            }
        }
        if isWhole { preparedPeers = plan.peers }
    }

    private mutating func releaseSlots(_ plan: SteeringPlan) throws {
        let idle = slots.others(than: plan.peers).filter { !plan.preserved.contains($0.key.family) }
        guard !idle.isEmpty else { return }
        // Not while a route or an endpoint still leads there.
        var used = Set(routes.applied.values.map(\.slot)).union(endpoints.applied.values.map(\.slot))
        for slot in addresses.applied.values { used.insert(Int(slot)) }
        for (key, slot) in idle where !used.contains(slot) {
            maps.destinations.setAction(slot, .clear)
            maps.destinations.raiseGeneration(slot)
            try maps.destinations.setOwner(slot, nil)
            slots.release(key)
            (preparedPeers, settledRoutes) = (nil, nil)
        }
    }

    // MARK: Addresses

    /// Whether the peers' endpoints are as they should be.
    private func hasEndpoints(_ plan: SteeringPlan) -> Bool {
        guard endpoints.errors.isEmpty, let known = endpointPeers, known.count == plan.peers.count else { return false }
        return plan.peers.allSatisfy { known[$0.key]?.endpoints == $0.value.endpoints }
    }

    private func wantedEndpoints(_ plan: SteeringPlan) -> [IPAddress: EndpointValue] {
        var wanted: [IPAddress: EndpointValue] = [:]
        for (key, peer) in plan.peers.sorted(by: { $0.key < $1.key }) {
            guard let slot = slots[key] else { continue }
            let endpoints = Array(peer.endpoints)
            for endpoint in endpoints.count < 2 ? endpoints : endpoints.sorted(by: { $0.description < $1.description })
            {
                wanted[endpoint.address] = EndpointValue(endpoint: endpoint, slot: slot)
            }
        }
        return wanted.merging(endpoints.applied.filter { plan.preserved.contains($0.key.family) }) { own, _ in own }
    }

    private mutating func applyAddresses(_ plan: SteeringPlan) {
        let table = maps
        if !hasEndpoints(plan) || !plan.preserved.isEmpty {
            endpointPeers = nil
            let wanted = wantedEndpoints(plan)
            endpoints.update(to: wanted) { try table.endpoints.update($1.endpoint, slot: $1.slot) }
            endpoints.prune(to: wanted) { try table.endpoints.delete($0) }
            if endpoints.errors.isEmpty, plan.preserved.isEmpty, preparedPeers != nil { endpointPeers = plan.peers }
        }
        let wantedLocals = plan.locals.merging(
            locals.applied.filter { plan.preserved.contains($0.key.family) && $0.value.kind == .tunnel }
        ) { _, kept in kept }
        let changed = locals.update(to: wantedLocals) { try table.locals.update($0, $1) }
        let gone = locals.prune(to: wantedLocals) { try table.locals.delete($0) }
        let wantedSources = Dictionary(uniqueKeysWithValues: plan.allowedSources.map { ($0, true) })
        let wantedInterfaces = Dictionary(uniqueKeysWithValues: plan.checkedInterfaces.map { ($0, true) })
        // What is permitted comes first, what is checked last; and the other way round.
        let unchecked = interfaces.prune(to: wantedInterfaces) { try table.interfaces.delete($0) }
        let permitted = sources.update(to: wantedSources) { source, _ in try table.allowedSources.update(source) }
        let refused = sources.prune(to: wantedSources) { try table.allowedSources.delete($0) }
        let checked = interfaces.update(to: wantedInterfaces) { index, _ in
            try table.interfaces.update(checked: index)
        }
        // Every flow asks again who its source is.
        let isChanged =
            !changed.isEmpty || !gone.isEmpty || !permitted.isEmpty || !refused.isEmpty || !checked.isEmpty
            || !unchecked.isEmpty
        if isChanged { try? maps.config.raiseGeneration() }
    }

    // MARK: Routes

    private func chooseBlockLengths(_ plan: SteeringPlan, _ wanted: inout DataplaneConfig) {
        for family in AddressFamily.allCases {
            let length = RouteLayout.blockLength(plan.routes, family, inForce: config?.blockLength(family) ?? 0)
            if length != 0 { wanted.blockLengths[family] = length }
        }
    }

    private mutating func applyRoutes(_ plan: SteeringPlan) {
        let isSettled = routes.errors.isEmpty && plan.preserved.isEmpty && settledRoutes == plan.routes
        guard !isSettled else {
            addresses.set(families: plan.workloads?.families ?? [])
            return addresses.apply(plan.workloads, slots, maps, preserved: plan.preserved)
        }
        settledRoutes = nil
        var wanted: [CIDR: Int] = [:]
        var single: [IPAddress: UInt32] = [:]
        for (cidr, target) in plan.routes {
            let slot =
                switch target {
                case .pool: DestinationSlot.pool
                case .local: DestinationSlot.local
                case .peer(let key): slots[key] ?? DestinationSlot.pool
                }
            if cidr.isHost { single[cidr.address] = UInt32(slot) } else { wanted[cidr] = slot }
        }
        // A pool's word is none against a node's.
        for (cidr, route) in routes.applied where plan.preserved.contains(cidr.family) {
            if wanted[cidr] ?? DestinationSlot.pool == DestinationSlot.pool { wanted[cidr] = route.slot }
        }
        let table = maps
        let placed = RouteLayout.place(wanted, blockLengths: config?.blockLengths ?? [:])
        addresses.set(fixed: single, families: plan.workloads?.families ?? [])
        routes.update(to: placed) { try table.setRoute($0, $1) }
        addresses.apply(plan.workloads, slots, table, preserved: plan.preserved)
        routes.prune(to: placed) { try table.removeRoute($0) }
        if routes.errors.isEmpty, plan.preserved.isEmpty { settledRoutes = plan.routes }
    }

    /// Takes in that pods' addresses have other nodes; `apply` or `changeWorkloads` makes it so.
    public mutating func noteWorkloads(_ addresses: some Sequence<IPAddress>) { self.addresses.note(addresses) }

    /// Whether a plan has been applied, without which it is not known what is whose.
    public var mayChangeWorkloads: Bool { addresses.isSet }

    /// Makes the routes of pods' addresses what they should be, beside the plan's own as the last `apply` had them.
    public mutating func changeWorkloads(_ workloads: WorkloadRoutes, preserved: Set<AddressFamily>) {
        addresses.apply(workloads, slots, maps, preserved: preserved)
    }

    // MARK: Hooks

    private func attachment(_ point: HookPoint) -> Attachment {
        Attachment(interface: point.interface, direction: point.direction, mechanism: mechanism)
    }

    private func pin(_ point: HookPoint) -> String { layout.link(hook: point.hook, interface: point.interface) }

    /// The identifier of a hook's program; 0 when it cannot be loaded, which attaching will tell.
    private mutating func programIdentifier(_ point: HookPoint) -> UInt32 {
        (try? programs.program(point.hook, isEthernet: point.isEthernet).information().identifier) ?? 0
    }

    private mutating func applyHooks(_ plan: SteeringPlan, _ beforePods: () -> Void) {
        var wanted: [HookPoint: UInt32] = [:]
        for point in plan.hooks { wanted[point] = programIdentifier(point) }
        names = Dictionary(plan.hooks.map { ($0.interface, $0.device) }, uniquingKeysWith: { first, _ in first })
        var programs = programs
        let view = self
        func attach(_ point: HookPoint, _: UInt32) throws {
            try view.attachment(point).attach(
                programs.program(point.hook, isEthernet: point.isEthernet), pin: view.pin(point))
        }
        hooks.update(to: wanted.filter { $0.key.hook != .fromPod }, attach)
        beforePods()
        hooks.update(to: wanted, attach)
        // Which devices a preserved family has is not known.
        guard plan.preserved.isEmpty else { return }
        hooks.prune(to: wanted) { point in
            try view.attachment(point).detach(pin: view.pin(point))
            if view.mechanism == .clsact { try Self.removeIdleQdisc(point.interface, RouteSession()) }
        }
    }

    /// Links of an earlier agent, of the other mechanism, or of devices that are gone.
    private func removeStrayLinks(_ plan: SteeringPlan) {
        guard plan.preserved.isEmpty else { return }
        let pins = Set(mechanism == .tcx ? plan.hooks.map(pin) : [])
        for link in layout.pinnedLinks() where !pins.contains(link.pin) { try? Attachment.removePin(link.pin) }
    }

    /// Filters of an earlier agent: of the other mechanism, or on devices that are hooks no more.
    private func removeStrayFilters(_ plan: SteeringPlan) throws {
        let wanted = Set(mechanism == .clsact ? plan.hooks.map(attachment) : [])
        let session = try RouteSession()
        for device in try session.links() {
            for direction in [AttachmentDirection.ingress, .egress] {
                let filter = Attachment(interface: device.index, direction: direction, mechanism: .clsact)
                if !wanted.contains(filter), try filter.attachedProgram(pin: "") != nil {
                    try filter.detach(pin: "")
                    try Self.removeIdleQdisc(device.index, session)
                }
            }
        }
    }

    /// Whether programs that steer are attached, whichever agent has done it; also where that cannot be told.
    public static func isAttached(_ layout: PinLayout) -> Bool {
        guard layout.pinnedLinks().isEmpty, let devices = try? RouteSession().links() else { return true }
        return devices.contains { device in
            [AttachmentDirection.ingress, .egress].contains { direction in
                let filter = Attachment(interface: device.index, direction: direction, mechanism: .clsact)
                return (try? filter.attachedProgram(pin: "")) ?? nil != nil
            }
        }
    }

    /// Which of the hooks it made are really in place.
    private func attachedHooks() throws -> [HookPoint: UInt32] {
        var result: [HookPoint: UInt32] = [:]
        for point in hooks.applied.keys {
            if let program = try? attachment(point).attachedProgram(pin: pin(point)) { result[point] = program }
        }
        return result
    }
}
