// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Datastore
internal import DesiredState
internal import Logging
internal import Model
internal import Netlink
internal import Steering
internal import WireGuard

/// What the data plane should be.
extension NodeController {
    func steeringPlan(_ plan: NodePlan, _ facts: KernelFacts, _ uplinks: [Link]) throws -> SteeringPlan {
        func device(_ family: AddressFamily) -> DataplaneConfig.Device? {
            guard let state = families[family], let device = state.device else { return nil }
            let ports = ports(state)
            var result = DataplaneConfig.Device(
                interface: device.interface, listeningPort: ports.now, address: state.address,
                mtu: UInt16(clamping: state.mtu), maximumSegment: maximumSegment(family, state.mtu, plan.settings))
            result.otherPort = ports.other
            return result
        }
        let devices = deviceNames
        let overlays = facts.overlays(excluding: devices.union(uplinks.map(\.name)))
        let podLinks = facts.podDevices(
            plan.pods, prefixes: plan.settings.podInterfacePrefixes, uplinks: uplinks + overlays)
        inspected = Inspected(
            pods: podLinks, names: devices.union((podLinks + uplinks + overlays).map(\.name)))
        var result = SteeringPlan(
            config: DataplaneConfig(
                ipv4: device(.ipv4), ipv6: device(.ipv6), firewallMark: plan.settings.firewallMark,
                isDirect: path(plan).path == .direct))
        result.config.oldFirewallMark = formerMark?.mark ?? 0
        configure(&result.config, plan)
        result.routing = routingPlan(plan)
        let pools = plan.ipv4.pools + plan.ipv6.pools
        result.routing?.localAddresses = Set(
            facts.hostRoutes.filter { route in
                !devices.contains(facts.link(route.value)?.name ?? "") && pools.contains { $0.contains(route.key) }
            }.keys)
        result.preserved = isComplete ? unsettled : Set(AddressFamily.allCases)
        for family in guardedOnly(plan) { addGuarded(family, plan, to: &result) }
        for (family, state) in families where !unsettled.contains(family) {
            guard let device = state.device else { continue }
            addPeers(family, state, plan[family], peerPlans(family, plan), device, to: &result)
            for (cidr, target) in plan[family].routes {
                switch target {
                case .pool: result.routes[cidr] = .pool
                case .local: result.routes[cidr] = .local
                case .node(let name): result.routes[cidr] = .peer(PeerSlotKey(node: name, family: family))
                }
            }
            result.hooks += [Hook.toWireGuard, .fromWireGuard].map {
                HookPoint(hook: $0, interface: device.interface, device: device.name, isEthernet: false)
            }
        }
        // With their owners as they are when it comes to that.
        if inventory.workloads != nil {
            result.workloads = WorkloadRoutes(node: options.node, owners: [:], families: routedFamilies(plan))
        }
        result.locals = facts.locals(
            pods: plan.pods, deviceAddresses: families.values.compactMap(\.address),
            farEnds: farEnds.look(podLinks, try session()))
        if isStrict(plan) { result.guardPlan = guardPlan(plan) }
        if plan.settings.sourceCheck == .enabled {
            (result.checkedInterfaces, result.allowedSources) = facts.sources(plan.pods)
        }
        for link in uplinks + overlays {
            result.hooks += [Hook.toUplink, .fromUplink].map {
                HookPoint(hook: $0, interface: link.index, device: link.name, isEthernet: link.isEthernet)
            }
        }
        for link in podLinks {
            result.hooks.append(
                HookPoint(hook: .fromPod, interface: link.index, device: link.name, isEthernet: true))
        }
        return result
    }

    // MARK: Strict mode

    func isStrict(_ plan: NodePlan) -> Bool {
        promisesStrictness(plan)
            && (families.values.contains { $0.drainingUntil == nil } || !guardedOnly(plan).isEmpty)
    }

    /// Strict mode ends by a word only: a configuration that is gone or cannot be read is none.
    private func promisesStrictness(_ plan: NodePlan) -> Bool {
        plan.settings.strictMode.map { $0 == .enabled } ?? strictInForce
    }

    /// What an earlier agent has promised, as the pinned configuration or the state folder tells.
    func rememberStrictness(_ pinned: DataplaneConfig?) {
        promised.subtract(assumed)
        assumed = []
        var damage: (any Error)?
        do { guardState = try GuardState.read(options.stateDirectory) } catch { damage = error }
        // The file is there in strict mode only, whatever it holds.
        strictInForce = pinned?.isStrict ?? (guardState != nil || damage != nil)
        for family in AddressFamily.allCases {
            let isKept = guardState?.pools.contains { $0.family == family } ?? false
            let isAssumed = guardState?.assumed?.contains(family) ?? (damage != nil && pinned == nil)
            guard strictInForce, pinned?[family] != nil || isKept || isAssumed else { continue }
            promised.insert(family)
            if isAssumed { assumed.insert(family) }
        }
        if let damage, pinned == nil {
            logger.error("strict mode is taken to be on", metadata: ["reason": "\(damage)"])
        }
    }

