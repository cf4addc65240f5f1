// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Datastore
internal import DesiredState
internal import Logging
internal import Model
internal import Netlink
internal import Steering
internal import WireGuard

/// Which families are on, and what is left when none is.
extension NodeController {
    /// Which families are on, which are on their way out, which are gone. Returns whether one begins to go.
    func updatePhases(_ plan: NodePlan, _ now: ContinuousClock.Instant, _ problems: inout [Problem]) -> Bool {
        var begins = false
        for family in AddressFamily.allCases {
            if isWanted(family, plan, &problems) {
                if families[family] == nil { families[family] = FamilyState(settings: plan.settings[family]) }
                families[family]?.settings = plan.settings[family]
                families[family]?.drainingUntil = nil
            } else if let state = families[family] {
                guard let until = state.drainingUntil else {
                    families[family]?.drainingUntil = now + Self.drainTime
                    begins = true
                    logger.notice("WireGuard is switched off", metadata: ["family": "\(family)"])
                    continue
                }
                // The others must have been told, or they tunnel into nothing.
                // A device that cannot be looked at says nothing either.
                let saysNothing = state.silence >= Self.drainSilence || unreadable.contains(family)
                let isSilent = isWithdrawn(family) && saysNothing
                guard until <= now, isSilent || until + .seconds(10) <= now else { continue }
                do {
                    try backend?.delete(device: state.deviceName)
                    families[family] = nil
                } catch {
                    problems.append(Self.deviceProblem(error, state.deviceName))
                }
            }
        }
        return begins
    }

    /// Whether a family is to be on. It takes a word to switch off what is on: a resource that
    /// is gone or cannot be read is none.
    private func isWanted(_ family: AddressFamily, _ plan: NodePlan, _ problems: inout [Problem]) -> Bool {
        let isOn = families[family].map { $0.drainingUntil == nil } ?? false
        let field = family == .ipv4 ? "wireguardEnabled" : "wireguardEnabledV6"
        guard let word = plan.settings.isEnabled(family) else {
            if isOn {
                problems.append(
                    Problem(
                        resource: "FelixConfiguration/default", field: "spec.\(field)",
                        message: "says nothing that can be read, and encryption of \(family) stays on",
                        remedy: "set \(field) to true, or to false to switch it off"))
            }
            return isOn
        }
        if word, !plan[family].hasUnderlay {
            problems.append(
                Problem(
                    resource: "Node/\(options.node)", field: "status.addresses",
                    message: "has no InternalIP of \(family)"
                        + (isOn ? ", and encryption stays as it is" : ", so \(family) pods' packets are not encrypted"),
                    remedy: "add the address, or switch WireGuard off for \(family)"))
            return isOn
        }
        return word
    }

    private func isWithdrawn(_ family: AddressFamily) -> Bool {
        let annotations = inventory.ownNode?.annotations ?? [:]
        return annotations[NodeAnnotation.publicKey(family)] == nil
    }

    // MARK: Switched off

    /// Leaves nothing behind: programs, maps, devices, annotations, the device's address.
    func tearDown(_ plan: NodePlan, _ problems: inout [Problem]) async throws {
        await cache.forget()
        if !hasCleaned {
            // Each step is made, whatever another one says; the pass is made again until all are done.
            var failure: (any Error)?
            func step(_ body: () throws -> Void) { do { try body() } catch { failure = failure ?? error } }
            await tellLastFlows()
            step { if options.layout.isAnyVersionThere { try EBPFSteering.removeAll(layout: options.layout) } }
            if failure == nil { await flows.forget() }
            steering = nil
            lock.forget()
            step { try RouteSteering.removeAll(stateFolder: options.runDirectory) }
            routing = nil
            firewall = HostFirewall()
            // Felix's own device is not ours, though it has the name.
            let names = plan.isBesideCalicoNode ? [] : plan.settings.deviceNames
            let devices = try DeviceManager.ownDevices(session(), named: names)
            for name in devices { step { try BackendSelection.delete(device: name) } }
            step { try deviceSettings.restore() }
            if let failure { throw failure }
            try GuardState.remove(options.stateDirectory)
            guardState = nil
            backend = nil
            programsFailure = nil
            threadingRefused = []
            (mayHaveRoutes, mayHavePrograms) = (false, false)
            mode = ModeDecision(mode: .disabled, reason: disabledReason(plan))
            hasCleaned = true
        }
        publisher.wish(
            Publisher.Wish(
                annotations: wantedAnnotations(), node: inventory.ownNode,
                releases: heldAddresses(AddressFamily.allCases)))
        problems += publisher.problems
    }

    func disabledReason(_ plan: NodePlan) -> String {
        plan.settings.mode == .disabled ? "mode is Disabled" : "neither wireguardEnabled nor wireguardEnabledV6 is true"
    }
}
