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
    private var route: RouteSession?

    var snapshot: Snapshot?
    private var datastoreState = "waiting"
    private var keyOwners: [PublicKey: String] = [:]
    private var backend: (any WireGuardBackend)?
    private var steering: EBPFSteering?
    var families: [AddressFamily: FamilyState] = [:]
    private var lastAudit = ContinuousClock.now
    private var lastReport: StatusReport?
    private var lastProblems: Set<Problem> = []
    private var hasCleaned = false

    /// What this agent holds of one family.
    struct FamilyState {
        var settings: DeviceSettings
        /// Nil: on. Otherwise when the device goes.
        var drainingUntil: ContinuousClock.Instant?
        var device: DeviceState?
        var address: IPAddress?
        var mtu: UInt32 = 0
        var peers = PeerTable()
        var hasAdopted = false
    }

    static let drainTime = Duration.milliseconds(500)
    static let auditPeriod = Duration.seconds(10)

    public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    public init(options: AgentOptions, datastore: any Datastore, logger: Logger) {
        self.options = options
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
        guard let snapshot else {
            report(problems: [], plan: nil)
            return Self.auditPeriod
        }
        var problems = snapshot.problems
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
        report(problems: problems, plan: plan)
        return nextPass(plan)
    }

    private func nextPass(_ plan: NodePlan) -> Duration {
        var next = Self.auditPeriod
        for (family, state) in families {
            if state.peers.isWaiting(plan[family].peers) { next = min(next, .milliseconds(50)) }
            if let until = state.drainingUntil { next = min(next, max(.milliseconds(1), until - .now)) }
        }
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

    // MARK: One pass

    private func session() throws -> RouteSession {
        if let route { return route }
        let new = try RouteSession()
        route = new
        return new
    }

    private func apply(_ plan: NodePlan, _ problems: inout [Problem]) async throws {
        let now = ContinuousClock.now
        updatePhases(plan, now, &problems)
        guard !families.isEmpty else {
            try await tearDown(plan)
            return
        }
        hasCleaned = false
        let route = try session()
        let backend = try chosenBackend(plan.settings.backend)
        var steering = try self.steering ?? EBPFSteering(layout: options.layout, attachment: plan.settings.attachment)
        defer { self.steering = steering }
        if now - lastAudit >= Self.auditPeriod {
            lastAudit = now
            try steering.resync()
        }
        let facts = try KernelFacts(route)
        let deviceNames = Set(families.values.map(\.settings.interfaceName))
        let uplinks = facts.uplinks(pattern: plan.settings.dataInterfacePattern, excluding: deviceNames)
        if uplinks.isEmpty {
            problems.append(
                Problem(
                    resource: "FelixConfiguration/default", field: "spec.bpfDataIfacePattern",
                    value: plan.settings.dataInterfacePattern, message: "matches no device that is up",
                    remedy: "set it to a regular expression that matches the node's uplinks"))
        }
        for family in families.keys.sorted() {
            do {
                try ensureDevice(family, plan, backend, route, uplinks, facts, steering)
                observePeers(family, plan, now)
            } catch {
                problems.append(Self.deviceProblem(error, families[family]?.settings.interfaceName ?? ""))
            }
        }
        try steering.admit(try steeringPlan(plan, facts, uplinks))
        for family in families.keys.sorted() {
            do {
                try changePeers(family, plan, backend)
                observePeers(family, plan, now)
            } catch {
                problems.append(Self.deviceProblem(error, families[family]?.settings.interfaceName ?? ""))
            }
        }
        problems += try steering.apply(try steeringPlan(plan, try KernelFacts(route), uplinks))
        for family in families.keys.sorted() { try retirePeers(family, backend, now) }
        await publish(plan, &problems)
    }

    private static func deviceProblem(_ error: any Error, _ device: String) -> Problem {
        var problem = problem(of: error)
        problem.resource = "Device/\(device)"
        return problem
    }

    private func chosenBackend(_ choice: WireGuardBackendChoice) throws -> any WireGuardBackend {
        if let backend { return backend }
        let new = try BackendSelection.backend(choice)
        backend = new
        logger.info("WireGuard backend", metadata: ["backend": "\(new.kind.rawValue)"])
        return new
    }

    /// Which families are on, which are on their way out, which are gone.
    private func updatePhases(_ plan: NodePlan, _ now: ContinuousClock.Instant, _ problems: inout [Problem]) {
        for family in AddressFamily.allCases {
            var wanted = plan.settings.enabledFamilies.contains(family)
            if wanted, !plan[family].hasUnderlay {
                wanted = false
                problems.append(
                    Problem(
                        resource: "Node/\(options.node)", field: "status.addresses",
                        message: "has no InternalIP of \(family), so \(family) pods' packets are not encrypted",
                        remedy: "add the address, or switch WireGuard off for \(family)"))
            }
            if wanted {
                if families[family] == nil { families[family] = FamilyState(settings: plan.settings[family]) }
                if families[family]?.settings.interfaceName == plan.settings[family].interfaceName {
                    families[family]?.settings = plan.settings[family]
                }
                families[family]?.drainingUntil = nil
            } else if let state = families[family] {
                if let until = state.drainingUntil {
                    if until <= now {
                        try? backend?.delete(device: state.settings.interfaceName)
                        families[family] = nil
                    }
                } else {
                    families[family]?.drainingUntil = now + Self.drainTime
                    logger.notice("WireGuard is switched off", metadata: ["family": "\(family)"])
                }
            }
        }
    }

    private func ensureDevice(
        _ family: AddressFamily, _ plan: NodePlan, _ backend: any WireGuardBackend, _ route: RouteSession,
        _ uplinks: [Link], _ facts: KernelFacts, _ steering: EBPFSteering
    ) throws {
        guard var state = families[family] else { return }
        defer { families[family] = state }
        let manager = DeviceManager(family: family, backend: backend, route: route, logger: logger)
        // WireGuard adds 60 bytes on IPv4 and 80 on IPv6: outer headers, its own header, the tag.
        let overhead: UInt32 = family == .ipv4 ? 60 : 80
        let underlay = uplinks.map(\.mtu).min() ?? 1500
        state.mtu = state.settings.mtu != 0 ? state.settings.mtu : max(underlay, 1280 + overhead) - overhead
        let isNew = state.device == nil
        let device = try manager.ensure(state.settings, mtu: state.mtu, mark: plan.settings.firewallMark)
        if isNew || device.interface != state.device?.interface || device.publicKey != state.device?.publicKey {
            logger.info(
                "WireGuard device",
                metadata: [
                    "device": "\(device.name)", "interface": "\(device.interface)",
                    "publicKey": "\(device.publicKey?.description ?? "none")", "peers": "\(device.peers.count)",
                ])
        }
        if !state.hasAdopted {
            state.peers.adopt(Array(try steering.maps.destinations.slotOwners().values), family: family)
            state.hasAdopted = true
        }
        state.address = state.address ?? publishedAddress(family)
        try manager.setAddress(state.address, interface: device.interface, present: facts.addresses)
        state.device = device
    }

    /// Notes handshakes, and which key carries each node's traffic.
    private func observePeers(_ family: AddressFamily, _ plan: NodePlan, _ now: ContinuousClock.Instant) {
        guard let device = families[family]?.device else { return }
        let peers = peerPlans(family, plan)
        families[family]?.peers.observe(device, peers, now: now)
    }

    private func changePeers(_ family: AddressFamily, _ plan: NodePlan, _ backend: any WireGuardBackend) throws {
        guard let state = families[family], let device = state.device else { return }
        let (changes, stamped) = state.peers.changes(
            device, peerPlans(family, plan), keepAlive: plan.settings.keepAlive)
        if !changes.isEmpty {
            logger.debug("peers change", metadata: ["device": "\(device.name)", "changes": "\(changes.count)"])
            try backend.apply(DeviceChange(peers: changes), to: device.name)
            if let after = try backend.state(device: device.name) { families[family]?.device?.peers = after.peers }
        }
        families[family]?.peers.note(stamped: stamped)
    }

    private func peerPlans(_ family: AddressFamily, _ plan: NodePlan) -> [String: PeerPlan] {
        families[family]?.drainingUntil == nil ? plan[family].peers : drainingPeers(family, plan)
    }

    /// While a family goes, its peers stay as they are, so that what they still send is decrypted.
    private func drainingPeers(_ family: AddressFamily, _ plan: NodePlan) -> [String: PeerPlan] {
        guard let device = families[family]?.device else { return [:] }
        var peers = plan[family].peers
        for (key, peer) in device.peers {
            guard !peers.values.contains(where: { $0.publicKey == key }), let endpoint = peer.endpoint else { continue }
            peers["key \(key)"] = PeerPlan(
                node: "key \(key)", publicKey: key, endpoint: endpoint, allowedIPs: peer.allowedIPs)
        }
        return peers
    }

    private func retirePeers(
        _ family: AddressFamily, _ backend: any WireGuardBackend, _ now: ContinuousClock.Instant
    ) throws {
        guard let state = families[family], let device = state.device else { return }
        let removals = state.peers.removals(now: now)
        if !removals.isEmpty { try backend.apply(DeviceChange(peers: removals), to: device.name) }
    }

    // MARK: Data plane

    private func steeringPlan(_ plan: NodePlan, _ facts: KernelFacts, _ uplinks: [Link]) throws -> SteeringPlan {
        func device(_ family: AddressFamily) -> DataplaneConfig.Device? {
            guard let state = families[family], let device = state.device else { return nil }
            return .init(
                interface: device.interface, listeningPort: state.settings.listeningPort, address: state.address)
        }
        var result = SteeringPlan(
            config: DataplaneConfig(
                ipv4: device(.ipv4), ipv6: device(.ipv6), firewallMark: plan.settings.firewallMark,
                isDirect: steeringPath(plan.settings.steeringPath).path == .direct))
        for (family, state) in families {
            guard let device = state.device else { continue }
            addPeers(family, state, plan[family], device, to: &result)
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
        result.locals = facts.locals(pods: plan.pods, deviceAddresses: families.values.compactMap(\.address))
        for link in uplinks {
            result.hooks += [Hook.toUplink, .fromUplink].map {
                HookPoint(hook: $0, interface: link.index, device: link.name, isEthernet: link.isEthernet)
            }
        }
        for link in facts.podDevices(plan.pods) {
            result.hooks.append(
                HookPoint(hook: .fromPod, interface: link.index, device: link.name, isEthernet: true))
        }
        return result
    }

    private func addPeers(
        _ family: AddressFamily, _ state: FamilyState, _ plan: FamilyPlan, _ device: DeviceState,
        to result: inout SteeringPlan
    ) {
        for (key, retiring) in state.peers.retiring where !retiring.node.isEmpty {
            result.peers[PeerSlotKey(node: retiring.node, family: family)] = PeerSteering(
                publicKey: key, endpoint: retiring.endpoint, action: .draining, lanes: [device.interface])
        }
        for (name, peer) in plan.peers {
            let action: DestinationAction =
                state.drainingUntil != nil ? .draining : state.peers.isReady(name) ? .tunnel : .clear
            result.peers[PeerSlotKey(node: name, family: family)] = PeerSteering(
                publicKey: state.peers.carrier(of: name) ?? peer.publicKey, endpoint: peer.endpoint, action: action,
                lanes: [device.interface])
        }
        for name in plan.unencrypted {
            let key = PeerSlotKey(node: name, family: family)
            if result.peers[key] == nil {
                result.peers[key] = PeerSteering(publicKey: nil, endpoint: nil, action: .clear, lanes: [])
            }
        }
    }

    private func steeringPath(_ choice: SteeringPathChoice) -> (path: SteeringPathChoice, reason: String) {
        guard choice == .auto else { return (choice, "wireguardSteeringPath is set") }
        do {
            let tables = try FirewallInspection.tables()
            if tables.isEmpty { return (.direct, "nothing in netfilter looks at forwarded packets") }
            return (.stack, "netfilter may filter forwarded packets: \(tables.prefix(3).joined(separator: ", "))")
        } catch {
            return (.stack, "netfilter cannot be inspected: \(error)")
        }
    }

    // MARK: Switched off

    /// Leaves nothing behind: programs, maps, devices, annotations, the device's address.
    private func tearDown(_ plan: NodePlan) async throws {
        if !hasCleaned {
            if var steering {
                try steering.remove()
            } else if options.layout.exists {
                try EBPFSteering.removeAll(layout: options.layout)
            }
            steering = nil
            for family in AddressFamily.allCases {
                let name = plan.settings[family].interfaceName
                if let (kind, _) = try BackendSelection.state(device: name) {
                    try BackendSelection.backend(kind == .kernel ? .kernel : .userspace).delete(device: name)
                }
            }
            backend = nil
            hasCleaned = true
        }
        try await withdraw()
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

    // MARK: Status

    private func report(problems: [Problem], plan: NodePlan?) {
        let distinct = Set(problems)
        for problem in distinct.subtracting(lastProblems).sorted() {
            logger.log(
                level: problem.severity == .error ? .error : .warning, "problem",
                metadata: ["problem": "\(problem.description)"])
        }
        for problem in lastProblems.subtracting(distinct).sorted() {
            logger.info("problem is gone", metadata: ["resource": "\(problem.resource)", "field": "\(problem.field)"])
        }
        lastProblems = distinct
        let path = families.isEmpty ? nil : plan.map { steeringPath($0.settings.steeringPath) }
        var report = StatusReport(
            node: options.node, process: processIdentifier(), mode: families.isEmpty ? "disabled" : "ebpf",
            datastore: datastore.location, datastoreState: datastoreState,
            routeSource: plan?.routeSource.rawValue ?? "", backend: backend?.kind.rawValue ?? "",
            attachment: steering?.mechanism.rawValue ?? "", steeringPath: path?.path.rawValue ?? "",
            steeringPathReason: path?.reason ?? "", attachments: steering?.attached ?? [],
            problems: distinct.sorted())
        if let plan {
            for (family, state) in families { report[family] = familyReport(family, state, plan[family]) }
        }
        guard report != lastReport else { return }
        do {
            try report.write(runDirectory: options.runDirectory)
            lastReport = report
        } catch {
            logger.error("status cannot be written", metadata: ["error": "\(error)"])
        }
    }

    private func familyReport(_ family: AddressFamily, _ state: FamilyState, _ plan: FamilyPlan) -> StatusReport.Family
    {
        let peers = plan.peers.values.sorted { $0.node < $1.node }.map { peer in
            let ready = state.peers.isReady(peer.node)
            return StatusReport.Peer(
                node: peer.node, publicKey: peer.publicKey, endpoint: peer.endpoint.description,
                state: state.peers.readiness(peer.node, planned: peer.publicKey).rawValue,
                action: ready && state.drainingUntil == nil ? "tunnel" : "clear")
        }
        return StatusReport.Family(
            phase: state.drainingUntil == nil ? "on" : "draining", device: state.settings.interfaceName,
            interface: state.device?.interface ?? 0, publicKey: state.device?.publicKey, address: state.address,
            listeningPort: state.settings.listeningPort, mtu: state.mtu, peers: peers,
            unencryptedNodes: plan.unencrypted.sorted())
    }
}

extension EBPFSteering {
    /// Hooks that are in place, for status.
    var attached: [StatusReport.Attachment] {
        attachedPoints.map { StatusReport.Attachment(hook: $0.hook.name, device: $0.device) }
            .sorted { ($0.device, $0.hook) < ($1.device, $1.hook) }
    }
}
