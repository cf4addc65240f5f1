// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
internal import DesiredState
internal import Logging
internal import Model
internal import Netlink
internal import Steering

/// What steers packets into WireGuard on a node.
public enum DataplaneMode: String, Sendable, Codable, CaseIterable {
    case ebpf
    case route
    case disabled
}

/// The mode of a node, and why.
struct ModeDecision: Sendable, Equatable {
    var mode: DataplaneMode
    var reason: String
}

/// Programs that could not be loaded.
struct ProgramsFailure: Sendable {
    var reason: String
    var attachment: AttachmentChoice
    /// How often in a row.
    var count: Int
    var at = ContinuousClock.now

    /// When it is tried again: soon, for a kernel that had no memory has it a moment later; then ever less often.
    var again: ContinuousClock.Instant { at + min(.seconds(60), .milliseconds(250 << min(count, 8))) }
    /// Seconds have passed: it is none that passes by itself.
    var isLasting: Bool { count > 4 }
}

/// Which data plane is to be, and the change from one to the other: the new one is in place before the old one goes.
extension NodeController {
    /// Chooses the mode of this pass, and has the programs loaded where it is eBPF.
    func chooseMode(_ plan: NodePlan, _ problems: inout [Problem]) throws {
        let wanted = wantedMode(plan)
        var chosen = wanted.decision
        if chosen.mode == .ebpf, let reason = loadPrograms(plan, &problems) {
            if programsFailure?.isLasting == false, EBPFSteering.isAttached(options.layout) {
                throw ProblemsError(
                    Problem(
                        .warning, resource: "Kernel", field: "BPF", message: "\(reason)",
                        remedy:
                            "what is attached goes on meanwhile, and it is tried again at once; see `wgplane doctor`"))
            }
            // Encrypted by other means is better than not.
            chosen = ModeDecision(mode: .route, reason: "eBPF cannot be used: \(reason)")
            problems.append(
                Problem(
                    wanted.isWord ? .error : .warning, resource: "Kernel", field: "BPF",
                    message: "\(reason); routes and rules take the programs' place (route mode)",
                    remedy: wanted.isWord
                        ? "see `wgplane doctor`, or ask for route mode (bpfEnabled: false)"
                        : "see `wgplane doctor`; bpfEnabled: false asks for route mode"))
        }
        if chosen.mode == .route, routing == nil { routing = try RouteSteering(stateFolder: options.runDirectory) }
        takeOver(chosen.mode, plan)
        if chosen != mode {
            logger.notice("data plane", metadata: ["mode": "\(chosen.mode.rawValue)", "reason": "\(chosen.reason)"])
            mode = chosen
        }
    }

    /// A switch that an earlier agent has begun: what is to go is kept right until it does.
    private func takeOver(_ mode: DataplaneMode, _ plan: NodePlan) {
        if mode == .route, steering == nil, mayHavePrograms, programsFailure == nil,
            !options.layout.pinnedLinks().isEmpty
        {
            steering = try? EBPFSteering(layout: options.layout, mechanism: .tcx)
        }
        if mode == .ebpf, routing == nil, mayHaveRoutes, RouteSteering.isThere() {
            routing = try? RouteSteering(stateFolder: options.runDirectory)
        }
    }

    /// What the settings ask for; `isWord`: somebody has said so.
    private func wantedMode(_ plan: NodePlan) -> (decision: ModeDecision, isWord: Bool) {
        let settings = plan.settings
        switch settings.mode {
        case .ebpf: return (ModeDecision(mode: .ebpf, reason: "mode is EBPF"), true)
        case .route: return (ModeDecision(mode: .route, reason: "mode is Route"), true)
        case .disabled where mode.mode != .disabled:
            // On its way out: as it was.
            return (mode, false)
        case .auto, .disabled: break
        }
        if let word = settings.ebpfEnabled, !plan.isBesideCalicoNode {
            return (
                ModeDecision(mode: word ? .ebpf : .route, reason: "bpfEnabled is \(word)"), true
            )
        }
        return (ModeDecision(mode: .ebpf, reason: "this kernel can"), false)
    }

    /// Loads the programs, if they are not, with the attachment that is asked for. Returns why that cannot be.
    private func loadPrograms(_ plan: NodePlan, _ problems: inout [Problem]) -> String? {
        let attachment = plan.settings.attachment
        var mechanism: AttachmentMechanism
        do {
            mechanism = try attachment == .auto ? automaticMechanism : EBPFSteering.mechanism(attachment)
        } catch {
            problems.append(
                Problem(
                    resource: "FelixConfiguration", field: "spec.bpfAttachType", value: attachment.rawValue,
                    message: "cannot be had (\(error)), and programs are attached as the kernel can",
                    remedy: "set it to Auto or TC"))
            mechanism = automaticMechanism
        }
        if let steering, steering.mechanism == mechanism { return nil }
        let earlier = programsFailure.flatMap { $0.attachment == attachment ? $0 : nil }
        if steering == nil, let earlier, earlier.again > .now { return earlier.reason }
        do {
            // What is attached by the other mechanism goes when these are in place.
            steering = try EBPFSteering(layout: options.layout, mechanism: mechanism)
            programsFailure = nil
            return nil
        } catch {
            if steering != nil { return nil }
            // What an earlier agent has in place steers until routes do.
            programsFailure = ProgramsFailure(
                reason: "\(error)", attachment: attachment, count: (earlier?.count ?? 0) + 1)
            return "\(error)"
        }
    }

