// SPDX-License-Identifier: Apache-2.0

internal import Foundation
public import Model
internal import Synchronization
public import SystemDescriptors

/// A server that is started, ended, stopped and started again with the same data.
public final class ServerProcess: Sendable {
    public let name: String
    private let arguments: [String]
    public let log: String
    private let outlives: Bool
    private let process = Mutex<ProcessReference?>(nil)

    /// `arguments`: the program and its arguments. What it prints is appended to `log`.
    /// `outlives`: whoever has started it may end, and Ctrl-C is not for it; else it ends with its group.
    public init(_ name: String, _ arguments: [String], log: String, outlives: Bool) {
        self.outlives = outlives
        self.name = name
        self.arguments = arguments
        self.log = log
    }

    public func start() throws {
        let launch = ProgramLaunch(arguments, environment: currentEnvironment(), log: log, ownSession: outlives)
        let started = ProcessReference(identifier: try launch.start())
        process.withLock { $0 = started }
    }

    public var reference: ProcessReference? { process.withLock { $0 } }

    public var isRunning: Bool {
        guard let reference else { return false }
        _ = reapChild(reference.identifier)
        return reference.isRunning
    }

    public func signal(_ number: Int32) { reference?.signal(number) }

    /// Ends it, by SIGKILL unless another signal is given, and waits until it is gone.
    public func end(signal number: Int32 = 9) {
        // A stopped process takes no other signal.
        signal(number)
        signal(18)
        let deadline = monotonicNanoseconds() + 10_000_000_000
        while isRunning {
            if monotonicNanoseconds() > deadline { signal(9) }
            sleepMicroseconds(2000)
        }
    }

    /// The last lines of the log.
    public var words: String {
        let text = (try? readFile(log)).map { String(decoding: $0, as: UTF8.self) } ?? ""
        return text.split(separator: "\n").suffix(8).joined(separator: "\n")
    }
}

/// A server's program that is not there: what to do.
public func missingServer(_ name: String, _ remedy: String) -> ProblemsError {
    ProblemsError(Problem(resource: "lab", field: "--datastore", value: name, message: "is not there", remedy: remedy))
}
