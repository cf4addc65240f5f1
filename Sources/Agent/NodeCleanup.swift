// SPDX-License-Identifier: Apache-2.0

public import Datastore
internal import Logging
public import Model
internal import Netlink
internal import Steering
internal import SystemDescriptors
internal import SystemPackage
internal import WireGuard

/// Takes away what agents have left on a node.
public struct NodeCleanup: Sendable {
    private let options: AgentOptions

    public init(_ options: AgentOptions) { self.options = options }

    /// Takes away everything that agents have left on this node: programs, maps, devices,
    /// state; and before it, where the datastore can be written, what the other nodes know of it.
    /// `datastore` opens it for one piece of work. Returns what could not be withdrawn there.
    public func cleanUp(
        devices: [String], datastore: (_ body: (any Datastore) async throws -> Void) async throws -> Void
    ) async throws -> Problem? {
        // Where an agent has been since the boot nobody else may work; where none has ever been, nobody was told.
        guard fileExists(options.runDirectory) else {
            let problem = fileExists(options.stateDirectory) ? await withdraw(datastore) : nil
            try removeAll(devices)
            return problem
        }
        do {
            let lock = try takeFileLock(options.lockPath, withinMilliseconds: 300)
            let problem = await withdraw(datastore)
            try removeAll(devices)
            try removeFile(StatusReport.path(runDirectory: options.runDirectory))
            try removeFile(options.lockPath)
            for path in RecentLog.paths(options.runDirectory) + [
                options.dashboardSocket, options.flowMemory, options.eventsLock,
            ] {
                try removeFile(path)
            }
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

    private func withdraw(
        _ datastore: (_ body: (any Datastore) async throws -> Void) async throws -> Void
    ) async -> Problem? {
        do {
            try await datastore { store in
                let publication = Publication(node: options.node, datastore: store, logger: Logger(label: "cleanup"))
                try await publication.withdraw(try await store.read([.node, .ipamBlock]))
            }
            return nil
        } catch {
            return Problem(
                resource: "Node/\(options.node)", field: "metadata.annotations",
                message: "may still tell the others of this node's WireGuard (\(error)), who send into the tunnel then",
                remedy: "name the agent's datastore (--datastore) and node (--node), or remove the annotations")
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
        step { try removeFile(ResourceCache.path(options)) }
        step { try KeyPinKeeper.remove(options) }
        try? removeFolder(options.stateDirectory)
        if let failure { throw failure }
    }
}
