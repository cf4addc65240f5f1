// SPDX-License-Identifier: Apache-2.0

public import Agent
public import DataplaneMaps
public import Datastore
internal import Foundation
public import Logging
public import Model
internal import Netlink
internal import Steering
public import SystemDescriptors

/// A cluster of network namespaces on this machine, one real agent a node.
public actor Lab {
    public nonisolated let spec: LabSpec
    public nonisolated let paths: LabPaths
    public nonisolated let datastore: DirectoryDatastore
    private let queue = KernelQueue(label: "lab")
    private let network: LabNetwork
    /// The wgplane binary that runs the agents.
    nonisolated let binary: String
    /// The same, for others.
    public nonisolated var program: String { binary }
    /// Where the resources are, if that is no folder and this process has started it.
    public private(set) var server: LabServer?
    private let logger: Logger
    public private(set) var state: LabState

    public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    private init(state: LabState, binary: String, logger: Logger) {
        self.state = state
        spec = state.spec
        paths = LabPaths(spec.name)
        network = LabNetwork(paths: paths)
        datastore = DirectoryDatastore(path: paths.datastore, logger: logger)
        self.binary = binary
        self.logger = logger
    }

    // MARK: Up and down

    /// Makes a lab and starts its agents; what was made is taken down again when it fails.
    /// `agents`: they are started, too.
    public static func up(
        _ spec: LabSpec, enabled: Bool, agents: Bool = true, binary: String, logger: Logger
    ) async throws -> Lab {
        try spec.check()
        guard isRoot() else {
            throw ProblemsError(
                Problem(resource: "lab", message: "needs root to make namespaces", remedy: "run it as root"))
        }
        let lab = Lab(state: LabState(spec: spec), binary: binary, logger: logger)
        if fileExists(lab.paths.root) {
            throw ProblemsError(
                Problem(
                    resource: "lab", field: "--name", value: spec.name, message: "is up already",
                    remedy: "take it down with `wgplane lab down --name \(spec.name)`, or use another name"))
        }
        do {
            try await lab.build(enabled: enabled)
            if agents { for node in lab.nodeNames() { try await lab.startAgent(node) } }
            return lab
        } catch {
            try? await lab.down()
            throw error
        }
    }

    /// A lab that some process has made. `partial`: also what is left of a broken one, to take it down.
    public static func open(_ name: String, binary: String, logger: Logger, partial: Bool = false) throws -> Lab {
        let paths = LabPaths(name)
        if partial, !fileExists(paths.state) {
            return Lab(state: LabState(spec: LabSpec(name: name)), binary: binary, logger: logger)
        }
        guard let bytes = try? readFile(paths.state),
            let state = try? JSONDecoder().decode(LabState.self, from: Data(bytes))
        else {
            throw ProblemsError(
                Problem(
                    resource: "lab", field: "--name", value: name, message: "is not up",
                    remedy: "bring it up with `wgplane lab up`"))
        }
        return Lab(state: state, binary: binary, logger: logger)
    }

    /// Names of the labs that are up, whole or in part.
    public static func names() -> [String] {
        ((try? listFolder(LabPaths.parent)) ?? []).filter(\.isFolder).map(\.name)
    }

    private func build(enabled: Bool) async throws {
        try makeFolders(paths.root, mode: 0o700)
        try mountFileSystem("tmpfs", on: paths.root, options: "mode=0700")
        try makeMountPrivate(paths.root)
        try makeFolders(paths.namespaces, mode: 0o700)
        try makeFolders(paths.bpf, mode: 0o700)
        try mountFileSystem("bpf", on: paths.bpf, options: "mode=0700")
        try saveState()
        try await datastore.create()
        for number in 1...spec.nodes {
            for pod in 1...max(1, spec.pods) where spec.pods > 0 {
                state.pods.append(
                    LabPod(
                        name: "node\(number)-pod\(pod)", node: number,
                        addresses: spec.families.map { LabAddresses.pod(number, pod, $0) },
                        device: "\(spec.platform.devicePrefix)\(number)p\(pod)"))
            }
        }
        try network.createUnderlay(families: spec.families)
        for number in 1...spec.nodes {
            try network.createNode(number, name: "node\(number)", families: spec.families, nodes: spec.nodes)
        }
        for pod in state.pods { try network.createPod(pod, node: "node\(pod.node)", mtu: spec.podMTU) }
        try saveState()
        if spec.datastore != .directory {
            try network.createControl(families: spec.families)
            server = try LabControl(spec: spec, paths: paths, binary: binary).start()
        }
        var manifests = spec.platform.hasCalicoIPAM ? spec.families.map(LabResources.pool) : []
        manifests.append(
            LabResources.felix(enabled: enabled, families: spec.families, attachment: spec.attachment))
        if spec.backend != .auto || spec.mode != .auto {
            manifests.append(LabResources.dataplane(backend: spec.backend, mode: spec.mode))
        }
        for number in 1...spec.nodes {
            manifests.append(LabResources.node(number, families: spec.families, platform: spec.platform))
            for family in spec.families where spec.platform.hasCalicoIPAM {
                let block = LabAddresses.block(number, family)
                manifests.append(
                    LabResources.block(block, node: "node\(number)", pods: state.pods.filter { $0.node == number }))
                manifests.append(LabResources.affinity(block, node: "node\(number)"))
            }
        }
        manifests += state.pods.map(LabResources.pod)
        try await apply(manifests)
    }

    private func saveState() throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
        try replaceFile(paths.state, with: Array(try encoder.encode(state)))
    }

    /// Takes everything down: processes, namespaces, devices, pins, files. Works on what is
    /// left of a lab, too.
    public func down() throws {
        var files = ((try? listFolder(paths.namespaces)) ?? [])
            .filter { !$0.name.hasSuffix(".mnt") }.map { NamespaceFiles(network: "\(paths.namespaces)/\($0.name)") }
        // Again and again: an agent may start what is missing until it is gone itself.
        let deadline = monotonicNanoseconds() + 10_000_000_000
        var signal: Int32 = 15
        while monotonicNanoseconds() < deadline {
            let processes = files.flatMap { $0.processes() }.filter { $0.identifier != processIdentifier() }
            if processes.isEmpty { break }
            for process in processes { process.signal(signal) }
            let patience = monotonicNanoseconds() + (signal == 15 ? 2_000_000_000 : 500_000_000)
            while processes.contains(where: { isAlive($0) }), monotonicNanoseconds() < patience {
                pause(milliseconds: 5)
            }
            signal = 9
        }
        for index in files.indices where fileExists(files[index].network + ".mnt") {
            files[index].mount = files[index].network + ".mnt"
        }
        for file in files { file.remove() }
        for entry in (try? listFolder("\(paths.root)/nodes")) ?? [] {
            detachMount("\(paths.runDirectory(entry.name))/datastore")
        }
        detachMount(paths.bpf)
        detachMount(paths.root)
        try removeFolder(paths.root)
        try? removeFolder(LabPaths.parent)
    }

    private func isAlive(_ process: ProcessReference) -> Bool {
        _ = reapChild(process.identifier)
        return process.isRunning
    }

    // MARK: Agents

    public nonisolated func nodeNames() -> [String] { (1...spec.nodes).map { "node\($0)" } }

    /// The environment of programs on a node.
    public nonisolated func environment(_ node: String) -> [String] {
        let folder = binary.split(separator: "/").dropLast().joined(separator: "/")
        let path = currentEnvironment().first { $0.hasPrefix("PATH=") }?.dropFirst(5) ?? "/usr/sbin:/usr/bin:/sbin:/bin"
        return currentEnvironment().filter { !$0.hasPrefix("PATH=") && !$0.hasPrefix("WGPLANE_") }
            + [
                "PATH=/\(folder):\(path)",
                "WGPLANE_NODE=\(node)", "WGPLANE_STATE_DIRECTORY=\(LabPaths.stateOnNode)",
            ]
            // Where all is emulated, everything takes long, and a test would wait.
            + (Self.patience > 1 ? ["WGPLANE_LONGEST_PERIOD=10"] : [])
            + LabControl.environment(node, spec, paths)
    }

    /// `through`: words before the agent's own, that run it with less.
    @discardableResult
    public func startAgent(_ node: String, through words: [String] = []) throws -> ProcessReference? {
        let launch = ProgramLaunch(
            [binary, "lab", "exec", "--name", spec.name, node, "--"] + words
                + [binary, "agent", "--log-level", "debug"],
            environment: environment(node), log: paths.log(node))
        return ProcessReference(identifier: try launch.start())
    }

    /// The agent that holds a node's lock, if it runs.
    public func agent(_ node: String) -> ProcessReference? {
        guard let bytes = try? readFile("\(paths.runDirectory(node))/agent.lock"),
            let number = Int32(String(decoding: bytes, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)),
            let process = ProcessReference(identifier: number)
        else { return nil }
        return isAlive(process) ? process : nil
    }

    /// Ends an agent with a signal and waits until it is gone.
    public func stopAgent(_ node: String, signal: Int32) throws {
        guard let process = agent(node) else { return }
        process.signal(signal)
        let deadline = monotonicNanoseconds() + 10_000_000_000
        while isAlive(process) {
            guard monotonicNanoseconds() < deadline else {
                throw ProblemsError(
                    Problem(
                        resource: "lab", field: node, message: "the agent does not end",
                        remedy: "see \(paths.log(node))"))
            }
            pause(milliseconds: 2)
        }
    }

    /// What a node has after a reboot: its network and its state folder, and nothing of agents.
    public func reboot(_ node: String) throws {
        try stopAgent(node, signal: 9)
        let files = network.node(node)
        let left = files.processes().filter { $0.identifier != processIdentifier() }
        for process in left { process.signal(9) }
        let deadline = monotonicNanoseconds() + 5_000_000_000
        while left.contains(where: { isAlive($0) }), monotonicNanoseconds() < deadline { pause(milliseconds: 2) }
        try files.run { try EBPFSteering.removeAll(layout: PinLayout()) }
        for name in ["agent.lock", "status.json"] { try removeFile("\(paths.runDirectory(node))/\(name)") }
    }

    public nonisolated func status(_ node: String) -> StatusReport? {
        try? StatusReport.read(runDirectory: paths.runDirectory(node))
    }

    /// The maps of a node, opened from outside.
    public nonisolated func maps(_ node: String) throws -> NodeMaps {
        try NodeMaps(PinLayout(root: paths.pins(node)))
    }

    /// Factor for all deadlines, for emulated machines: `$WGPLANE_LAB_PATIENCE`.
    public static let patience =
        currentEnvironment().first { $0.hasPrefix("WGPLANE_LAB_PATIENCE=") }
        .flatMap { Int($0.dropFirst("WGPLANE_LAB_PATIENCE=".count)) }.map { max($0, 1) } ?? 1

    /// Waits until a condition holds; throws, with `what` and what `lacking` says, when it does not in time.
    public nonisolated func wait(
        _ what: String, within limit: Duration = .seconds(15), lacking: () -> String = { "" },
        _ condition: () async throws -> Bool
    ) async throws {
        let limit = limit * Self.patience
        let deadline = ContinuousClock.now + limit
        while true {
            do {
                if try await condition() { return }
            } catch let error as Hopeless {
                throw ProblemsError(error.problems)
            } catch {
                // Not yet: a file that is not there, a map that is being made.
            }
            guard ContinuousClock.now < deadline else {
                throw ProblemsError(
                    Problem(
                        resource: "lab", field: spec.name, message: "waited \(limit) in vain until \(what)\(lacking())",
                        remedy: "see the agents' logs in \(paths.root)/nodes"))
            }
            try await Task.sleep(for: .milliseconds(5))
        }
    }

    /// Waits until every agent has every other node's peer in the tunnel (or, disabled, none).
    ///
    /// Three agents of an emulated machine that start beside another one take over a hundred seconds: there it is waited
    /// for three times as long.
    public nonisolated func waitUntilSettled(enabled: Bool, within limit: Duration = .seconds(20)) async throws {
        let limit = limit * (Self.patience > 1 ? 3 : 1)
        let patience = ContinuousClock.now + .seconds(3 * Self.patience)
        try await wait(
            enabled ? "all peers are ready" : "all nodes are in clear", within: limit, lacking: { unsettled() }
        ) {
            for node in nodeNames() {
                guard let status = status(node), status.datastoreState == "ready" else { return false }
                // What a node cannot do at all does not get better by waiting.
                let hopeless = status.problems.filter { ["WireGuard", "Kernel"].contains($0.resource) }
                if !hopeless.isEmpty, ContinuousClock.now > patience { throw Hopeless(problems: hopeless) }
                if !enabled {
                    if status.mode != "disabled" { return false }
                    continue
                }
                for family in spec.families {
                    guard let report = status[family], report.phase == "on", report.address != nil,
                        report.peers.filter({ $0.state != "retiring" }).count == spec.nodes - 1,
                        report.peers.allSatisfy({
                            $0.state == "retiring" || $0.action == "tunnel" && $0.state == "ready"
                        })
                    else { return false }
                }
            }
            return true
        }
    }

    /// What each node has come to, for who reads that the wait was in vain.
    private nonisolated func unsettled() -> String {
        nodeNames().map { node in
            guard let status = status(node) else { return ": \(node) has no agent that reports" }
            let families = spec.families.compactMap { status[$0] }.map { report in
                let peers = report.peers.map { "\($0.node) \($0.action) \($0.state)" }.joined(separator: ", ")
                return "; \(report.phase) [\(peers)]"
            }
            return ": \(node) \(status.mode), datastore \(status.datastoreState)" + families.joined()
        }.joined()
    }

    /// Ends a wait at once.
    private struct Hopeless: Error { var problems: [Problem] }

    // MARK: Places

    /// Namespaces of a node, a pod, or the underlay.
    public nonisolated func place(_ name: String) throws -> NamespaceFiles {
        let network = LabNetwork(paths: paths)
        if name == "underlay" { return network.underlay() }
        let files = fileExists("\(paths.namespaces)/\(name).mnt") ? network.node(name) : network.pod(name)
        guard fileExists(files.network) else {
            throw ProblemsError(
                Problem(
                    resource: "lab", field: "place", value: name, message: "is no place of lab \(spec.name)",
                    remedy: "see `wgplane lab status`"))
        }
        return files
    }

    // MARK: Changes

    /// Adds a pod to a node, wiring first, then resources.
    public func addPod(_ name: String, node: Int, addresses: [IPAddress], device: String) async throws -> LabPod {
        let pod = LabPod(name: name, node: node, addresses: addresses, device: device)
        try network.createPod(pod, node: "node\(node)", mtu: spec.podMTU)
        state.pods.append(pod)
        try saveState()
        try await apply([LabResources.pod(pod)])
        return pod
    }

    /// Removes a pod, resources first.
    public func removePod(_ name: String) async throws {
        guard let index = state.pods.firstIndex(where: { $0.name == name }) else { return }
        let pod = state.pods.remove(at: index)
        try await remove(ResourceKey(.pod, name))
        try network.deletePod(pod, node: "node\(pod.node)")
        try saveState()
    }

    /// Gives a block, or a single address of one, to another node: resources and underlay routes.
    public func routePrefix(_ cidr: CIDR, toNode number: Int) throws {
        try network.routePrefix(cidr, to: number, nodes: spec.nodes)
    }
}

/// Waits on the calling thread, which is never one of the cooperative pool.
private func pause(milliseconds: Int) { sleepMicroseconds(UInt32(milliseconds * 1000)) }