    /// Says that strict mode stays on although the resources do not say so any more.
    func noteStrictness(_ plan: NodePlan, _ problems: inout [Problem]) {
        // All is told: what was only assumed of a family is over where another one alone has a word.
        if isComplete, AddressFamily.allCases.contains(where: { plan.settings.isEnabled($0) != nil }) {
            promised.subtract(assumed.filter { plan.settings.isEnabled($0) == nil })
        }
        strictInForce = isStrict(plan)
        if !strictInForce { promised = [] }
        for family in AddressFamily.allCases {
            // A family is promised from when it is on until it is switched off by a word.
            if plan.settings.isEnabled(family) == false { promised.remove(family) }
            if strictInForce, plan.settings.isEnabled(family) == true {
                promised.insert(family)
                assumed.remove(family)
            }
        }
        assumed.formIntersection(promised)
        for family in assumed.sorted() {
            problems.append(
                Problem(
                    .warning, resource: "Guard", field: "state", value: GuardState.path(options.stateDirectory),
                    message: "was damaged, so strict mode is taken to promise \(family)",
                    remedy: "say in FelixConfiguration/default which families are encrypted"))
        }
        guard strictInForce, plan.settings.strictMode == nil else { return }
        problems.append(
            Problem(
                .warning, resource: "DataplaneConfiguration/default", field: "spec.wireguardStrictMode",
                message: "says nothing that can be read, and strict mode stays on",
                remedy: "set it to Enabled, or to Disabled to end the promise"))
    }

    /// Whether the data plane is to be there: a family is on or on its way out, or is promised and
    /// cannot be.
    func isActive(_ plan: NodePlan) -> Bool { !families.isEmpty || isStrict(plan) }

    private func configure(_ config: inout DataplaneConfig, _ plan: NodePlan) {
        config.isStrict = isStrict(plan)
        config.encryptsHosts = plan.encryptsHosts
        config.checksSources = plan.settings.sourceCheck == .enabled
        // Asked where the kernel has the function, which the programs find out.
        config.asksConntrack = true
        config.admitsAnybody = AddressFamily.allCases.contains { family in
            plan[family].peers.values.contains { $0.endpoint == nil }
        }
        config.masqueradePorts = plan.settings.natPorts
        config.vxlanPorts = vxlanPorts(plan)
        config.exemptPorts = plan.encryptsHosts ? plan.settings.hostExemptPorts : []
        for family in guardedOnly(plan) {
            config[family] = .init(interface: 0, listeningPort: plan.settings[family].listeningPort)
        }
    }

    /// Calico's, which may have been changed, and flannel's.
    private func vxlanPorts(_ plan: NodePlan) -> [UInt16] { [plan.settings.vxlanPort, 8472] }

    private func maximumSegment(_ family: AddressFamily, _ mtu: UInt32, _ settings: Settings) -> UInt16 {
        switch settings.segmentClamp {
        case .disabled: 0
        case .limit(let limit): limit
        // Less IP's and TCP's headers without options.
        case .auto: UInt16(clamping: Int(mtu) - (family == .ipv4 ? 40 : 60))
        }
    }

    /// Families that are switched on and have no device, for want of an underlay address or because
    /// it cannot be made: their pods' packets are promised all the same, so they are dropped in
    /// strict mode, else counted.
    func guardedOnly(_ plan: NodePlan) -> [AddressFamily] {
        AddressFamily.allCases.filter {
            guard plan.settings.isEnabled($0) ?? promised.contains($0) else { return false }
            guard let state = families[$0] else { return true }
            return state.device == nil && state.drainingUntil == nil && !state.wasPinned
        }
    }

    private func addGuarded(_ family: AddressFamily, _ plan: NodePlan, to result: inout SteeringPlan) {
        var names = Set(inventory.workloads?[family].keys.filter { $0 != options.node } ?? [])
        for (cidr, target) in plan[family].routes {
            switch target {
            case .pool: result.routes[cidr] = .pool
            case .local: result.routes[cidr] = .local
            case .node(let name):
                result.routes[cidr] = .peer(PeerSlotKey(node: name, family: family))
                names.insert(name)
            }
        }
        for name in names {
            // An exempt node that cannot encrypt answers in clear too.
            let exempt = plan[family].exempt
            let isExempt = exempt.contains(name) || exempt.contains(options.node)
            result.peers[PeerSlotKey(node: name, family: family)] = PeerSteering(
                publicKey: nil, endpoints: [], action: isExempt ? .exempt : .clear, lanes: [])
        }
    }

    private func routingPlan(_ plan: NodePlan) -> RoutingPlan {
        var devices: [AddressFamily: RoutingPlan.Device] = [:]
        for (family, state) in families {
            guard let device = state.device else { continue }
            let ports = ports(state)
            devices[family] = .init(
                names: Set([state.deviceName, state.settings.interfaceName]).sorted(), interface: device.interface,
                listeningPort: ports.now, otherPort: ports.other)
        }
        return RoutingPlan(
            priority: plan.settings.rulePriority, tables: plan.settings.routeTables, devices: devices,
            podPrefixes: plan.settings.podInterfacePrefixes, makesExceptions: plan.settings.inputRule == .auto)
    }

