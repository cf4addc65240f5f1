// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
public import Datastore
internal import DesiredState
internal import Foundation
internal import Logging
public import Model
internal import Netlink
internal import Steering
internal import SystemDescriptors
internal import SystemPackage
public import WireGuard

/// A node as it is, read from the kernel, the pins and the agent's last report: also
/// when the agent is dead.
public struct NodeView: Sendable {
    public let options: AgentOptions

    public init(_ options: AgentOptions) { self.options = options }

    /// The agent's last report; throws when there has been none.
    public func report() throws -> StatusReport {
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

    public var isAgentRunning: Bool { FileLock.isHeld(options.lockPath) }

    /// The maps; throws when WireGuard is switched off, or the agent never ran.
    public func maps() throws -> PinnedMaps {
        guard options.layout.exists else {
            throw ProblemsError(
                Problem(
                    resource: "Dataplane", field: "pins", value: options.layout.folder,
                    message: "there are no maps of layout \(PinLayout.version)",
                    remedy: "is WireGuard enabled, and has an agent run here? See `wgplane status`"))
        }
        return try PinnedMaps(options.layout)
    }

    /// A WireGuard device, by whichever backend has it.
    public func device(_ name: String) throws -> (BackendKind, DeviceState)? {
        try BackendSelection.state(device: name)
    }

    /// Names of this machine's devices by index.
    public func interfaceNames() -> [UInt32: String] {
        let links = (try? RouteSession().links()) ?? []
        return Dictionary(links.map { ($0.index, $0.name) }, uniquingKeysWith: { first, _ in first })
    }

    /// Names of pods and nodes by address, from a snapshot.
    public static func addressNames(_ snapshot: Snapshot) -> [IPAddress: String] {
        let cluster = ClusterState(Array(snapshot.manifests.values))
        var names: [IPAddress: String] = [:]
        for node in cluster.nodes.values {
            for address in node.addresses.values { names[address] = node.name }
            for address in node.interfaceAddresses.values { names[address] = node.name }
        }
        for pod in cluster.pods where !pod.isHostNetwork && !pod.isFinished {
            for address in pod.addresses { names[address] = pod.namespace == "default" ? pod.name : pod.description }
        }
        return names
    }

    /// Takes away everything that agents have left on this node: programs, maps, devices,
    /// state; and before it, where the datastore can be written, what the other nodes know of it.
    /// Returns what could not be withdrawn there.
    public func cleanUp(devices: [String], datastore: any Datastore) async throws -> Problem? {
        guard fileExists(options.runDirectory) else {
            try removeAll(devices)
            return nil
        }
        do {
            let lock = try takeFileLock(options.lockPath, withinMilliseconds: 300)
            var problem: Problem?
            do {
                let publication = Publication(
                    node: options.node, datastore: datastore, logger: Logger(label: "cleanup"))
                try await publication.withdraw(try await datastore.read())
            } catch {
                problem = Problem(
                    .warning, resource: "Node/\(options.node)", field: "metadata.annotations",
                    message: "still tells the others of this node's WireGuard (\(error))",
                    remedy: "remove the annotations, or they go on sending into the tunnel")
            }
            try removeAll(devices)
            try removeFile(StatusReport.path(runDirectory: options.runDirectory))
            try removeFile(options.lockPath)
            lock.release()
            try? removeFolder(options.runDirectory)
            return problem
        } catch let error as Errno where error == .wouldBlock {
            throw ProblemsError(
                Problem(
                    resource: "Agent", field: "lock", value: options.lockPath, message: "an agent runs here",
                    remedy: "stop it first"))
        }
    }

    private func removeAll(_ devices: [String]) throws {
        var failure: (any Error)?
        func step(_ body: () throws -> Void) { do { try body() } catch { failure = failure ?? error } }
        step { try EBPFSteering.removeAll(layout: options.layout) }
        step { try RouteSteering.removeAll(stateFolder: options.runDirectory) }
        for name in try DeviceManager.ownDevices(RouteSession(), named: devices) {
            step { try BackendSelection.delete(device: name) }
        }
        step {
            var settings = KernelSettings.ofWireGuard(folder: options.runDirectory)
            try settings.restore()
        }
        step { try GuardState.remove(options.stateDirectory) }
        try? removeFolder(options.stateDirectory)
        if let failure { throw failure }
    }
}
