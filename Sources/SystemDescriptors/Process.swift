// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import SystemPackage

/// A process that this one started, or knows by number and start time.
public struct ProcessReference: Sendable, Hashable, Codable {
    public var identifier: Int32
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`), which
    /// tells the process from a later one with the same number.
    public var startTime: UInt64

    /// The process with this number, if there is one.
    public init?(identifier: Int32) {
        guard let startTime = Self.startTime(of: identifier) else { return nil }
        self.identifier = identifier
        self.startTime = startTime
    }

    /// Whether it still runs; a zombie does not.
    public var isRunning: Bool { Self.startTime(of: identifier) == startTime }

    /// Sends a signal, unless it has ended.
    public func signal(_ number: Int32) {
        if isRunning { _ = kill(identifier, number) }
    }

    private static func startTime(of identifier: Int32) -> UInt64? {
        guard let bytes = try? readFile("/proc/\(identifier)/stat") else { return nil }
        let text = String(decoding: bytes, as: UTF8.self)
        // The name in parentheses may hold anything; fields are counted after it.
        guard let end = text.lastIndex(of: ")") else { return nil }
        let fields = text[text.index(after: end)...].split(separator: " ")
        guard fields.count > 19, fields[0] != "Z" else { return nil }
        return UInt64(fields[19])
    }
}

/// How a program is started.
public struct ProgramLaunch: Sendable {
    /// Name (looked up in PATH) or path, then the arguments.
    public var arguments: [String]
    /// Whole environment, `NAME=value` each.
    public var environment: [String]
    /// File that standard output and error are appended to; nil: `/dev/null`.
    public var log: String?
    /// In a session of its own, so that signals of the terminal do not reach it.
    public var ownSession: Bool

    /// What the program reads from standard input.
    public var input = ""

    public init(_ arguments: [String], environment: [String], log: String? = nil, ownSession: Bool = true) {
        self.arguments = arguments
        self.environment = environment
        self.log = log
        self.ownSession = ownSession
    }

    /// Starts the program and returns its number.
    public func start() throws(Errno) -> Int32 {
        try start(output: try openFile(log ?? "/dev/null", flags: O_WRONLY | O_APPEND | O_CREAT, mode: 0o600))
    }

    private func start(output: borrowing OwnedDescriptor) throws(Errno) -> Int32 {
        let input = try input.isEmpty ? openFile("/dev/null", flags: O_RDONLY) : Self.memoryFile(self.input)
        var argv = unsafe arguments.map { unsafe strdup($0) } + [nil]
        var envp = unsafe environment.map { unsafe strdup($0) } + [nil]
        defer {
            unsafe argv.forEach { unsafe free($0) }
            unsafe envp.forEach { unsafe free($0) }
        }
        var identifier: Int32 = 0
        let error = unsafe wgp_spawn(
            &identifier, arguments[0], &argv, &envp, input.rawValue, output.rawValue, output.rawValue,
            ownSession ? 1 : 0)
        if error != 0 { throw Errno(rawValue: error) }
        return identifier
    }

    /// Starts the program and waits for its end; returns its exit status, or 128 + signal.
    /// Never call it on the cooperative pool.
    public func run() throws(Errno) -> Int32 {
        if log == nil, let done = try runByLauncher(capturing: false) { return Self.exitStatus(done.status) }
        return try Self.wait(for: start())
    }

    /// Starts the program, waits for its end, and returns its exit status and what it wrote to
    /// standard output and error. Never call it on the cooperative pool.
    public func capture() throws(Errno) -> (status: Int32, output: String) {
        if let done = try runByLauncher(capturing: true) {
            return (Self.exitStatus(done.status), String(decoding: done.output, as: UTF8.self))
        }
        let output = try Self.memoryFile("")
        let status = try Self.wait(for: start(output: output))
        let path = "/proc/self/fd/\(output.rawValue)"
        return (status, String(decoding: try readFile(path), as: UTF8.self))
    }

    private static func memoryFile(_ text: String) throws(Errno) -> OwnedDescriptor {
        let file = OwnedDescriptor(owning: try retryingInterrupts { wgp_memory_file() })
        try writeAll(file, Array(text.utf8))
        _ = lseek(file.rawValue, 0, SEEK_SET)
        return file
    }

    private static func wait(for identifier: Int32) throws(Errno) -> Int32 {
        var status: Int32 = 0
        try retryingInterrupts { unsafe waitpid(identifier, &status, 0) }
        return exitStatus(status)
    }

    private static func exitStatus(_ status: Int32) -> Int32 {
        status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
    }
}

/// Replaces this process by another program (execvp(3)); returns only when it cannot.
public func replaceProcess(_ arguments: [String]) -> Errno {
    var argv = unsafe arguments.map { unsafe strdup($0) } + [nil]
    _ = unsafe execvp(arguments[0], &argv)
    return .current
}

/// Reaps a child without waiting; true once it has ended.
public func reapChild(_ identifier: Int32) -> Bool {
    var status: Int32 = 0
    return unsafe waitpid(identifier, &status, WNOHANG) != 0
}

/// This process's environment, `NAME=value` each.
public func currentEnvironment() -> [String] {
    var result: [String] = []
    var pointer = unsafe Glibc.environ
    while let entry = unsafe pointer.pointee {
        result.append(unsafe String(cString: entry))
        unsafe pointer += 1
    }
    return result
}

/// Where PATH has a program; nil: nowhere.
public func findProgram(_ name: String) -> String? {
    let path = currentEnvironment().first { $0.hasPrefix("PATH=") }?.dropFirst(5) ?? "/usr/bin:/bin"
    return path.split(separator: ":").map { "\($0)/\(name)" }.first { fileExists($0) }
}

/// Whether the process has root's rights.
public func isRoot() -> Bool { geteuid() == 0 }

/// Nanoseconds of CLOCK_MONOTONIC: the clock of `bpf_ktime_get_ns`.
public func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// Has this process end as if it had been asked to (SIGTERM).
public func endThisProcess() { _ = kill(getpid(), SIGTERM) }

/// Unix time in seconds (CLOCK_REALTIME), which may be set forward and back.
public func wallSeconds() -> Int64 {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_REALTIME, &time)
    return Int64(time.tv_sec)
}

/// Nanoseconds that this process's threads have had a processor.
public func processorNanoseconds() -> UInt64 {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// This process's number.
public func processIdentifier() -> Int32 { getpid() }

/// Lines of standard output appear as they are written, through a pipe too.
public func bufferOutputByLine() {
    wgp_line_buffered_output()
}
