// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
public import Datastore
internal import DesiredState
internal import Flows
public import Foundation
public import Model
internal import Netlink
internal import Steering
public import SystemDescriptors
public import WireGuard

/// A node as it is, read from the kernel, the pins and the agent's last report, also when the agent is dead; or
/// as it was when an archive was taken.
public struct NodeView: Sendable {
    public let options: AgentOptions
    private let archive: NodeArchive?
    /// The agent's own, while it is the one that looks.
    private let told: StatusReport?

    public init(_ options: AgentOptions) { self.init(options, told: nil) }

    init(_ options: AgentOptions, told: StatusReport?) {
        self.options = options
        self.told = told
        archive = nil
    }

    public init(_ archive: NodeArchive) {
        options = AgentOptions(node: archive.node)
        self.archive = archive
        told = nil
    }

    public var isArchive: Bool { archive != nil }

    /// Name of the Node resource.
    public var node: String { options.node }

    /// CLOCK_MONOTONIC in nanoseconds, which times of flows relate to.
    public var monotonic: UInt64 { archive?.monotonic ?? monotonicNanoseconds() }

    /// When this is, or was.
    public var date: Date { archive?.taken ?? Date() }

    /// The agent's last report; throws when there has been none.
    public func report() throws -> StatusReport {
        if let archive {
            guard let report = archive.report else { throw absent("report") }
            return report
        }
        if let told { return told }
        do {
            return try StatusReport.read(runDirectory: options.runDirectory)
        } catch {
            throw ProblemsError(
                Problem(
                    resource: "Agent", field: "status", value: StatusReport.path(runDirectory: options.runDirectory),
                    message: "no agent has written its status there (\(error))",
                    remedy: "start it with `wgplane agent`, or name its folder with --run-directory"))
        }
    }

    public var isAgentRunning: Bool { archive?.agentRunning ?? FileLock.isHeld(options.lockPath) }

    private func absent(_ what: String) -> ProblemsError {
        let reason = archive?.missing.first { $0.hasPrefix("\(what):") }
        return ProblemsError(
            Problem(
                resource: "Archive", field: what, message: "is not in the archive\(reason.map { " (\($0))" } ?? "")",
                remedy: "take another while the node is as you want to see it"))
    }

    /// The maps; throws when WireGuard is switched off, or the agent never ran.
    public func maps() throws -> NodeMaps {
        if let archive {
            guard let maps = archive.maps else { throw absent("maps") }
            return try NodeMaps(maps)
        }
        guard options.layout.exists else {
            let others = options.layout.presentVersions.map { "\($0)" }.joined(separator: ", ")
            throw ProblemsError(
                Problem(
                    resource: "Dataplane", field: "pins", value: options.layout.folder,
                    message: others.isEmpty
                        ? "there are no maps of layout \(PinLayout.version)"
                        : "the maps there are of layout \(others), and this version reads layout \(PinLayout.version)",
                    remedy: others.isEmpty
                        ? "is WireGuard enabled, and has an agent run here? See `wgplane status`"
                        : "use the wgplane of the agent that made them"))
        }
        return try NodeMaps(options.layout)
    }

    /// A WireGuard device, by whichever backend has it.
    public func device(_ name: String) throws -> (BackendKind, DeviceState)? {
        if let archive { return archive.devices.first { $0.name == name }.map { ($0.backend, $0.state) } }
        return try BackendSelection.state(device: name)
    }

    /// The last lines of the agent's log, oldest first.
    public func recentLog() -> [String] { archive?.log ?? RecentLog.read(options.runDirectory) }

