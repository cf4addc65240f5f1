// SPDX-License-Identifier: Apache-2.0

public import BPF
public import DataplaneMaps
public import Model
internal import Netlink
internal import Reconciler

/// What strict mode's second lock is to hold.
public struct GuardPlan: Sendable, Hashable, Codable {
    /// Pools, and the prefixes of nodes that are exempt.
    public var prefixes: [CIDR: GuardKind]
    /// UDP ports of overlays.
    public var vxlanPorts: [UInt16]
    /// Some resources cannot be read: what is held besides stays held.
    public var isPartial = false

    public init(prefixes: [CIDR: GuardKind], vxlanPorts: [UInt16], isPartial: Bool = false) {
        self.isPartial = isPartial
        self.prefixes = prefixes
        self.vxlanPorts = vxlanPorts
    }
}

/// Strict mode's second lock: two small programs with maps of their own, behind the hooks, on every
/// device that leads to other nodes. They hold without an agent and, armed by `wgplane guard`, before the
/// first one has come up. They are attached as the hooks are: by tcx links with pins of their own beside
/// those of the hooks, or as clsact filters with a handle of their own. A clsact qdisc for the lock alone would
/// cost packets whenever strict mode is switched on or off.
public struct SecondLock {
    private let layout: PinLayout
    private let mechanism: AttachmentMechanism
    private var programs: DataplanePrograms
    private var prefixes = Reconciler<CIDR, GuardKind>()
    private var points = Reconciler<HookPoint, UInt32>()
    private let table: GuardTable
    private let vxlanPorts: [UInt16]
    /// As devices are called now.
    private var names: [UInt32: String] = [:]
    /// Filters at devices that are uplinks no more are gone.
    private var hasSwept = false

    /// Loads the programs; adopts the maps that are there.
    public init(layout: PinLayout, vxlanPorts: [UInt16], mechanism: AttachmentMechanism) throws {
        self.layout = layout
        self.vxlanPorts = vxlanPorts
        self.mechanism = mechanism
        try layout.create()
        if mechanism == .tcx { try layout.createGuardFolder() }
        programs = DataplanePrograms(empty: layout)
        programs.vxlanPorts = vxlanPorts
        for hook in [Hook.guardOut, .guardIn] { _ = try programs.program(hook, isEthernet: true) }
        table = try GuardTable(layout)
        prefixes.adopt(try table.entries())
    }

    /// Whether it was made for these ports of overlays, which are constants of its programs.
    func fits(_ plan: GuardPlan, _ mechanism: AttachmentMechanism) -> Bool {
        plan.vxlanPorts == vxlanPorts && mechanism == self.mechanism
    }

    /// Looks at what is really in place.
    mutating func resync() throws {
        try table.restorePins(layout)
        prefixes.adopt(try table.entries())
        var found: [HookPoint: UInt32] = [:]
        for point in points.applied.keys {
            if let program = try? attachment(point).attachedProgram(pin: pin(point)) { found[point] = program }
        }
        points.adopt(found)
    }

    /// Holds these prefixes at these uplinks. Returns what could not be done.
    public mutating func arm(_ plan: GuardPlan, uplinks: [HookPoint]) -> [Problem] {
        let table = table
        prefixes.update(to: plan.prefixes) { try table.update($0, $1) }
        if !plan.isPartial { prefixes.prune(to: plan.prefixes) { try table.delete($0) } }
        names = Dictionary(uplinks.map { ($0.interface, $0.device) }, uniquingKeysWith: { first, _ in first })
        var wanted: [HookPoint: UInt32] = [:]
        for point in uplinks {
            wanted[point] =
                (try? programs.program(point.hook, isEthernet: point.isEthernet).information().identifier) ?? 0
        }
        var programs = programs
        let view = self
        points.update(to: wanted) { point, _ in
            try view.attachment(point).attach(
                programs.program(point.hook, isEthernet: point.isEthernet), pin: view.pin(point))
        }
        points.prune(to: wanted) { try view.attachment($0).detach(pin: view.pin($0)) }
        var problems = stayBehind()
        // Those of the other mechanism, or of devices that are uplinks no more.
        if !hasSwept, points.errors.isEmpty, (try? Self.detach(layout, except: Set(wanted.keys), mechanism)) != nil {
            hasSwept = true
        }
        problems +=
            prefixes.errors.map {
                Problem(
                    resource: "Dataplane", field: "guard", value: "\($0.key)", message: $0.value,
                    remedy: "it is tried again; see `wgplane doctor`")
            }
            + points.errors.map {
                Problem(
                    resource: "Device/\($0.key.device)", field: $0.key.hook.name, message: $0.value,
                    remedy: "it is tried again; see `wgplane doctor`")
            }
        return problems
    }

