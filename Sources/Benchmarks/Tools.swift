// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemDescriptors

/// Programs of others, as yardsticks.
enum Tools {
    /// Runs one to its end in the calling thread's network namespace; what it prints goes to a file, or nowhere.
    static func run(_ arguments: [String], output: String? = nil) throws {
        let launch = ProgramLaunch(arguments, environment: currentEnvironment(), log: output, ownSession: false)
        let status = try launch.run()
        guard status == 0 else { throw BenchmarkError("\(arguments.joined(separator: " ")): status \(status)") }
    }

    /// Nanoseconds that a body takes.
    static func time(_ body: () throws -> Void) rethrows -> Double {
        let start = monotonicNanoseconds()
        try body()
        return Double(monotonicNanoseconds() - start)
    }

    /// Milliseconds.
    static func milliseconds(_ body: () throws -> Void) rethrows -> Double { try time(body) / 1e6 }
}
