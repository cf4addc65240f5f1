// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Addresses
internal import Netlink
internal import Synchronization
internal import SystemDescriptors
internal import SystemPackage

/// WireGuard by Debian's `wireguard-go`: one process a device, which outlives the agent.
public final class UserspaceBackend: WireGuardBackend {
    public let kind = BackendKind.userspace
    private let route: RouteSession
    private let folder: String
    private let program: String
    private let kept = Mutex<Connection?>(nil)

    /// Looked up in PATH.
    public static let programName = "wireguard-go"

    /// `folder` is where the sockets are (`/var/run/wireguard` by the protocol).
    public init(program: String = UserspaceBackend.programName, folder: String = "/var/run/wireguard") throws {
        self.program = program
        self.folder = folder
        route = try RouteSession()
    }

    /// Whether the program is in PATH and the kernel has TUN devices.
    public static func isAvailable(program: String = UserspaceBackend.programName) -> Bool {
        // Opened, since the file alone is there without the module tun too; opening loads it.
        guard (try? openFile("/dev/net/tun", flags: O_RDWR)) != nil else { return false }
        return findProgram(program) != nil
    }

    private func socketPath(_ device: String) -> String { "\(folder)/\(device).sock" }

    public func create(device: String, mtu: UInt32) throws {
        if let link = try route.link(named: device) {
            // Deaf for a moment is not dead: an error here changes nothing.
            if try isAlive(device) { return }
            // A TUN device goes with its process; this one is somebody else's.
            throw WireGuardError.wrongKind(device: device, kind: link.kind)
        }
        try? removeFile(socketPath(device))
        try makeFolders(folder, mode: 0o700)
        // Nothing else of ours: passwords may be in it, and this process lives longer, and may be dumped.
        let environment = currentEnvironment().filter { $0.hasPrefix("PATH=") }
        let launch = ProgramLaunch(
            [program, device], environment: environment + ["LOG_LEVEL=error", "WG_TUN_MTU=\(mtu)"])
        let status: Int32
        do {
            // It puts itself into the background once its socket is there.
            status = try launch.run()
        } catch {
            throw WireGuardError.userspace(device: device, "cannot be started: \(error)")
        }
        guard status == 0 else {
            throw WireGuardError.userspace(device: device, "ended with status \(status)")
        }
        let deadline = monotonicNanoseconds() + 5_000_000_000
        while try !isAlive(device) {
            guard monotonicNanoseconds() < deadline else {
                throw WireGuardError.userspace(device: device, "does not answer on \(socketPath(device))")
            }
            usleep(2000)
        }
        if let link = try route.link(named: device), link.mtu != mtu { try route.setLink(link.index, mtu: mtu) }
    }

    /// Whether a process of ours serves the device: false when its socket is not there, or
    /// nobody listens on it.
    func isAlive(_ device: String) throws -> Bool {
        guard fileExists(socketPath(device)) else { return false }
        do {
            _ = try StreamSocket(connectedTo: socketPath(device), timeoutSeconds: 5)
            return true
        } catch {
            guard error == .connectionRefused || error == .noSuchFileOrDirectory else { throw error }
            return false
        }
    }

    public func state(device: String) throws -> DeviceState? { try look(device)?.state }

    public func privateKey(device: String) throws -> PrivateKey? { try look(device)?.key }

    private func look(_ device: String) throws -> (state: DeviceState, key: PrivateKey?)? {
        guard let link = try route.link(named: device) else { return nil }
        guard fileExists(socketPath(device)) else { return nil }
        var request = Array("get=1\n\n".utf8)
        var answer: [UInt8]
        do {
            answer = try exchange(request, device)
        } catch let error as Errno where error == .connectionRefused || error == .noSuchFileOrDirectory {
            return nil
        }
        defer {
            GuardedBytes.wipe(&answer)
            GuardedBytes.wipe(&request)
        }
        var key: PrivateKey?
        var state = try UserspaceProtocol.decode(&answer, device: device, key: &key)
        state.interface = link.index
        return (state, key)
    }

    public func apply(_ change: DeviceChange, to device: String) throws {
        let change = change.movingRemovals()
        let answer = try kept.withLock { kept in
            // One that has been kept may have been hung up on. What was taken all the same is no other when said again.
            if let answer = Self.exchange(change, with: device, by: &kept) { return answer }
            kept = Connection(
                device: device, stream: try StreamSocket(connectedTo: socketPath(device), timeoutSeconds: 5))
            return Self.exchange(change, with: device, by: &kept) ?? "no answer"
        }
        guard answer.hasPrefix("errno=0") else {
            throw WireGuardError.userspace(
                device: device, "refused a change: \(answer.split(separator: "\n").first ?? "no answer")")
        }
    }

    /// Keeps a connection on which a change was taken. Nil: there is none, or it is broken.
    private static func exchange(
        _ change: DeviceChange, with device: String, by kept: inout Connection?
    ) -> String? {
        guard let connection = kept.take(), connection.device == device,
            let answer = try? connection.exchange(change)
        else { return nil }
        if answer.hasPrefix("errno=0") { kept = consume connection }
        return answer
    }

    /// To a device's process, for one change after the other.
    private struct Connection: ~Copyable, Sendable {
        let device: String
        let stream: StreamSocket

        func exchange(_ change: DeviceChange) throws(Errno) -> String {
            var broken: Errno?
            do {
                try UserspaceProtocol.encode(change) { piece throws(Errno) in try stream.writeAll(piece) }
            } catch {
                // It hangs up in the middle of what it refuses, and has said why.
                broken = error
            }
            let answer: String
            do {
                answer = String(decoding: try stream.readUntil([10, 10]), as: UTF8.self)
            } catch { throw broken ?? error }
            if answer.isEmpty { throw broken ?? .brokenPipe }
            return answer
        }
    }

    public func delete(device: String) throws {
        kept.withLock { $0 = nil }
        // The program ends when its socket is unlinked or its device deleted.
        try? removeFile(socketPath(device))
        // Which only goes when it is empty.
        defer { try? removeFolder(folder) }
        guard let link = try route.link(named: device), link.kind == "tun" else { return }
        try route.deleteLink(named: device)
        let deadline = monotonicNanoseconds() + 3_000_000_000
        while try route.link(named: device) != nil, monotonicNanoseconds() < deadline { usleep(2000) }
    }

    private func exchange(_ request: [UInt8], _ device: String) throws -> [UInt8] {
        let stream = try StreamSocket(connectedTo: socketPath(device), timeoutSeconds: 5)
        try stream.writeAll(request)
        return try stream.readUntil([10, 10])
    }
}