    /// Hooks that have come after the lock, as they do where it was armed at boot, are behind it in tcx's chain,
    /// and it would drop what they are to steer: it goes to the end, while the hook holds alone.
    mutating func stayBehind() -> [Problem] {
        guard mechanism == .tcx else { return [] }
        var problems: [Problem] = []
        for (point, program) in points.applied {
            let hook: Hook = point.direction == .egress ? .toUplink : .fromUplink
            let order = Attachment.tcxPrograms(interface: point.interface, direction: point.direction)
            guard let first = try? Attachment.link(pin: layout.link(hook: hook, interface: point.interface)),
                first.interface == point.interface, let hookPlace = order.firstIndex(of: first.program),
                let place = order.firstIndex(of: program), place < hookPlace
            else { continue }
            do {
                try attachment(point).moveToEnd(
                    programs.program(point.hook, isEthernet: point.isEthernet), pin: pin(point))
            } catch {
                var kept = points.applied
                kept[point] = nil
                points.adopt(kept)
                problems.append(
                    Problem(
                        .warning, resource: "Device/\(point.device)", field: point.hook.name,
                        message: "strict mode's second lock cannot go behind what steers (\(error))",
                        remedy: "it is tried again; until then the first lock holds alone"))
            }
        }
        return problems
    }

    var nextRetry: ContinuousClock.Instant? { [prefixes.nextRetry, points.nextRetry].compactMap { $0 }.min() }
    var attachedPoints: [HookPoint] { points.applied.keys.sorted().map { $0.named(by: names) } }

    /// Takes it away, wherever it is.
    public static func disarm(layout: PinLayout) throws {
        try detach(layout, except: [], .tcx)
        try layout.removeGuardFolder()
        try layout.removeMaps(maps)
    }

    static let maps = ["guard_prefixes4", "guard_prefixes6"]

    /// Detaches whatever is there, by either mechanism, but these places by this one.
    private static func detach(
        _ layout: PinLayout, except kept: Set<HookPoint>, _ mechanism: AttachmentMechanism
    ) throws {
        let pins = Set(
            mechanism == .tcx ? kept.map { layout.guardLink(hook: $0.hook, interface: $0.interface) } : [])
        for link in layout.pinnedGuardLinks() where !pins.contains(link.pin) { try Attachment.removePin(link.pin) }
        let filtered = Set(mechanism == .clsact ? kept.map(\.interface) : [])
        let session = try RouteSession()
        for device in try session.links() where !filtered.contains(device.index) {
            for direction in [AttachmentDirection.egress, .ingress] {
                let filter = Attachment(
                    interface: device.index, direction: direction, mechanism: .clsact, role: .guardian)
                guard try filter.attachedProgram(pin: "") != nil else { continue }
                try filter.detach(pin: "")
                if try session.filterCount(interface: device.index) == 0 {
                    try Attachment.removeQdisc(interface: device.index)
                }
            }
        }
    }

    private func attachment(_ point: HookPoint) -> Attachment {
        Attachment(interface: point.interface, direction: point.direction, mechanism: mechanism, role: .guardian)
    }

    private func pin(_ point: HookPoint) -> String { layout.guardLink(hook: point.hook, interface: point.interface) }

    /// The places of the lock at devices that lead to other nodes.
    public static func points(_ uplinks: [(index: UInt32, name: String, isEthernet: Bool)]) -> [HookPoint] {
        uplinks.flatMap { link in
            [Hook.guardOut, .guardIn].map {
                HookPoint(hook: $0, interface: link.index, device: link.name, isEthernet: link.isEthernet)
            }
        }
    }
}

/// Has the second lock in place while strict mode is on, whatever steers.
public struct LockKeeper {
    private let layout: PinLayout
    private var lock: SecondLock?
    /// Whether an earlier agent, or `wgplane guard`, may have left one.
    private var mayHaveLock = true

    public init(_ layout: PinLayout) { self.layout = layout }

    /// Looks at what is really in place.
    public mutating func resync() throws { try lock?.resync() }

    public var nextRetry: ContinuousClock.Instant? { lock?.nextRetry }
    public var attachedPoints: [HookPoint] { lock?.attachedPoints ?? [] }

    /// Goes behind what steers at the uplinks, if that has come after it.
    public mutating func stayBehind() -> [Problem] { lock?.stayBehind() ?? [] }

    /// Armed after what steers is in place, which takes what the lock would drop; disarmed without a plan.
    /// `mechanism`: as what steers is attached.
    public mutating func apply(_ plan: SteeringPlan, _ mechanism: AttachmentMechanism) throws -> [Problem] {
        guard let wanted = plan.guardPlan else {
            if lock != nil || mayHaveLock { try SecondLock.disarm(layout: layout) }
            lock = nil
            mayHaveLock = false
            return []
        }
        var lock =
            try self.lock.flatMap { $0.fits(wanted, mechanism) ? $0 : nil }
            ?? SecondLock(layout: layout, vxlanPorts: wanted.vxlanPorts, mechanism: mechanism)
        defer { self.lock = lock }
        mayHaveLock = true
        let uplinks = plan.hooks.filter { $0.hook == .toUplink }.map { ($0.interface, $0.device, $0.isEthernet) }
        return lock.arm(wanted, uplinks: SecondLock.points(uplinks))
    }

    /// It is gone, with all else.
    public mutating func forget() {
        lock = nil
        mayHaveLock = false
    }
}