    /// Runs and time of each hook's programs, as far as the kernel counts them.
    func programUse() -> [(hook: String, use: BPFProgram.Use)] {
        guard archive == nil, let report = try? report() else { return [] }
        let indices = Dictionary(
            interfaceNames().map { ($0.value, $0.key) }, uniquingKeysWith: { first, _ in first })
        let layout = options.layout
        var programs: [String: Set<UInt32>] = [:]
        for link in layout.pinnedLinks() + layout.pinnedGuardLinks() {
            if let program = try? Attachment.link(pin: link.pin)?.program {
                programs[link.hook.name, default: []].insert(program)
            }
        }
        if report.attachment == AttachmentMechanism.clsact.rawValue {
            for place in report.attachments {
                guard let hook = Hook(name: place.hook), let interface = indices[place.device] else { continue }
                let point = HookPoint(hook: hook, interface: interface, device: place.device, isEthernet: true)
                let filter = Attachment(
                    interface: interface, direction: point.direction, mechanism: .clsact,
                    role: hook == .guardIn || hook == .guardOut ? .guardian : .hook)
                if let program = try? filter.attachedProgram(pin: "") {
                    programs[hook.name, default: []].insert(program)
                }
            }
        }
        return programs.sorted { $0.key < $1.key }.map { hook, identifiers in
            let all = identifiers.compactMap { try? BPFProgram.use(identifier: $0) }
            return (
                hook,
                BPFProgram.Use(
                    runs: all.reduce(0) { $0 + $1.runs }, nanoseconds: all.reduce(0) { $0 + $1.nanoseconds })
            )
        }
    }

    /// Policy routing rules and routes of all tables.
    func routing(_ family: AddressFamily) throws -> (rules: [NodeArchive.Rule], routes: [NodeArchive.Route]) {
        if let archive {
            return (
                archive.rules.filter { $0.family == family }, archive.routes.filter { $0.destination.family == family }
            )
        }
        let session = try RouteSession()
        return (
            try session.rules(family).map(NodeArchive.Rule.init), try session.routes(family).map(NodeArchive.Route.init)
        )
    }

    /// Names of the node's devices by index.
    public func interfaceNames() -> [UInt32: String] {
        if let archive {
            return Dictionary(archive.links.map { ($0.index, $0.name) }, uniquingKeysWith: { first, _ in first })
        }
        let links = (try? RouteSession().links()) ?? []
        return Dictionary(links.map { ($0.index, $0.name) }, uniquingKeysWith: { first, _ in first })
    }

    /// The right to read the programs' events, which one process at a time can have. Throws when another has it.
    public func followEvents() throws -> FileLock {
        do {
            return try takeFileLock(options.eventsLock, withinMilliseconds: 100)
        } catch {
            throw ProblemsError(
                Problem(
                    resource: "Events", field: "lock", value: options.eventsLock,
                    message: "another command looks at packets, or it cannot be taken (\(error))",
                    remedy:
                        "end the other `wgplane capture`, `explain --trace`, `drops --follow` or `flows --follow` first"
                ))
        }
    }

    /// Names of pods and nodes by address: the archive's, else those that the datastore knows; none when it
    /// cannot be read.
    public func names(_ datastore: @autoclosure () throws -> any Datastore) async -> [IPAddress: String] {
        if let archive {
            let pairs = archive.names.compactMap { text, name in IPAddress(text).map { ($0, name) } }
            return Dictionary(pairs, uniquingKeysWith: { first, _ in first })
        }
        guard let store = try? datastore() else { return [:] }
        let snapshot = try? await store.read([.node, .pod])
        await store.close()
        return snapshot.map(Self.addressNames) ?? [:]
    }

    /// Names of pods and nodes by address, from a snapshot.
    public static func addressNames(_ snapshot: Snapshot) -> [IPAddress: String] {
        clusterNames(ClusterState(snapshot.manifests.values)).addresses
    }

    /// `withPods`: those of pods too.
    static func clusterNames(_ cluster: ClusterState, withPods: Bool = true) -> AddressNames {
        var names = AddressNames()
        for node in cluster.nodes.values {
            for address in node.addresses.values { names.addresses[address] = node.name }
            for address in node.interfaceAddresses.values { names.addresses[address] = node.name }
        }
        guard withPods else { return names }
        for pod in cluster.pods.values where !pod.isHostNetwork && !pod.isFinished {
            for address in pod.addresses {
                names.addresses[address] = pod.shortName
                names.workloads[address] = pod.workloadName
            }
        }
        return names
    }
}
