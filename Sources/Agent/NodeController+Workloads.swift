// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import DesiredState
internal import Logging
internal import Model
internal import Steering
internal import WireGuard

/// Other nodes' pods come and go all the time where routes are made of their addresses. So where nothing else has
/// changed, their routes and allowed IPs alone are changed, at the cost of the change and not of the cluster.
extension NodeController {
    /// Notes for a whole pass which addresses may lead elsewhere.
    func noteWorkloads() { steering?.noteWorkloads(takeWorkloadChanges().keys) }

    /// Lets them, in the middle of a pass that is long.
    func breathe() async {
        isInPass = false
        await Task.yield()
        isInPass = true
    }

    /// Looks at the devices, and at the routes where they are to be compared, while changes are taken in.
    func lookAround() async -> LookAhead.Sight? {
        guard let backend else { return nil }
        let isCompared = ContinuousClock.now - lastAudit >= auditPeriod
        let names = families.values.compactMap { $0.device?.name }
        guard !names.isEmpty else { return nil }
        touchedPeers = []
        var sight = await lookAhead.look(
            backend.kind, devices: names, isCompared ? steering?.maps.routes : nil,
            placed: isCompared ? steering?.placedAddresses ?? [:] : [:])
        // What has changed meanwhile may have been seen before.
        for state in families.values {
            guard let device = state.device else { continue }
            for key in touchedPeers where sight.devices[device.name]?.peers[key] != nil {
                sight.devices[device.name]?.peers[key]?.allowedIPs = device.peers[key]?.allowedIPs ?? []
            }
        }
        return sight
    }

    /// Families whose pods are routed: those with a device, and those that are promised and have none.
    func routedFamilies(_ plan: NodePlan) -> Set<AddressFamily> {
        Set(guardedOnly(plan)).union(families.filter { $0.value.device != nil && !unsettled.contains($0.key) }.keys)
    }

    /// Returns how long to wait until the next pass; nil: this must be a whole one.
    func changeWorkloads() -> Duration? {
        guard ContinuousClock.now < wholePassDue, let workloads = inventory.workloads, let last = lastPlan,
            last.ingredients.version == inventory.version, last.ingredients.nodesVersion == workloads.nodesVersion,
            mode.mode == .ebpf, routing == nil, let backend, steering?.mayChangeWorkloads == true, unsettled.isEmpty,
            inventory.isReady, families.values.allSatisfy({ $0.device != nil })
        else { return nil }
        let changes = takeWorkloadChanges()
        guard !changes.isEmpty else { return max(.milliseconds(1), wholePassDue - .now) }
        statistics.noteWorkloads(addresses: changes.count)
        steering?.noteWorkloads(changes.keys)
        do {
            for family in families.keys { try changeAllowedIPs(family, last.plan, backend, changes) }
        } catch {
            // Routes lead nowhere else before that: the whole pass tells of it, and tries again.
            logger.warning("allowed IPs cannot be changed", metadata: ["error": "\(error)"])
            wholePassDue = .now
            return nil
        }
        steering?.changeWorkloads(
            WorkloadRoutes(node: options.node, owners: workloads.owners, families: routedFamilies(last.plan)),
            preserved: isComplete ? [] : Set(AddressFamily.allCases))
        if let retry = steering?.nextRetry { wholePassDue = min(wholePassDue, retry) }
        // What the second lock and the report have of them may come a moment later.
        if concernsGuard(changes.keys, last.plan) || workloads.problemsVersion != problemsVersion {
            wholePassDue = min(wholePassDue, .now + .seconds(1))
        }
        return max(.milliseconds(1), wholePassDue - .now)
    }

    /// Whether the second lock holds some of these by themselves.
    private func concernsGuard(_ addresses: some Sequence<IPAddress>, _ plan: NodePlan) -> Bool {
        guard strictInForce else { return false }
        let pools = AddressFamily.allCases.flatMap { plan[$0].pools }
        return AddressFamily.allCases.contains { !plan[$0].exempt.isEmpty }
            || addresses.contains { address in !pools.contains { $0.contains(address) } }
    }

    private func changeAllowedIPs(
        _ family: AddressFamily, _ plan: NodePlan, _ backend: any WireGuardBackend, _ changed: [IPAddress: String?]
    ) throws {
        guard let name = families[family]?.device?.name else { return }
        let changes = allowedIPChanges(family, plan, changed)
        guard !changes.isEmpty else { return }
        try backend.apply(DeviceChange(peers: changes), to: name)
        peerChanges += changes.count
        // Whom an address is given has it; who had it has it no more.
        for cidr in changes.flatMap(\.allowedIPs) {
            guard let before = changed[cidr.address], let node = before,
                let key = families[family]?.peers.carrier(of: node)
            else { continue }
            families[family]?.device?.peers[key]?.allowedIPs.remove(cidr)
            touchedPeers.insert(key)
        }
        touchedPeers.formUnion(changes.map(\.publicKey))
        for change in changes {
            families[family]?.device?.peers[change.publicKey]?.allowedIPs.formUnion(change.allowedIPs)
            families[family]?.device?.peers[change.publicKey]?.allowedIPs.subtract(change.removedAllowedIPs)
        }
    }

    /// No reference to the device's state outlives it: what is changed then is not copied.
    private func allowedIPChanges(
        _ family: AddressFamily, _ plan: NodePlan, _ changed: [IPAddress: String?]
    ) -> [PeerChange] {
        guard let workloads = inventory.workloads, let state = families[family], let device = state.device else {
            return []
        }
        let moves = changed.filter { $0.key.family == family }.map { address, before in
            PeerTable.Move(address: CIDR(host: address), from: before, to: workloads.node(of: address))
        }
        return state.peers.allowedIPChanges(device, peerPlans(family, plan), moves, mayRemove: isComplete)
    }
}
