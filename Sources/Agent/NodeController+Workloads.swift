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
        let isCompared = ContinuousClock.now - lastAudit >= Self.auditPeriod
        let names = families.values.compactMap { $0.device?.name }
        guard !names.isEmpty else { return nil }
        let before = peerChanges
        var sight = await lookAhead.look(
            backend.kind, devices: names, isCompared ? steering?.maps.routes : nil)
        // What has changed meanwhile may have been seen before.
        if peerChanges != before { sight.devices = [:] }
        return sight
    }

    /// Returns how long to wait until the next pass; nil: this must be a whole one.
    func changeWorkloads() -> Duration? {
        guard ContinuousClock.now < wholePassDue, let workloads = inventory.workloads, let last = lastPlan,
            last.ingredients.version == inventory.version, last.ingredients.nodesVersion == workloads.nodesVersion,
            mode.mode == .ebpf, let backend, steering != nil, unsettled.isEmpty, inventory.isReady
        else { return nil }
        let changes = takeWorkloadChanges()
        if !changes.isEmpty { statistics.noteWorkloads(addresses: changes.count) }
        steering?.noteWorkloads(changes.keys)
        var families: Set<AddressFamily> = []
        for (family, state) in self.families where state.device != nil {
            families.insert(family)
            do {
                try changeAllowedIPs(family, last.plan, backend, changes)
            } catch {
                logger.warning("allowed IPs cannot be changed", metadata: ["error": "\(error)"])
                wholePassDue = .now
            }
        }
        // Of a family without a device only the programs tell.
        guard families == Set(self.families.keys) else { return nil }
        steering?.changeWorkloads(
            WorkloadRoutes(node: options.node, owners: workloads.owners, families: families),
            preserved: isComplete ? [] : Set(AddressFamily.allCases))
        if let retry = steering?.nextRetry { wholePassDue = min(wholePassDue, retry) }
        // What the second lock and the report have of them may come a moment later.
        if strictInForce || workloads.problemsVersion != problemsVersion {
            wholePassDue = min(wholePassDue, .now + .seconds(1))
        }
        return max(.milliseconds(1), wholePassDue - .now)
    }

    private func changeAllowedIPs(
        _ family: AddressFamily, _ plan: NodePlan, _ backend: any WireGuardBackend, _ changed: [IPAddress: String?]
    ) throws {
        guard let workloads = inventory.workloads, let state = families[family], let device = state.device else {
            return
        }
        var nodes: Set<String> = []
        for (address, before) in changed where address.family == family {
            nodes.formUnion([before, workloads.node(of: address)].compactMap { $0 })
        }
        let changes = state.peers.allowedIPChanges(
            device, peerPlans(family, plan), workloads: workloads[family], of: nodes)
        guard !changes.isEmpty else { return }
        try backend.apply(DeviceChange(peers: changes), to: device.name)
        peerChanges += changes.count
        // Whom an address is given has it; who had it has it no more.
        for cidr in changes.flatMap(\.allowedIPs) {
            guard let before = changed[cidr.address], let node = before, let key = state.peers.carrier(of: node) else {
                continue
            }
            families[family]?.device?.peers[key]?.allowedIPs.remove(cidr)
        }
        for change in changes {
            families[family]?.device?.peers[change.publicKey]?.allowedIPs.formUnion(change.allowedIPs)
            families[family]?.device?.peers[change.publicKey]?.allowedIPs.subtract(change.removedAllowedIPs)
        }
    }
}
