// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
public import Datastore
internal import DesiredState
internal import Flows

public import Logging
internal import Model
internal import Netlink
internal import Steering
internal import SystemDescriptors
internal import WireGuard

/// Makes this node what the resources say: devices, peers, data plane, annotations.
///
/// Everything it does is idempotent and starts from what is there, so that it can be
/// called for any reason at any time. Its system calls run on a queue of its own.
public actor NodeController {
    let options: AgentOptions
    let datastore: any Datastore
    let logger: Logger
    private let queue = KernelQueue(label: "node-controller")
    var route: RouteSession?

    var snapshot: Snapshot?
    var datastoreState = "waiting"
    var keyOwners: [PublicKey: String] = [:]
    var backend: (any WireGuardBackend)?
    var steering: EBPFSteering?
    var families: [AddressFamily: FamilyState] = [:]
    var lastAudit = ContinuousClock.now
    var lastReport: StatusReport?
    var lastProblems: Set<Problem> = []
    var hasCleaned = false
    /// Families that are promised in strict mode until a word ends it.
    var promised: Set<AddressFamily> = []
    /// Whether strict mode was on a moment ago.
    var strictInForce = false
    /// The devices that the firewall is inspected for; nil: not known yet.
    var inspected: Inspected?
    /// What was known was taken for it: another pass must look.
    var owesForeignLook = false
    /// The steering path, once it has been asked for in this pass.
    var pathOfPass: (path: SteeringPathChoice, reason: String)?
    /// A pod's device with somebody else's program, as it was when last looked at.
    var lastForeignLook: (at: ContinuousClock.Instant, device: String?)?
    /// Of legacy iptables, as it was a moment ago.
    var lastLegacyFirewall = FirewallInspection.Findings()
    /// As it was last written.
    var guardState: GuardState?
    /// Families whose device could not be looked at or changed in this pass: what is in
    /// place for them stays, in the data plane and in the datastore.
    var unsettled: Set<AddressFamily> = []
    private var hasRemembered = false
    private var hasAdoptedPinned = false
    /// Settings as they were when the programs and the backend were chosen.
    private var chosenSettings: Settings?

    /// What this agent holds of one family.
    struct FamilyState {
        var settings: DeviceSettings
        /// Nil: on. Otherwise when the device goes.
        var drainingUntil: ContinuousClock.Instant?
        /// Bytes that the peers have sent, and when that last changed.
        var received: (bytes: UInt64, at: ContinuousClock.Instant) = (0, .now)
        var device: DeviceState?
        var address: IPAddress?
        var mtu: UInt32 = 0
        var peers = PeerTable()
        var hasAdopted = false
        /// An earlier agent had it: what is pinned holds until the device is seen.
        var wasPinned = false
    }

    /// How long a device outlives the word that switches it off, at least; and how long its
    /// peers must have been silent, for they may hear of it late.
    static let drainTime = Duration.milliseconds(500)
    static let drainSilence = Duration.milliseconds(300)
    static let auditPeriod = Duration.seconds(10)

    public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    let publication: Publication

    public init(options: AgentOptions, datastore: any Datastore, logger: Logger) {
        self.options = options
        publication = Publication(node: options.node, datastore: datastore, logger: logger)
        self.datastore = datastore
        self.logger = logger
    }

    // MARK: Input

    func receive(_ event: DatastoreEvent) {
        switch event {
        case .snapshot(let new):
            snapshot = new
            datastoreState = "ready"
        case .unavailable(let reason):
            datastoreState = "unavailable"
            logger.warning(
                "datastore is unavailable; the data plane keeps its state", metadata: ["reason": "\(reason)"])
        }
    }

    /// One pass. Returns how long to wait, at most, until the next.
    func reconcile() async -> Duration {
        pathOfPass = nil
        guard let snapshot else {
            report(problems: [], plan: nil)
            return Self.auditPeriod
        }
        var problems = snapshot.problems
        rememberKeyOwners()
        let plan = NodePlan(
            manifests: Array(snapshot.manifests.values), node: options.node,
            ownKeys: families.compactMapValues { $0.device?.publicKey }, keyOwners: keyOwners)
        keyOwners = plan.keyOwners
        problems += plan.problems
        do {
            try await apply(plan, &problems)
        } catch {
            problems.append(Self.problem(of: error))
        }
        if !snapshot.isComplete, !families.isEmpty {
            problems.append(
                Problem(
                    .warning, resource: datastore.location,
                    message: "holds files whose content nobody knows, so nothing is taken away for being absent",
                    remedy: "mend or remove the files named here"))
        }
        report(problems: problems, plan: plan)
        return nextPass(plan)
    }

    /// Who had each key first is known from the maps of an earlier agent.
    private func rememberKeyOwners() {
        guard !hasRemembered else { return }
        hasRemembered = true
        guard options.layout.exists, let owners = try? PinnedMaps(options.layout).destinations.slotOwners() else {
            return
        }
        for owner in owners.values {
            if let key = owner.publicKey { keyOwners[key] = owner.node }
        }
    }

    func nextPass(_ plan: NodePlan) -> Duration {
        var next = Self.auditPeriod
        for (family, state) in families {
            if let look = state.peers.nextLook(plan[family].peers, now: .now) { next = min(next, look) }
            if let until = state.drainingUntil { next = min(next, max(.milliseconds(20), until - .now)) }
        }
        if owesForeignLook { next = min(next, .seconds(1)) }
        if !unsettled.isEmpty { next = min(next, .milliseconds(200)) }
        if let retry = steering?.nextRetry { next = min(next, max(.milliseconds(10), retry - .now)) }
        return next
    }

    static func problem(of error: any Error) -> Problem {
        switch error {
        case let error as ProblemsError where !error.problems.isEmpty: return error.problems[0]
        case let error as WireGuardError:
            let parts = "\(error)".split(separator: ";", maxSplits: 1)
            return Problem(
                resource: "WireGuard", message: String(parts[0]),
                remedy: parts.count > 1 ? parts[1].trimmingPrefix(" ").description : "see `wgplane doctor`")
        case let error as DatastoreError:
            return Problem(resource: error.location, message: error.message, remedy: error.remedy)
        case let error as BPFError:
            return Problem(
                resource: "Kernel", field: "BPF", message: "\(error)",
                remedy: "see `wgplane doctor` for what this kernel can do")
        default:
            return Problem(resource: "Agent", message: "\(error)", remedy: "it is tried again; see `wgplane doctor`")
        }
    }

    /// A setting that is read when WireGuard is switched on.
    static func later(_ field: String, _ value: String, inForce: String) -> Problem {
        Problem(
            .warning, resource: "FelixConfiguration or DataplaneConfiguration", field: "spec.\(field)", value: value,
            message: "is not in force yet, \(inForce) is", remedy: "switch WireGuard off and on again on this node")
    }

    // MARK: One pass

    func session() throws -> RouteSession {
        if let route { return route }
        let new = try RouteSession()
        route = new
        return new
    }

    func apply(_ plan: NodePlan, _ problems: inout [Problem]) async throws {
        let now = ContinuousClock.now
        unsettled = []
        try adoptPinned(plan)
        updatePhases(plan, now, &problems)
        noteStrictness(plan, &problems)
        guard isActive(plan) else {
            try await tearDown(plan)
            return
        }
        hasCleaned = false
        let route = try session()
        let backend = try backendOrProblem(plan, &problems)
        var steering = try self.steering ?? EBPFSteering(layout: options.layout, attachment: plan.settings.attachment)
        defer { self.steering = steering }
        if now - lastAudit >= Self.auditPeriod {
            lastAudit = now
            try steering.resync()
        }
        if let chosen = chosenSettings, chosen.attachment != plan.settings.attachment {
            problems.append(
                Self.later("bpfAttachType", plan.settings.attachment.rawValue, inForce: chosen.attachment.rawValue))
        }
        if let chosen = chosenSettings, chosen.backend != plan.settings.backend {
            problems.append(
                Self.later("wireguardBackend", plan.settings.backend.rawValue, inForce: chosen.backend.rawValue))
        }
        chosenSettings = chosenSettings ?? plan.settings
        let facts = try KernelFacts(route)
        let deviceNames = Set(families.values.map(\.settings.interfaceName))
        let uplinks = facts.uplinks(pattern: plan.settings.dataInterfacePattern, excluding: deviceNames)
        if !uplinks.contains(where: \.isUp) {
            problems.append(
                Problem(
                    resource: "FelixConfiguration/default", field: "spec.bpfDataIfacePattern",
                    value: plan.settings.dataInterfacePattern, message: "matches no device that is up",
                    remedy: "set it to a regular expression that matches the node's uplinks"))
        }
        noteEarlierFilters(plan, uplinks + facts.overlays(excluding: deviceNames), &problems)
        for family in families.keys.sorted() {
            guard let backend else { break }
            do {
                try ensureDevice(family, plan, backend, route, uplinks, facts, steering)
                observePeers(family, plan, now)
            } catch {
                unsettled.insert(family)
                problems.append(Self.deviceProblem(error, families[family]?.settings.interfaceName ?? ""))
            }
        }
        try steering.admit(try steeringPlan(plan, facts, uplinks))
        for family in families.keys.sorted() where !unsettled.contains(family) {
            guard let backend else { break }
            do {
                try changePeers(family, plan, backend)
                observePeers(family, plan, now)
            } catch {
                unsettled.insert(family)
                problems.append(Self.deviceProblem(error, families[family]?.settings.interfaceName ?? ""))
            }
        }
        let wanted = try steeringPlan(plan, try KernelFacts(route), uplinks)
        // Kept first: what is promised now holds after a crash and a reboot too.
        keepGuardState(wanted.guardPlan, plan, &problems)
        problems += try steering.apply(wanted)
        for family in families.keys.sorted() where !unsettled.contains(family) {
            guard let backend else { break }
            try retirePeers(family, backend, now)
        }
        await publish(plan, &problems)
    }

    static func deviceProblem(_ error: any Error, _ device: String) -> Problem {
        var problem = problem(of: error)
        problem.resource = "Device/\(device)"
        return problem
    }

    /// What an earlier agent had switched on is on, under the names that its devices have,
    /// until somebody says otherwise.
    private func adoptPinned(_ plan: NodePlan) throws {
        guard !hasAdoptedPinned else { return }
        var pinned: DataplaneConfig?
        defer { rememberStrictness(pinned) }
        if options.layout.exists, let maps = try? PinnedMaps(options.layout) {
            let (config, generation) = try maps.config.read()
            pinned = generation == 0 ? nil : config
            let links = try session().links()
            for family in AddressFamily.allCases {
                guard let device = config[family], device.interface != 0 else { continue }
                var settings = plan.settings[family]
                if let link = links.first(where: { $0.index == device.interface }) {
                    settings.interfaceName = link.name
                }
                families[family] = FamilyState(settings: settings)
                families[family]?.wasPinned = true
            }
        }
        hasAdoptedPinned = true
    }

    /// Which families are on, which are on their way out, which are gone.
    private func updatePhases(_ plan: NodePlan, _ now: ContinuousClock.Instant, _ problems: inout [Problem]) {
        for family in AddressFamily.allCases {
            if isWanted(family, plan, &problems) {
                if families[family] == nil { families[family] = FamilyState(settings: plan.settings[family]) }
                let name = families[family]?.settings.interfaceName ?? ""
                families[family]?.settings = plan.settings[family]
                if name != plan.settings[family].interfaceName {
                    families[family]?.settings.interfaceName = name
                    problems.append(
                        Self.later("wireguardInterfaceName", plan.settings[family].interfaceName, inForce: name))
                }
                families[family]?.drainingUntil = nil
            } else if let state = families[family] {
                guard let until = state.drainingUntil else {
                    families[family]?.drainingUntil = now + Self.drainTime
                    logger.notice("WireGuard is switched off", metadata: ["family": "\(family)"])
                    continue
                }
                // The others must have been told, or they tunnel into nothing.
                let isSilent = isWithdrawn(family) && now - state.received.at >= Self.drainSilence
                guard until <= now, isSilent || until + .seconds(10) <= now else { continue }
                do {
                    try backend?.delete(device: state.settings.interfaceName)
                    families[family] = nil
                } catch {
                    problems.append(Self.deviceProblem(error, state.settings.interfaceName))
                }
            }
        }
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
        let annotations = snapshot?.manifests[ResourceKey(.node, options.node)]?.annotations ?? [:]
        return annotations[NodeAnnotation.publicKey(family)] == nil
    }

    // MARK: Switched off

    /// Leaves nothing behind: programs, maps, devices, annotations, the device's address.
    func tearDown(_ plan: NodePlan) async throws {
        if !hasCleaned {
            if var steering {
                try steering.remove()
            } else if options.layout.exists {
                try EBPFSteering.removeAll(layout: options.layout)
            }
            steering = nil
            for family in AddressFamily.allCases {
                try BackendSelection.delete(device: plan.settings[family].interfaceName)
            }
            try GuardState.remove(options.stateDirectory)
            guardState = nil
            backend = nil
            chosenSettings = nil
            hasCleaned = true
        }
        try await publication.write(wantedAnnotations(), snapshot)
        try await publication.release(AddressFamily.allCases, snapshot)
    }

    /// Takes flows and mappings out whose time is over.
    func sweep() {
        guard let maps = steering?.maps else { return }
        do {
            let gone = try FlowSweeper(maps).sweep(now: monotonicNanoseconds())
            if gone.flows + gone.mappings > 0 {
                logger.debug("flows ended", metadata: ["flows": "\(gone.flows)", "mappings": "\(gone.mappings)"])
            }
        } catch {
            logger.warning("flows cannot be swept", metadata: ["error": "\(error)"])
        }
    }
}