    /// What the second lock holds: all pools of families that are on, but exempt nodes' prefixes. Pods' addresses are
    /// held by their pools, where there are any.
    private func guardPlan(_ plan: NodePlan) -> GuardPlan {
        var prefixes: [CIDR: GuardKind] = [:]
        for family in AddressFamily.allCases {
            let isOn = families[family].map { $0.drainingUntil == nil } ?? guardedOnly(plan).contains(family)
            guard isOn else { continue }
            for (cidr, target) in plan[family].routes {
                switch target {
                case .pool, .local: prefixes[cidr] = .pool
                case .node(let name):
                    // Nodes' own addresses are none of its business.
                    let isPods = !plan[family].peers.values.contains { $0.address.map { CIDR(host: $0) } == cidr }
                    if isPods { prefixes[cidr] = plan[family].exempt.contains(name) ? .exempt : .pool }
                }
            }
            let pools = plan[family].pools
            for (address, owner) in inventory.workloads?.owners ?? [:] where address.family == family {
                let name = owner.pod.node
                let isExempt = name != options.node && plan[family].exempt.contains(name)
                if isExempt || !pools.contains(where: { $0.contains(address) }) {
                    prefixes[CIDR(host: address)] = isExempt ? .exempt : .pool
                }
            }
        }
        return GuardPlan(
            prefixes: prefixes, vxlanPorts: vxlanPorts(plan), isPartial: !isComplete)
    }

    func addPeers(
        _ family: AddressFamily, _ state: FamilyState, _ plan: FamilyPlan, _ peers: [String: PeerPlan],
        _ device: DeviceState, to result: inout SteeringPlan
    ) {
        for (key, retiring) in state.peers.retiring where !retiring.node.isEmpty {
            result.peers[PeerSlotKey(node: retiring.node, family: family)] = PeerSteering(
                publicKey: key, endpoints: Set([retiring.endpoint].compactMap { $0 }), action: .draining,
                lanes: [device.interface])
        }
        for (name, peer) in peers {
            let action = action(for: name, state, plan)
            result.peers[PeerSlotKey(node: name, family: family)] = PeerSteering(
                publicKey: state.peers.carrier(of: name) ?? peer.publicKey,
                endpoints: endpoints(peer, state.peers.carrier(of: name), device), action: action,
                lanes: [device.interface])
        }
        // A node that cannot be read now is not one without WireGuard.
        for name in plan.unencrypted where isComplete || state.peers.carrier(of: name) == nil {
            let key = PeerSlotKey(node: name, family: family)
            if result.peers[key] == nil {
                result.peers[key] = PeerSteering(
                    publicKey: nil, endpoints: [], action: action(for: name, state, plan), lanes: [])
            }
        }
    }

    /// From where a peer may speak to us: its endpoint, its node's own address, and where it was last heard from.
    private func endpoints(_ peer: PeerPlan, _ carrier: PublicKey?, _ device: DeviceState) -> Set<Endpoint> {
        var result = Set([peer.endpoint].compactMap { $0 })
        if let address = peer.address, address != peer.endpoint?.address {
            result.insert(Endpoint(address: address, port: peer.endpoint?.port ?? 0))
        }
        for key in [peer.publicKey, carrier].compactMap({ $0 }) {
            if let heard = device.peers[key]?.endpoint, !result.contains(where: { $0.address == heard.address }) {
                result.insert(heard)
            }
        }
        return result
    }

    /// Writes what `wgplane guard` arms after a reboot; removes it when strict mode is off.
    func keepGuardState(_ guardPlan: GuardPlan?, _ plan: NodePlan, _ problems: inout [Problem]) {
        var state = guardPlan.map {
            GuardState(
                $0, uplinkPattern: plan.settings.dataInterfacePattern,
                devices: deviceNames.sorted())
        }
        if !assumed.isEmpty { state?.assumed = assumed.sorted() }
        // What cannot be read now is promised all the same.
        if guardPlan?.isPartial == true, let kept = guardState { state?.add(kept) }
        do {
            if let state, state != guardState {
                try state.write(options.stateDirectory)
            } else if state == nil {
                try GuardState.remove(options.stateDirectory)
            }
            guardState = state
        } catch {
            problems.append(
                Problem(
                    .warning, resource: "Agent", field: "stateDirectory", value: options.stateDirectory,
                    message: "cannot be written (\(error)), so a reboot is not guarded before the agent is up",
                    remedy: "make it writable for root, or name another with --state-directory"))
        }
    }

    /// How packets to a node's pods go now. In strict mode the programs drop what is not steered,
    /// unless the operator has exempted the node, or has switched the family off.
    func action(for node: String, _ state: FamilyState, _ plan: FamilyPlan) -> DestinationAction {
        if state.drainingUntil != nil { return .exempt }
        if state.peers.carries(node) { return .tunnel }
        return plan.exempt.contains(node) ? .exempt : .clear
    }
}
