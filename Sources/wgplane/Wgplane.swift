// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Dispatch
import Foundation
import Model
import SystemDescriptors

@main
enum Program {
    /// In the first thread, and before there is another one: what is given up here, all that come later have not.
    static func main() {
        // Lines appear as they are made, also through a pipe.
        bufferOutputByLine()
        do {
            var command = try Wgplane.parseAsRoot()
            if let agent = command as? AgentCommand { agent.reducePrivileges() }
            if !(command is any AsyncParsableCommand) {
                // In this thread, whose signals another program that takes its place is to have.
                try command.run()
                exit(0)
            }
        } catch {
            Wgplane.end(error)
        }
        // It parses again: what was parsed here is this thread's.
        Task { await Wgplane.run() }
        dispatchMain()
    }
}

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
            DatastoreCommand.self, TrustCommand.self, CleanupCommand.self,
            LabCommand.self,
        ])

    /// Does what the arguments say, and ends the process.
    static func run() async -> Never {
        do {
            var command = try parseAsRoot()
            if var asynchronous = command as? any AsyncParsableCommand {
                try await asynchronous.run()
            } else {
                try command.run()
            }
        } catch {
            end(error)
        }
        Foundation.exit(0)
    }

    /// Says what is wrong, and ends the process.
    static func end(_ error: any Error) -> Never {
        if let error = error as? ProblemsError { fail(error.description) }
        let code = exitCode(for: error)
        guard code != .validationFailure, code != .success else {
            let text = fullMessage(for: error)
            if code == .success { Swift.print(text) } else { write(text) }
            Foundation.exit(code == .success ? 0 : 2)
        }
        if let code = error as? ExitCode { Foundation.exit(code.rawValue) }
        fail("\(error)")
    }

    static func fail(_ text: String) -> Never {
        for line in text.split(separator: "\n") { write("wgplane: \(line)") }
        Foundation.exit(1)
    }

    private static func write(_ text: String) {
        FileHandle.standardError.write(Data((text + "\n").utf8))
    }
}
