// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
internal import Synchronization
public import SystemPackage

/// What an agent may, for the rest of its life: capabilities, system calls, dumps (capabilities(7), seccomp(2),
/// prctl(2)). Each thread has its own, so all is given up before there is a second one.
public enum Privileges {
    /// A capability by its number in `<linux/capability.h>`.
    public enum Capability: Int, Sendable, CaseIterable {
        case networkAdministration = 12
        case rawSockets = 13
        case performance = 38
        case bpf = 39

        var bit: UInt64 { 1 << UInt64(rawValue) }
    }

    /// All that an agent's own work takes.
    public static let ofAgent: Set<Capability> = [.networkAdministration, .bpf, .performance]
    /// What the programs take that it has started: `wireguard-go`, and `iptables`, whose old kind opens raw sockets.
    public static let ofPrograms: Set<Capability> = [.networkAdministration, .rawSockets]

    /// A step that this kernel or container has refused.
    public struct Refusal: Sendable {
        public var step: String
        public var errno: Errno
    }

    /// Gives up all but `ofAgent`, and has a process of its own start these programs, which this one may not any more.
    /// `startsOthers`: it may, for it must start one whose name nobody knows before. Call it while there is one thread.
    ///
    /// What is refused is left as it is, and returned: less is given up then, and nothing breaks.
    public static func reduce(programs: [String], startsOthers: Bool) -> [Refusal] {
        var refusals: [Refusal] = []
        func step(_ name: String, _ result: Int32) {
            if result != 0 { refusals.append(Refusal(step: name, errno: Errno(rawValue: result))) }
        }
        // Kernels before 5.11 count maps as locked memory, and another privilege is needed to raise that.
        wgp_unlimit_locked_memory()
        step("no dumps", wgp_forbid_dumps())
        let hasLauncher = startLauncher(programs)
        if !hasLauncher { refusals.append(Refusal(step: "a process that starts programs", errno: .current)) }
        let kept = bits(ofAgent)
        // What this process starts itself has no more than it has.
        step(
            "capabilities",
            wgp_keep_capabilities(kept | (hasLauncher && !startsOthers ? 0 : bits(ofPrograms)), kept))
        step("no new privileges", wgp_forbid_new_privileges())
        step("system calls", wgp_forbid_system_calls(hasLauncher && !startsOthers ? 1 : 0))
        return refusals
    }

    private static func bits(_ capabilities: Set<Capability>) -> UInt64 { capabilities.reduce(0) { $0 | $1.bit } }

    /// Whether the process that starts programs for this one has ended: none can be started any more.
    public static var hasLostLauncher: Bool { loss.load(ordering: .relaxed) }
    fileprivate static let loss = Atomic<Bool>(false)

    /// Socket of the process that starts programs for this one.
    fileprivate static let launcher = Mutex<SharedDescriptor?>(nil)

    private static func startLauncher(_ programs: [String]) -> Bool {
        var names = unsafe programs.map { unsafe UnsafePointer(strdup($0)) } + [nil]
        defer { unsafe names.forEach { unsafe free(UnsafeMutablePointer(mutating: $0)) } }
        let socket = unsafe wgp_start_launcher(&names, bits(ofPrograms))
        guard socket >= 0 else { return false }
        launcher.withLock { $0 = SharedDescriptor(OwnedDescriptor(owning: socket)) }
        return true
    }
}

extension ProgramLaunch {
    /// Has the process that is there for it start the program, waits for its end, and returns its status as `waitpid`
    /// tells it and, `capturing`, what it wrote; nil: there is no such process. One at a time.
    ///
    /// Of the environment it sets `LOG_LEVEL` and `WG_TUN_MTU` alone, and the path is its own.
    ///
    /// Throws `EPERM` for a program or an option that it may not start, `ETIMEDOUT` for one that has not ended within a
    /// minute, `EPIPE` where it has ended itself: `Privileges.hasLostLauncher` from then on.
    func runByLauncher(capturing: Bool) throws(Errno) -> (status: Int32, output: [UInt8])? {
        do {
            return try Privileges.launcher.withLock { socket -> (Int32, [UInt8])? in
                guard let socket else { return nil }
                return try ask(socket.rawValue, capturing)
            }
        } catch let error as Errno {
            if error == .brokenPipe { Privileges.loss.store(true, ordering: .relaxed) }
            throw error
        } catch {
            throw .ioError
        }
    }

    private func ask(_ socket: Int32, _ capturing: Bool) throws(Errno) -> (Int32, [UInt8]) {
        let environment = environment.filter { $0.hasPrefix("LOG_LEVEL=") || $0.hasPrefix("WG_TUN_MTU=") }
        let texts = (Self.bytes(arguments), Self.bytes(environment), Array(input.utf8))
        let request = wgp_launch(
            arguments: UInt32(arguments.count), arguments_size: UInt32(texts.0.count),
            environment: UInt32(environment.count), environment_size: UInt32(texts.1.count),
            input_size: UInt32(texts.2.count), own_session: ownSession ? 1 : 0,
            capture: capturing ? 1 : 0)
        let head = unsafe withUnsafeBytes(of: request) { unsafe Array($0) }
        try sendAll(head + texts.0 + texts.1 + texts.2, on: socket)
        let answer = try Self.receive(socket, MemoryLayout<wgp_launched>.size)
        let launched = unsafe answer.withUnsafeBytes { unsafe $0.loadUnaligned(as: wgp_launched.self) }
        let output = try Self.receive(socket, Int(launched.output_size))
        guard launched.error == 0 else { throw Errno(rawValue: launched.error) }
        return (launched.status, output)
    }

    private static func bytes(_ texts: [String]) -> [UInt8] { texts.flatMap { Array($0.utf8) + [0] } }

    private static func receive(_ socket: Int32, _ count: Int) throws(Errno) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        var offset = 0
        while offset < count {
            let start = offset
            let got = try retryingInterrupts {
                unsafe bytes.withUnsafeMutableBytes {
                    unsafe recv(socket, $0.baseAddress?.advanced(by: start), count - start, 0)
                }
            }
            guard got > 0 else { throw .brokenPipe }
            offset += got
        }
        return bytes
    }
}
