// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation
import Model
import SystemDescriptors

@main
struct Wgplane: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "wgplane",
        abstract: "Encrypts the traffic between pods on different nodes with WireGuard, steered by eBPF or by routes.",
        discussion: """
            Exit status: 0 done, 1 failed, 2 wrong use. Errors go to standard error and name the
            resource, the field, the value and the remedy.
            """,
        version: "0.1.0",
        subcommands: [
            AgentCommand.self, GuardCommand.self, StatusCommand.self, ModeCommand.self, FlowsCommand.self,
            DropsCommand.self,
            MapsCommand.self, ExplainCommand.self, CaptureCommand.self, MetricsCommand.self, AuditCommand.self,
            OpenCommand.self, DoctorCommand.self,
            GetCommand.self, ApplyCommand.self, PatchCommand.self, DeleteCommand.self,
            DatastoreCommand.self, CleanupCommand.self,
            LabCommand.self,
        ])

    static func main() async {
        // Lines appear as they are made, also through a pipe.
        bufferOutputByLine()
        do {
            var command = try parseAsRoot()
            if var asynchronous = command as? any AsyncParsableCommand {
                try await asynchronous.run()
            } else {
                try command.run()
            }
        } catch let error as ProblemsError {
            fail(error.description)
        } catch {
            let code = exitCode(for: error)
            guard code != .validationFailure, code != .success else {
                let text = fullMessage(for: error)
                if code == .success { Swift.print(text) } else { write(text) }
                Foundation.exit(code == .success ? 0 : 2)
            }
            if let code = error as? ExitCode { Foundation.exit(code.rawValue) }
            fail("\(error)")
        }
    }

    static func fail(_ text: String) -> Never {
        for line in text.split(separator: "\n") { write("wgplane: \(line)") }
        Foundation.exit(1)
    }

    private static func write(_ text: String) {
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }
}
