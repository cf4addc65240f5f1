// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
public import Datastore
internal import DesiredState
internal import FlowExport
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

    /// What the datastore has told.
    var inventory: Inventory
    let feed: ChangeFeed
    let cache: ResourceCache
    /// When what is known was told, where it is known from an earlier agent's memory only.
    var recalledFrom: Int64?
    /// The head of that memory.
    var remembered: ResourceCache.Head?
    /// How many of each kind the memory on disk has.
    var keptCounts: [ResourceKind: Int] = [:]
    /// The last plan, and what it was made of.
    var lastPlan: (ingredients: Ingredients, plan: NodePlan)?
    /// Whether all was known when it was made.
    private var planIsComplete = false
    /// Peers whose allowed IPs have changed since the last look at the devices began.
    var touchedPeers: Set<PublicKey> = []
    /// When the next whole pass is due, whatever changes; see `changeWorkloads`.
    var wholePassDue = ContinuousClock.now
    var datastoreState = "waiting"
    var keyOwners: [PublicKey: String] = [:]
    var keyPins: KeyPinKeeper
    var backend: (any WireGuardBackend)?
    /// The programs, while they are in place or are to be.
    var steering: EBPFSteering?
    /// Rules and routes, while they are in place or are to be.
    var routing: RouteSteering?
    var lock: LockKeeper
    /// Our rules in the node's firewall in eBPF mode; route mode has its own.
    var firewall = HostFirewall()
    /// The data plane that is to be, and why.
    var mode = ModeDecision(mode: .disabled, reason: "")
    /// What has been in place before the mode was chosen, or may have been, is not known to be gone.
    var mayHaveRoutes = true
    var mayHavePrograms = true
    /// Why the programs could not be loaded, and the settings with which that was tried.
    var programsFailure: ProgramsFailure?
    /// What this kernel has, probed once.
    lazy var automaticMechanism = AttachmentMechanism.probe()
    /// The settings in force, which hold for fields that cannot be read.
    var inForce: Settings?
    /// Firewall mark that the devices had before, until it is forgotten.
    var formerMark: (mark: UInt32, until: ContinuousClock.Instant)?
    /// What the kernel's WireGuard changes of the node's own settings.
    var deviceSettings: KernelSettings
    /// Threading that was refused, so that it is said once.
    var threadingRefused: Set<String> = []
    /// Peers changed since the start, for status.
    var peerChanges = 0
    let statistics: AgentStatistics
    let flows: FlowKeeper
    let audit: AuditKeeper
    /// Why the dashboard cannot be served where it is to be.
    private(set) var dashboardFailure: String?
    /// Of problems with pods' addresses, those that were told.
    var problemsVersion: Int?
    /// Names by address, and the content that they were made of.
    var lastNames: (version: Int, isWhole: Bool, names: AddressNames)?
    /// What an earlier agent has told, until the first pass.
    var earlier: StatusReport?
    var families: [AddressFamily: FamilyState] = [:]
    var lastAudit = ContinuousClock.now
    var lastReport: StatusReport?
    var lastProblems: Set<Problem> = []
    var hasCleaned = false
    private var lastPassFailed = false
    /// Families that are promised in strict mode until a word ends it.
    var promised: Set<AddressFamily> = []
    /// Of these those that are taken to be promised, as what says so was damaged: until the datastore has told all.
    var assumed: Set<AddressFamily> = []
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
    var farEnds = FarEnds()
    /// Of legacy iptables, as it was a moment ago.
    var lastLegacyFirewall = FirewallInspection.Findings()
    /// As it was last written.
    var guardState: GuardState?
    /// Families whose device could not be looked at or changed in this pass: what is in
    /// place for them stays, in the data plane and in the datastore.
    var unsettled: Set<AddressFamily> = []
    /// Those of the pass before.
    var unreadable: Set<AddressFamily> = []
    var hasRemembered = false
    var hasAdopted = false

    /// What this agent holds of one family.
    struct FamilyState {
        var settings: DeviceSettings
        /// Nil: on. Otherwise when the device goes.
        var drainingUntil: ContinuousClock.Instant?
        /// Bytes that the peers have sent, since when it is that many, and when that was last looked at.
        var received: (bytes: UInt64, since: ContinuousClock.Instant, seen: ContinuousClock.Instant) =
            (0, .now, .now)
        /// How long the peers have been silent, as far as has been looked.
        var silence: Duration { received.seen - received.since }
        var device: DeviceState?
        var address: IPAddress?
        var mtu: UInt32 = 0
        var peers = PeerTable()
        var hasAdopted = false
        /// The device's name now, which `settings` may want another.
        var deviceName: String
        /// Port that the device had before, until it is forgotten.
        var formerPort: (port: UInt16, until: ContinuousClock.Instant)?
        /// An earlier agent had it: what is pinned holds until the device is seen.
        var wasPinned = false
        /// When it got another key for a clock that went back.
        var keyRenewed: ContinuousClock.Instant?

        init(settings: DeviceSettings, deviceName: String? = nil) {
            self.settings = settings
            self.deviceName = deviceName ?? settings.interfaceName
        }
    }

    /// How long a device outlives the word that switches it off, at least; and how long its
    /// peers must have been silent, for they may hear of it late.
    static let drainTime = Duration.seconds(1)
    static let drainSilence = Duration.milliseconds(700)
    /// Of whole passes that compare everything: it is as it was told, or mended.
    private var pace: Pace
    var auditPeriod: Duration { pace.period }

    public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    let publisher: Publisher
    let lookAhead = LookAhead()
    let statusWriter: StatusWriter
    /// What this pass has seen before it began.
    var sight: LookAhead.Sight?
    /// What is known may be between two states: not the moment for `changeWorkloads`.
    var isInPass = false

    public init(options: AgentOptions, datastore: any Datastore, logger: Logger) {
        self.options = options
        pace = Pace(.seconds(10), factor: 500, longest: options.longestPeriod)
        inventory = Inventory(node: options.node)
        feed = ChangeFeed(node: options.node)
        cache = ResourceCache(options, location: datastore.location, logger: logger)
        lock = LockKeeper(options.layout)
        keyPins = KeyPinKeeper(options)
        deviceSettings = .ofWireGuard(folder: options.runDirectory)
        let statistics = AgentStatistics()
        self.statistics = statistics
        flows = FlowKeeper(options: options, statistics: statistics, logger: logger)
        audit = AuditKeeper(options, logger: logger)
        publisher = Publisher(Publication(node: options.node, datastore: datastore, logger: logger))
        statusWriter = StatusWriter(runDirectory: options.runDirectory)
        self.datastore = datastore
        self.logger = logger
    }

    // MARK: Input

    /// Somebody, perhaps we, has changed the node's firewall.
    func firewallChanged() {
        wholePassDue = .now
        firewall.resync()
        routing?.resyncFirewall()
    }

    /// The kernel has told of a change of links, addresses, routes or rules, perhaps ours.
    func networkChanged() {
        wholePassDue = .now
        farEnds.forget()
        routing?.resyncTable()
    }

    /// Takes in what the datastore has told since the last call. Returns whether `reconcile` is to be called for it,
    /// sooner than that has asked for.
    func receiveChanges() -> Bool {
        let changes = feed.take()
        inventory.apply(changes)
        let before = datastoreState
        defer { if datastoreState != before { wholePassDue = .now } }
        switch changes.availability {
        case .available:
            datastoreState = "ready"
            statistics.noteDatastore()
        case .unavailable(let reason):
            datastoreState = "unavailable"
            recall()
            logger.warning(
                "datastore is unavailable; the data plane keeps its state", metadata: ["reason": "\(reason)"])
        case nil: break
        }
        guard !isInPass else { return true }
        let due = wholePassDue
        return changeWorkloads() == nil || wholePassDue < due || datastoreState != before
    }

    func remember(_ resources: [ResourceKey: ResourceEntry], podScope: PodScope) {
        inventory.remember(resources, podScope: podScope)
    }

    func remember(_ lastKeys: [AddressFamily: [String: PublicKey]]) { inventory.rememberKeys(lastKeys) }

    /// Whether there was something to recall.
    func recallInventory() -> Bool {
        inventory.recall()
    }

    func takeWorkloadChanges() -> [IPAddress: String?] { inventory.takeWorkloadChanges() }

    /// Whether all that the plan is made of is known: only then may be taken away what it does not name.
    var isComplete: Bool { planIsComplete && isInventoryComplete }

    private var isInventoryComplete: Bool {
        inventory.isComplete && (lastPlan?.plan.routeSource != .workloadIPs || inventory.podScope == .all)
    }

    /// Compares WireGuard's counters with the programs'.
    func lookAtAudit() async { await audit.look(lastReport) }

    /// What the publisher has to say.
    func publicationChanged() { wholePassDue = .now }

    func note(dashboard failure: String?) { dashboardFailure = failure }

    /// One pass. Returns how long to wait, at most, until the next.
    func reconcile() async -> Duration {
        if let next = changeWorkloads() { return next }
        let began = monotonicNanoseconds()
        let (mark, compared) = (pace.begin(), lastAudit)
        defer {
            // Others come when something has changed, and at an agent's start do more than any later one.
            if lastAudit != compared { pace.end(mark) }
            // A pass over a large cluster leaves much behind.
            if monotonicNanoseconds() - began > 20_000_000 { ProcessMemory.release() }
            statistics.notePass(
                nanoseconds: monotonicNanoseconds() - began, failed: lastPassFailed,
                work: lastReport?.work ?? StatusReport.Work())
        }
        lastPassFailed = false
        // What changes from now on is another pass's.
        wholePassDue = .now + auditPeriod
        sight = await lookAround()
        isInPass = true
        defer {
            isInPass = false
            sight = nil
        }
        pathOfPass = nil
        // Before a report of this agent takes the place of an earlier one's.
        rememberKeyOwners()
        guard inventory.isReady else {
            await reportWaiting()
            return auditPeriod
        }
        var problems = inventory.problems + staleProblems()
        var plan = makePlan()
        if plan.settings.massDeletion == .apply, !inventory.held.isEmpty {
            inventory.apply(ResourceChanges(), acceptsMassDeletion: true)
            plan = makePlan()
        }
        // What comes while the pass goes on does not make an older plan complete.
        planIsComplete = isInventoryComplete
        noteWorkloads()
        if plan.routeSource == .workloadIPs { feed.podScope = .all }
        problems += plan.problems + (inventory.workloads?.problems(inventory.cluster) ?? [])
        problemsVersion = inventory.workloads?.problemsVersion
        do {
            try await apply(plan, &problems)
        } catch {
            lastPassFailed = true
            problems.append(Self.problem(of: error))
        }
        if !inventory.isContentComplete, !families.isEmpty {
            problems.append(
                Problem(
                    .warning, resource: datastore.location,
                    message: "holds files whose content nobody knows, so nothing is taken away for being absent",
                    remedy: "mend or remove the files named here"))
        }
        if let problem = keyPins.problem { problems.append(problem) }
        problems += serviceProblems()
        await report(problems: problems, plan: plan)
        let cost = Duration.nanoseconds(monotonicNanoseconds() - began)
        let next = nextPass(plan, cost: cost)
        wholePassDue = min(wholePassDue, .now + next)
        return next
    }

    /// `cost`: what this pass took.
    func nextPass(_ plan: NodePlan, cost: Duration) -> Duration {
        var next = auditPeriod
        let comparison = lastAudit + auditPeriod - .now
        // What has fallen due within this pass is made up for at once.
        if comparison > .zero - cost { next = min(next, max(.milliseconds(10), comparison)) }
        for (family, state) in families {
            if let look = state.peers.nextLook(plan[family].peers, now: .now, cost: cost) { next = min(next, look) }
            for until in [state.drainingUntil, state.formerPort?.until].compactMap({ $0 }) {
                next = min(next, max(.milliseconds(20), until - .now))
            }
        }
        if let again = programsFailure?.again, again > .now { next = min(next, again - .now) }
        if owesForeignLook { next = min(next, .seconds(1)) }
        if !unsettled.isEmpty { next = min(next, .milliseconds(200)) }
        let instants = [
            formerMark?.until, steering?.nextRetry, routing?.nextRetry, lock.nextRetry, firewall.nextRetry,
        ]
        for instant in instants.compactMap({ $0 }) { next = min(next, max(.milliseconds(10), instant - .now)) }
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

    func session() throws -> RouteSession {
        if let route { return route }
        let new = try RouteSession()
        route = new
        return new
    }
}
