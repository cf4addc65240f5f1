// SPDX-License-Identifier: Apache-2.0

internal import AsyncAlgorithms
internal import BPF
public import Datastore
internal import FlowExport
public import Logging
internal import Model
internal import Netlink
public import ServiceLifecycle
internal import SystemDescriptors
internal import SystemPackage

/// The node agent: follows datastore and kernel, and lets the controller work.
///
/// Ends on graceful shutdown and leaves the data plane running: encryption goes on
/// without an agent, and the next one adopts it.
public struct AgentService: Service {
    private let options: AgentOptions
    /// How long the first answer of a datastore is waited for before an earlier agent's memory is used.
    private static let patience = Duration.seconds(5)
    private let datastore: any Datastore
    private let logger: Logger

    public init(options: AgentOptions, datastore: any Datastore, logger: Logger) {
        self.options = options
        self.datastore = datastore
        self.logger = logger
    }

    public func run() async throws {
        let lock = try Self.takeLock(options)
        let kernel = try NetlinkEvents(groups: NetlinkEvents.nodeGroups)
        let firewall = try? NetlinkEvents.firewall()
        FarEnds.prepare()
        let controller = NodeController(options: options, datastore: datastore, logger: logger)
        // Reasons to work: many at once are one.
        let (wake, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        let (cacheIsOld, outlived) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
        logger.notice("agent starts", metadata: ["node": "\(options.node)", "datastore": "\(datastore.location)"])
        if let exposure = datastore.exposure {
            logger.warning(
                "who is on the way to the datastore can speak for it, and so decide what is encrypted, and with which keys",
                metadata: ["datastore": "\(exposure)"])
        }
        await controller.remember()
        await withTaskGroup(of: Void.self) { group in
            group.addTask { await cancelWhenGracefulShutdown { await datastore.follow(controller.feed) } }
            group.addTask {
                for await _ in controller.feed.signals.cancelOnGracefulShutdown() {
                    if await controller.receiveChanges() { signal.yield() }
                    if await controller.hasOutlivedCache { outlived.yield() }
                }
            }
            group.addTask {
                // A datastore that neither answers nor refuses.
                await cancelWhenGracefulShutdown { try? await Task.sleep(for: Self.patience) }
                await controller.recall()
                signal.yield()
                var beats = 0
                for await _ in AsyncTimerSequence(interval: .seconds(2), clock: .continuous).cancelOnGracefulShutdown()
                {
                    await controller.keepCache()
                    beats += 1
                    if beats.isMultiple(of: 5) { ProcessMemory.release() }
                }
            }
            group.addTask {
                for await _ in cacheIsOld.cancelOnGracefulShutdown() { await controller.keepCache(isDue: true) }
            }
            group.addTask {
                for await _ in kernel.ticks.cancelOnGracefulShutdown() {
                    kernel.drain()
                    await controller.networkChanged()
                    signal.yield()
                }
            }
            if let firewall {
                group.addTask {
                    for await _ in firewall.ticks.cancelOnGracefulShutdown() {
                        firewall.drain()
                        await controller.firewallChanged()
                        signal.yield()
                    }
                }
            }
            group.addTask {
                // Legacy iptables tells nobody of its changes.
                for await _ in AsyncTimerSequence(interval: .seconds(1), clock: .continuous).cancelOnGracefulShutdown()
                {
                    if await controller.legacyFirewallChanged() { signal.yield() }
                    await controller.logPackets()
                }
            }
            group.addTask {
                for await _ in AsyncTimerSequence(interval: .seconds(1), clock: .continuous).cancelOnGracefulShutdown()
                {
                    await controller.keepFlows()
                }
            }
            group.addTask {
                await cancelWhenGracefulShutdown {
                    await controller.publisher.run {
                        await controller.publicationChanged()
                        signal.yield()
                    }
                }
            }
            group.addTask {
                await cancelWhenGracefulShutdown { await controller.flows.exporter.run() }
            }
            group.addTask {
                for await _ in AsyncTimerSequence(interval: .seconds(10), clock: .continuous).cancelOnGracefulShutdown()
                {
                    await controller.lookAtAudit()
                }
            }
            group.addTask {
                await DashboardService(controller: controller, options: options, logger: logger).run()
            }
            group.addTask {
                // Calls again when the controller asks for it.
                let alarm = Alarm(label: "next-pass") { signal.yield() }
                for await _ in wake.cancelOnGracefulShutdown() {
                    alarm.set(after: await controller.reconcile())
                    if await controller.hasOutlivedCache { outlived.yield() }
                    // Another agent has another one; this one could never start WireGuard again.
                    if Privileges.hasLostLauncher {
                        logger.critical(
                            "the process that starts programs has ended; the agent ends too, to be started anew")
                        endThisProcess()
                        break
                    }
                    if BPFObject.isSpoilt {
                        logger.critical(
                            "libbpf could not look what this kernel can, and does not look twice; the agent ends, to be started anew"
                        )
                        endThisProcess()
                        break
                    }
                }
            }
            await group.waitForAll()
        }
        await controller.flows.finish()
        await controller.keepCache(isDue: true)
        logger.notice("agent stops; the data plane goes on", metadata: ["node": "\(options.node)"])
        lock.release()
    }

    private static func takeLock(_ options: AgentOptions) throws -> FileLock {
        do {
            try makeOwnFolders(options.runDirectory)
            // `status` takes it for a moment to see whether it is held.
            let lock = try takeFileLock(options.lockPath, withinMilliseconds: 300)
            try lock.note("\(processIdentifier())\n")
            return lock
        } catch {
            if (error as? Errno) == .wouldBlock {
                let holder = (try? readFile(options.lockPath)).map { String(decoding: $0, as: UTF8.self) } ?? ""
                throw ProblemsError(
                    Problem(
                        resource: "Agent", field: "lock", value: options.lockPath,
                        message:
                            "another agent (process \(holder.split(separator: "\n").first ?? "unknown")) runs for this node",
                        remedy: "stop it first"))
            }
            throw ProblemsError(
                Problem(
                    resource: "Agent", field: "lock", value: options.lockPath, message: "cannot be taken: \(error)",
                    remedy: "run as root, with a run directory that can be written"))
        }
    }
}
