// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Datastore
internal import DesiredState
internal import Logging
internal import Model
internal import Netlink
internal import Steering
internal import WireGuard

/// The WireGuard devices and their peers.
extension NodeController {
    func ensureDevice(
        _ family: AddressFamily, _ plan: NodePlan, _ backend: any WireGuardBackend, _ route: RouteSession,
        _ uplinks: [Link], _ facts: KernelFacts
    ) throws {
        guard var state = families[family] else { return }
        defer { families[family] = state }
        let manager = DeviceManager(family: family, backend: backend, route: route, logger: logger)
        // WireGuard adds 60 bytes on IPv4 and 80 on IPv6: outer headers, its own header, the tag.
        let overhead: UInt32 = family == .ipv4 ? 60 : 80
        let underlay = uplinks.filter(\.isUp).map(\.mtu).min() ?? uplinks.map(\.mtu).min() ?? 1500
        let taken = overhead + plan.cloudOverhead
        state.mtu = state.settings.mtu != 0 ? state.settings.mtu : max(underlay, 1280 + taken) - taken
        let isNew = state.device == nil
        if isNew, backend.kind == .kernel { try deviceSettings.remember(KernelSettings.sendRedirects) }
        try moveDevice(&state, backend, manager, mtu: state.mtu, mark: plan.settings.firewallMark)
        let device = try manager.ensure(
            state.settings, mtu: state.mtu, mark: plan.settings.firewallMark,
            seen: sight?.devices[state.settings.interfaceName])
        if isNew || device.interface != state.device?.interface || device.publicKey != state.device?.publicKey {
            logger.info(
                "WireGuard device",
                metadata: [
                    "device": "\(device.name)", "interface": "\(device.interface)",
                    "publicKey": "\(device.publicKey?.description ?? "none")", "peers": "\(device.peers.count)",
                ])
        }
        if !state.hasAdopted {
            if let destinations = steering?.maps.destinations {
                state.peers.adopt(
                    try destinations.slotOwners().map { (owner: $0.value, action: destinations[$0.key].action) },
                    family: family)
            }
            // Of a device that is still the one it was.
            if let told = earlier?[family], told.publicKey == device.publicKey { state.peers.adopt(told.peers) }
            state.hasAdopted = true
        }
        // Host encryption, switched on or off, changes which address the device has.
        if let address = state.address, usesNodeAddress(plan) != (address == ownAddress(family)) {
            state.address = nil
        }
        state.address = state.address ?? publishedAddress(family, plan)
        if let address = state.address {
            try manager.setAddress(address, interface: device.interface, present: facts.addresses)
        }
        state.device = device
        let now = ContinuousClock.now
        let received = device.peers.values.reduce(0) { $0 + $1.receivedBytes }
        if received != state.received.bytes { state.received = (received, since: now, seen: now) }
        state.received.seen = now
    }

    /// Notes handshakes, and which key carries each node's traffic.
    func observePeers(_ family: AddressFamily, _ plan: NodePlan, _ now: ContinuousClock.Instant) {
        guard let device = families[family]?.device else { return }
        let peers = peerPlans(family, plan)
        families[family]?.peers.observe(device, peers, now: now, mayRetire: isComplete)
    }

    /// Returns whether the device, or what is known of it, is another now.
    func changePeers(_ family: AddressFamily, _ plan: NodePlan, _ backend: any WireGuardBackend) throws -> Bool {
        var isChanged = false
        if let state = families[family], let device = state.device, state.peers.isDueAgain(device, now: .now) {
            families[family]?.device = try backend.state(device: device.name) ?? device
            observePeers(family, plan, .now)
            isChanged = true
        }
        guard var state = families[family], let device = state.device else { return isChanged }
        let (changes, stamped) = state.peers.changes(
            device, peerPlans(family, plan), workloads: inventory.workloads?[family] ?? [:],
            keepAlive: plan.keepAlive,
            now: .now, mayRemove: isComplete)
        families[family]?.peers = state.peers
        if !changes.isEmpty {
            logger.debug("peers change", metadata: ["device": "\(device.name)", "changes": "\(changes.count)"])
            try backend.apply(DeviceChange(peers: changes), to: device.name)
            peerChanges += changes.count
            if let after = try backend.state(device: device.name) { families[family]?.device?.peers = after.peers }
            isChanged = true
        }
        families[family]?.peers.note(stamped: stamped)
        return isChanged
    }

    func peerPlans(_ family: AddressFamily, _ plan: NodePlan) -> [String: PeerPlan] {
        families[family]?.drainingUntil == nil ? plan[family].peers : drainingPeers(family, plan)
    }

    /// While a family goes, its peers stay as they are, so that what they still send is let in and decrypted.
    func drainingPeers(_ family: AddressFamily, _ plan: NodePlan) -> [String: PeerPlan] {
        guard let state = families[family], let device = state.device else { return [:] }
        var peers = plan[family].peers
        for (key, peer) in device.peers {
            guard !peers.values.contains(where: { $0.publicKey == key }) else { continue }
            let node = state.peers.node(of: key) ?? "key \(key)"
            peers[node] = PeerPlan(
                node: node, publicKey: key, endpoint: peer.endpoint, allowedIPs: peer.allowedIPs)
        }
        return peers
    }

    func retirePeers(
        _ family: AddressFamily, _ backend: any WireGuardBackend, _ now: ContinuousClock.Instant
    ) throws {
        guard let state = families[family], let device = state.device else { return }
        let removals = state.peers.removals(now: now)
        if !removals.isEmpty {
            try backend.apply(DeviceChange(peers: removals), to: device.name)
            peerChanges += removals.count
        }
    }

    // MARK: Backend

    /// Without any WireGuard nothing can be encrypted: in strict mode that is dropped, so the rest
    /// of the pass is made all the same.
    func backendOrProblem(_ plan: NodePlan, _ problems: inout [Problem]) throws -> (any WireGuardBackend)? {
        guard !families.isEmpty else { return nil }
        do {
            return try chosenBackend(plan.settings.backend, deviceNames.sorted(), &problems)
        } catch {
            guard isStrict(plan) else { throw error }
            unsettled.formUnion(families.keys)
            problems.append(Self.problem(of: error))
            return nil
        }
    }

    func chosenBackend(
        _ choice: WireGuardBackendChoice, _ devices: [String], _ problems: inout [Problem]
    ) throws -> any WireGuardBackend {
        if let backend {
            guard let kind = choice.kind, kind != backend.kind else { return backend }
            do {
                let other = try BackendSelection.backend(kind)
                logger.notice("WireGuard backend", metadata: ["backend": "\(kind.rawValue)"])
                self.backend = other
                return other
            } catch {
                problems.append(
                    Problem(
                        resource: "DataplaneConfiguration", field: "spec.wireguardBackend", value: choice.rawValue,
                        message: "cannot be had (\(error)), and \(backend.kind.rawValue) stays",
                        remedy: "see `wgplane doctor`"))
                return backend
            }
        }
        let new = try BackendSelection.backend(choice.kind, devices: devices)
        backend = new
        logger.info("WireGuard backend", metadata: ["backend": "\(new.kind.rawValue)"])
        return new
    }
}

extension WireGuardBackendChoice {
    /// Nil: whichever is there.
    var kind: BackendKind? {
        switch self {
        case .auto: nil
        case .kernel: .kernel
        case .userspace: .userspace
        }
    }
}