    /// Makes the data plane what the plan says: the chosen one first; the other one goes when that is
    /// whole, and is kept right until then. What one cannot do keeps none of the rest from being done.
    func steer(_ wanted: SteeringPlan) async -> [Problem] {
        var wanted = wanted
        wanted.workloads?.owners = inventory.workloads?.owners ?? [:]
        var problems: [Problem] = []
        func attempt(_ what: String, _ body: () throws -> [Problem]) -> Bool {
            do {
                problems += try body()
                return true
            } catch {
                var problem = Self.problem(of: error)
                if problem.resource == "Agent" { problem.field = what }
                problems.append(problem)
                return false
            }
        }
        func armLock() {
            do {
                problems += try lock.apply(wanted, lockMechanism)
            } catch {
                problems.append(
                    Problem(
                        resource: "Dataplane", field: "guard",
                        message:
                            "strict mode's second lock cannot be armed (\(error)): packets that arrive in clear are taken",
                        remedy: "see `wgplane doctor`"))
            }
        }
        // Nothing goes while a family's devices cannot be looked at: the new way may not have them.
        let isWhole = wanted.preserved.isEmpty
        switch mode.mode {
        case .ebpf:
            // The lock goes behind the programs before pods' packets are left to them.
            var behind: [Problem] = []
            let done = attempt("programs") {
                try steering?.apply(wanted) { behind = lock.stayBehind() } ?? []
            }
            problems += behind
            mayHavePrograms = true
            armLock()
            if done, isWhole, steering?.isSettled == true, mayHaveRoutes {
                let gone = attempt("routes") {
                    try RouteSteering.removeAll(stateFolder: options.runDirectory, keepsFirewall: true)
                    return []
                }
                if gone {
                    routing = nil
                    mayHaveRoutes = false
                    firewall = HostFirewall()
                }
            } else if routing != nil {
                _ = attempt("routes") { try routing?.apply(wanted) ?? [] }
            }
            if !mayHaveRoutes, let plan = wanted.routing { _ = attempt("firewall") { try letIn(plan) } }
        case .route:
            let done = attempt("routes") { try routing?.apply(wanted) ?? [] }
            firewall = HostFirewall()
            mayHaveRoutes = true
            if done, isWhole, routing?.isSettled == true, mayHavePrograms {
                await tellLastFlows()
                let gone = attempt("programs") {
                    if options.layout.isAnyVersionThere {
                        try EBPFSteering.removeAll(layout: options.layout, keepsLock: true)
                    }
                    return []
                }
                if gone {
                    await flows.forget()
                    steering = nil
                    mayHavePrograms = false
                }
            } else if steering != nil {
                _ = attempt("programs") { try steering?.apply(wanted) ?? [] }
            }
            armLock()
        case .disabled: armLock()
        }
        if mode.mode == .route, wanted.guardPlan == nil, steering == nil, !mayHavePrograms, options.layout.exists {
            _ = attempt("pins") {
                try options.layout.remove()
                return []
            }
        }
        return problems
    }

    /// How the second lock is attached: as what steers, that it comes behind it.
    var lockMechanism: AttachmentMechanism { steering?.mechanism ?? automaticMechanism }

    /// In eBPF mode: rules of ours before those of the node's firewall that would drop WireGuard's packets.
    private func letIn(_ plan: RoutingPlan) throws -> [Problem] {
        let chains = try RouteSteering.exceptions(plan)
        guard let words = firewall.apply(chains, exceptions: plan.makesExceptions) else {
            return plan.makesExceptions ? [] : try inTheWay()
        }
        return [
            Problem(
                resource: "Firewall", message: words,
                remedy: "it is tried again; is the program there, and may it write this node's firewall?")
        ]
    }

    /// Chains whose policy or rules may keep WireGuard's packets out, as far as that can be told.
    private func inTheWay() throws -> [Problem] {
        let stuck = families.filter { family, state in
            state.drainingUntil == nil && state.peers.isWaitingLong(now: .now)
        }
        guard !stuck.isEmpty else { return [] }
        return try FirewallExceptions.dropping(.input).map { chain in
            Problem(
                .warning, resource: "Firewall", field: "\(chain)",
                message: "may drop WireGuard's packets, and a peer has not shaken hands for long",
                remedy:
                    "accept UDP port \(stuck.map { "\(ports($0.value).now)" }.sorted().joined(separator: " and ")) there, or set wireguardInputRule to Auto"
            )
        }
    }
}
