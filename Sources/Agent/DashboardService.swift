// SPDX-License-Identifier: Apache-2.0

internal import AsyncAlgorithms
internal import Dashboard
internal import Foundation
internal import Logging
internal import Model
internal import ServiceLifecycle
internal import Synchronization
internal import SystemDescriptors

/// Keeps the dashboard where the settings want it: on a socket in the run directory always, and at an address.
struct DashboardService: Sendable {
    let controller: NodeController
    let options: AgentOptions
    let logger: Logger

    /// What the address's server is made of; another one is another server.
    private struct Wanted: Hashable {
        var settings: DashboardSettings
        /// Of the files, so that a certificate that is renewed is taken.
        var modified: [Date?]

        init(_ settings: DashboardSettings) {
            self.settings = settings
            modified = [settings.certificateFile, settings.keyFile, settings.tokenFile].map {
                guard !$0.isEmpty else { return nil }
                // Of what a link leads to, as in a volume of a Secret.
                let path = URL(fileURLWithPath: $0).resolvingSymlinksInPath().path
                return try? FileManager.default.attributesOfItem(atPath: path)[.modificationDate] as? Date
            }
        }
    }

    func run() async {
        let source = NodeDashboard(
            NodeView(options),
            agent: NodeDashboard.Agent(
                statistics: controller.statistics, exporter: controller.flows.exporter, audit: controller.audit,
                names: { [controller] in await controller.flowNames() }))
        let server = DashboardServer(source, logger: logger)
        await cancelWhenGracefulShutdown {
            await withTaskGroup(of: Void.self) { group in
                group.addTask {
                    let socket = DashboardListener(socket: options.dashboardSocket)
                    await serve(server, "socket") { socket }
                }
                group.addTask { await follow(server) }
            }
        }
    }

    /// Runs a server at the address that is wanted, and another when that changes.
    private func follow(_ server: DashboardServer) async {
        while !Task.isCancelled {
            let wanted = Wanted(await controller.inForce?.dashboard ?? DashboardSettings())
            guard await controller.inForce != nil, !wanted.settings.address.isEmpty else {
                await controller.note(dashboard: nil)
                try? await Task.sleep(for: .seconds(1))
                continue
            }
            await withTaskGroup(of: Void.self) { group in
                group.addTask {
                    await serve(server, "dashboardAddress") { try DashboardListener(wanted.settings) }
                }
                group.addTask {
                    while (try? await Task.sleep(for: .seconds(1))) != nil {
                        if Wanted(await controller.inForce?.dashboard ?? wanted.settings) != wanted { return }
                    }
                }
                await group.next()
                group.cancelAll()
            }
        }
    }

    /// Serves until the task is cancelled; what fails is a problem, and is tried again.
    private func serve(_ server: DashboardServer, _ field: String, _ listener: () throws -> DashboardListener?) async {
        while !Task.isCancelled {
            do {
                guard let listener = try listener() else { return }
                try await server.run(listener) {
                    logger.info("dashboard listens", metadata: ["at": "\(listener.location)"])
                    if field == "dashboardAddress" { await controller.note(dashboard: nil) }
                }
                return
            } catch {
                if Task.isCancelled { return }
                if field == "dashboardAddress" {
                    await controller.note(
                        dashboard: "\((error as? ProblemsError)?.problems.first?.message ?? "\(error)")")
                } else {
                    logger.warning("dashboard's socket cannot be had", metadata: ["error": "\(error)"])
                }
                try? await Task.sleep(for: .seconds(5))
            }
        }
    }
}
