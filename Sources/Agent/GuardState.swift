// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
internal import Foundation
public import Model
internal import Netlink
public import Steering
internal import SystemDescriptors

/// What strict mode promises on this node, kept over a reboot, for `wgplane guard`: written by
/// the agent whenever it changes, gone when strict mode is off.
public struct GuardState: Sendable, Codable, Equatable {
    public var schema = 1
    public var pools: [CIDR]
    /// Prefixes of nodes that the operator has exempted.
    public var exempt: [CIDR]
    public var vxlanPorts: [UInt16]
    /// Regular expression of uplinks' names.
    public var uplinkPattern: String
    /// WireGuard's devices, which are no uplinks whatever their names are.
    public var devices: [String]
    /// Families that are held only because an earlier file was damaged: nobody has said that they are promised.
    public var assumed: [AddressFamily]?

    public init(_ plan: GuardPlan, uplinkPattern: String, devices: [String]) {
        pools = plan.prefixes.filter { $0.value == .pool }.keys.sorted()
        exempt = plan.prefixes.filter { $0.value == .exempt }.keys.sorted()
        vxlanPorts = plan.vxlanPorts
        self.uplinkPattern = uplinkPattern
        self.devices = devices
    }

    /// Holds what another holds, too.
    mutating func add(_ other: GuardState) {
        pools = Set(pools + other.pools).sorted()
        exempt = Set(exempt + other.exempt).subtracting(pools).sorted()
    }

    public var plan: GuardPlan {
        var prefixes = Dictionary(pools.map { ($0, GuardKind.pool) }, uniquingKeysWith: { first, _ in first })
        for prefix in exempt { prefixes[prefix] = .exempt }
        return GuardPlan(prefixes: prefixes, vxlanPorts: vxlanPorts)
    }

    public static func path(_ stateDirectory: String) -> String { "\(stateDirectory)/guard.json" }

    /// Nil: strict mode was off when the last agent spoke.
    public static func read(_ stateDirectory: String) throws -> GuardState? {
        let path = path(stateDirectory)
        do {
            // What cannot be looked at is not taken for absent.
            try requireOwn(path)
            guard try presentEntry("guard.json", in: stateDirectory) != nil else { return nil }
            try requireOwn(stateDirectory)
            return try JSONDecoder().decode(GuardState.self, from: Data(try readFile(path)))
        } catch {
            throw ProblemsError(
                Problem(
                    resource: "Guard", field: "state", value: path, message: "cannot be read (\(error))",
                    remedy:
                        "start the agent, which takes strict mode to be on and writes it anew; before that pods' packets may leave in clear"
                ))
        }
    }

    func write(_ stateDirectory: String) throws {
        try makeOwnFolders(stateDirectory)
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        try replaceFile(Self.path(stateDirectory), with: Array(try encoder.encode(self)), mode: 0o600)
    }

    static func remove(_ stateDirectory: String) throws { try removeFile(path(stateDirectory)) }
}

/// Arms strict mode's second lock before an agent runs.
public struct GuardRun: Sendable {
    private let options: AgentOptions

    public init(_ options: AgentOptions) { self.options = options }

    /// What was armed, for people.
    public struct Outcome: Sendable, Codable {
        public var armed: Bool
        public var devices: [String]
        public var pools: [CIDR]
        public var exempt: [CIDR]
    }

    /// Waits for an uplink at most so long. Throws when the lock could not be armed.
    public func arm(waitSeconds: Int) throws -> Outcome {
        guard let state = try GuardState.read(options.stateDirectory) else {
            return Outcome(armed: false, devices: [], pools: [], exempt: [])
        }
        var lock = try SecondLock(
            layout: options.layout, vxlanPorts: state.vxlanPorts, mechanism: AttachmentMechanism.probe())
        let deadline = monotonicNanoseconds() + UInt64(max(0, waitSeconds)) * 1_000_000_000
        var links: [Link] = []
        while true {
            let facts = try KernelFacts(RouteSession())
            let uplinks = facts.uplinks(pattern: state.uplinkPattern, excluding: Set(state.devices))
            links = uplinks + facts.overlays(excluding: Set(state.devices + uplinks.map(\.name)))
            if uplinks.contains(where: \.isUp) || monotonicNanoseconds() >= deadline { break }
            sleepMicroseconds(100_000)
        }
        let points = SecondLock.points(links.map { ($0.index, $0.name, $0.isEthernet) })
        let problems = lock.arm(state.plan, uplinks: points)
        guard problems.isEmpty else { throw ProblemsError(problems) }
        guard links.contains(where: \.isUp) else {
            throw ProblemsError(
                Problem(
                    resource: "Guard", field: "spec.bpfDataIfacePattern", value: state.uplinkPattern,
                    message: "matches no device that is up; one that comes later is not guarded",
                    remedy: "order the guard after the network, or give it more time with --wait"))
        }
        return Outcome(armed: true, devices: links.map(\.name), pools: state.pools, exempt: state.exempt)
    }
}
