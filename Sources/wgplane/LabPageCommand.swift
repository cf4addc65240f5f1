// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Dashboard
import Lab
import Model
import ServiceLifecycle
import UnixSignals

struct LabPageCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "page", abstract: "Serves one page for the whole lab, until interrupted.",
        usage: "wgplane lab page [options]",
        discussion: "Metrics of each node are at /nodes/NODE/metrics.")

    @OptionGroup var lab: LabNameOptions
    @Option(help: ArgumentHelp("Where on this machine; loopback only.", valueName: "address:port"))
    var listen = DashboardSettings.defaultAddress

    func run() async throws {
        var settings = DashboardSettings()
        settings.address = listen
        guard settings.isLoopback, let listener = try DashboardListener(settings) else {
            throw ValidationError("--listen: \"\(listen)\" is no loopback address with a port, like 127.0.0.1:9586")
        }
        let page = LabDashboard(try lab.open(), listener: listener, logger: quietLogger) {
            print(listener.location)
        }
        let group = ServiceGroup(
            configuration: .init(
                services: [.init(service: page, successTerminationBehavior: .gracefullyShutdownGroup)],
                gracefulShutdownSignals: [.sigterm, .sigint], logger: quietLogger))
        try await group.run()
    }
}
