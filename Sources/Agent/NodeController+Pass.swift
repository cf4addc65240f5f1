// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import DesiredState
internal import Logging
internal import Model
internal import Netlink
internal import Steering
internal import WireGuard

/// One pass of the controller.
extension NodeController {
    func apply(_ plan: NodePlan, _ problems: inout [Problem]) async throws {
        let now = ContinuousClock.now
        unreadable = unsettled
        unsettled = []
        try adoptEarlier(plan)
        let goes = updatePhases(plan, now, &problems)
        noteStrictness(plan, &problems)
        guard isActive(plan) else {
            try await tearDown(plan, &problems)
            return
        }
        hasCleaned = false
        let route = try session()
        try chooseMode(plan, &problems)
        let backend = try backendOrProblem(plan, &problems)
        if now - lastAudit >= auditPeriod {
            lastAudit = now
            // Of these fails each for itself.
            let steered = Result { try steering?.resync(changed: sight?.changedAddresses) }
            let locked = Result { try lock.resync() }
            routing?.resync()
            firewall.resyncUntold()
            farEnds.forget()
            try steered.get()
            try locked.get()
        }
        let facts = try KernelFacts(route)
        let uplinks = uplinks(plan, facts, &problems)
        // Before a device changes its port or mark, the data plane takes the old and the new; before one goes,
        // it is not used any more, however long it takes to look at it.
        let changes = beginChanges(plan, now)
        // Not before all have been seen: what an earlier agent had on would go meanwhile.
        let areSeen = families.values.allSatisfy { $0.device != nil }
        if changes || goes && areSeen { _ = await steer(try steeringPlan(plan, facts, uplinks)) }
        if let backend { renewBurntKeys(plan, backend, &problems) }
        for family in families.keys.sorted() {
            guard let backend else { break }
            settle(family, &problems) {
                try ensureDevice(family, plan, backend, route, uplinks, facts)
                observePeers(family, plan, now)
            }
        }
        await breathe()
        let admitted = try steeringPlan(plan, facts, uplinks)
        try steering?.admit(admitted)
        await breathe()
        var isChanged = false
        for family in families.keys.sorted() where !unsettled.contains(family) {
            guard let backend else { break }
            var isSame = false
            settle(family, &problems) {
                isSame = try !changePeers(family, plan, backend)
                if !isSame { observePeers(family, plan, now) }
            }
            isChanged = isChanged || !isSame
        }
        let latest = try KernelFacts(route)
        let wanted = isChanged || latest != facts ? try steeringPlan(plan, latest, uplinks) : admitted
        await breathe()
        // Kept first: what is promised now holds after a crash and a reboot too.
        keepGuardState(wanted.guardPlan, plan, &problems)
        problems += await steer(wanted)
        await breathe()
        noteEarlierFilters(plan, uplinks + facts.overlays(excluding: deviceNames), &problems)
        for family in families.keys.sorted() where !unsettled.contains(family) {
            guard let backend else { break }
            try retirePeers(family, backend, now)
        }
        setThreading(plan, &problems)
        publish(plan, &problems)
    }

    /// Names of the devices as they are.
    var deviceNames: Set<String> { Set(families.values.map(\.deviceName)) }

    private func uplinks(_ plan: NodePlan, _ facts: KernelFacts, _ problems: inout [Problem]) -> [Link] {
        let uplinks = facts.uplinks(pattern: plan.settings.dataInterfacePattern, excluding: deviceNames)
        if !uplinks.contains(where: \.isUp) {
            problems.append(
                Problem(
                    resource: "FelixConfiguration/default", field: "spec.bpfDataIfacePattern",
                    value: plan.settings.dataInterfacePattern, message: "matches no device that is up",
                    remedy: "set it to a regular expression that matches the node's uplinks"))
        }
        return uplinks
    }

    /// Runs a step for one family's device; one that fails leaves what is in place as it is.
    private func settle(_ family: AddressFamily, _ problems: inout [Problem], _ step: () throws -> Void) {
        do {
            try step()
        } catch {
            unsettled.insert(family)
            problems.append(Self.deviceProblem(error, families[family]?.deviceName ?? ""))
        }
    }

    static func deviceProblem(_ error: any Error, _ device: String) -> Problem {
        var problem = problem(of: error)
        problem.resource = "Device/\(device)"
        return problem
    }

    /// What an earlier agent had switched on is on, under the names that its devices have,
    /// until somebody says otherwise.
    private func adoptEarlier(_ plan: NodePlan) throws {
        guard !hasAdopted else { return }
        var pinned: DataplaneConfig?
        defer { rememberStrictness(pinned) }
        let links = try session().links()
        func adopt(_ family: AddressFamily, _ link: Link?) {
            families[family] = FamilyState(settings: plan.settings[family], deviceName: link?.name)
            families[family]?.wasPinned = true
        }
        if options.layout.exists, let maps = try? NodeMaps(options.layout) {
            let (config, generation) = try maps.config.read()
            pinned = generation == 0 ? nil : config
            for family in AddressFamily.allCases {
                guard let device = config[family], device.interface != 0 else { continue }
                adopt(family, links.first { $0.index == device.interface })
            }
        }
        // Route mode has no maps; what is there is known from the last report.
        for family in AddressFamily.allCases where families[family] == nil {
            guard let told = earlier?[family], told.phase == "on" else { continue }
            let link = links.first { $0.index == told.interface && $0.alias == DeviceManager.alias }
            if let link { adopt(family, link) }
        }
        hasAdopted = true
    }
}
