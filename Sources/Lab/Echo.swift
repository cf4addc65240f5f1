// SPDX-License-Identifier: Apache-2.0

internal import Flows
internal import Model
internal import Synchronization
public import SystemDescriptors
internal import SystemPackage

/// Echo servers in a pod or node: UDP and TCP on one port, both families, until stopped.
public final class EchoServer: Sendable {
    private let flag: StopFlag
    private let threads: [BackgroundThread]

    /// Opens the sockets inside and serves them on threads.
    public init(in place: NamespaceFiles, port: UInt16, isIPv6: [Bool]) throws {
        let sockets = try place.run {
            try isIPv6.map { v6 in
                let any = [UInt8](repeating: 0, count: v6 ? 16 : 4)
                let udp = try InternetSocket(.udp, isIPv6: v6, timeoutMilliseconds: 100)
                // Loss is to be the network's, not that of a busy machine's echo.
                try udp.setReceiveBuffer(8 << 20)
                try udp.bind(SocketAddress(any, port: port))
                let tcp = try InternetSocket(.tcp, isIPv6: v6, timeoutMilliseconds: 100)
                try tcp.bind(SocketAddress(any, port: port))
                try tcp.listen()
                return (udp, tcp)
            }
        }
        let stopped = StopFlag()
        flag = stopped
        threads = sockets.flatMap { udp, tcp in
            [
                BackgroundThread { Self.serveUDP(udp, stopped) },
                BackgroundThread { Self.serveTCP(tcp, stopped) },
            ]
        }
    }

    public func stop() {
        flag.raise()
        for thread in threads { thread.join() }
    }

    private static func serveUDP(_ socket: InternetSocket, _ stopped: StopFlag) {
        while !stopped.isRaised {
            guard let (bytes, from) = try? socket.receive(), let from else { continue }
            _ = try? socket.send(bytes, to: from)
        }
    }

    private static func serveTCP(_ listener: InternetSocket, _ stopped: StopFlag) {
        var connections: [BackgroundThread] = []
        while !stopped.isRaised {
            guard let connection = try? listener.accept() else { continue }
            connections.append(
                BackgroundThread {
                    try? connection.setTimeout(milliseconds: 100)
                    while !stopped.isRaised {
                        do {
                            let (bytes, _) = try connection.receive()
                            if bytes.isEmpty { return }
                            try sendAll(bytes, connection, stopped)
                        } catch {
                            if (error as? Errno) != .wouldBlock { return }
                        }
                    }
                })
        }
        for connection in connections { connection.join() }
    }
}

/// A full window, for the far side is not reached now, is waited for.
private func sendAll(_ bytes: [UInt8], _ connection: InternetSocket, _ stopped: StopFlag) throws {
    var rest = bytes[...]
    while !rest.isEmpty, !stopped.isRaised {
        do {
            rest = rest.dropFirst(try connection.send(Array(rest)))
        } catch {
            if error != .wouldBlock { throw error }
        }
    }
}

/// A flag that one thread raises and others see.
public final class StopFlag: Sendable {
    private let value = Atomic<Bool>(false)

    public init() {}
    public func raise() { value.store(true, ordering: .releasing) }
    public var isRaised: Bool { value.load(ordering: .acquiring) }
}

/// Protocols of a reachability check.
public enum ProbeProtocol: String, Sendable, Codable, CaseIterable {
    case icmp
    case tcp
    case udp
}

/// One question and answer between two places. All calls block.
public struct Prober: Sendable {
    public let place: NamespaceFiles
    public static let port: UInt16 = 7007

    public init(_ place: NamespaceFiles) { self.place = place }

    /// Whether a question to an address is answered within the time, from a source address if given.
    public func ask(
        _ transport: ProbeProtocol, _ destination: [UInt8], identifier: UInt16, timeoutMilliseconds: Int = 1000
    ) -> Bool {
        let timeoutMilliseconds = timeoutMilliseconds * Lab.patience
        let isIPv6 = destination.count == 16
        let opened = try? place.run {
            try InternetSocket(
                transport == .icmp ? .icmp : transport == .tcp ? .tcp : .udp, isIPv6: isIPv6,
                timeoutMilliseconds: timeoutMilliseconds)
        }
        guard let socket = opened else { return false }
        let word = Array("wgplane \(identifier)".utf8)
        do {
            switch transport {
            case .icmp:
                try socket.send(
                    EchoMessage.request(identifier, word, isIPv6: isIPv6), to: SocketAddress(destination))
                let deadline = monotonicNanoseconds() + UInt64(timeoutMilliseconds) * 1_000_000
                while monotonicNanoseconds() < deadline {
                    let (answer, _) = try socket.receive()
                    if EchoMessage.isReply(answer, identifier, isIPv6: isIPv6) { return true }
                }
                return false
            case .udp:
                try socket.connect(SocketAddress(destination, port: Self.port))
                try socket.send(word)
                return try socket.receive().bytes == word
            case .tcp:
                try socket.connect(SocketAddress(destination, port: Self.port))
                try socket.send(word)
                return try socket.receive().bytes == word
            }
        } catch {
            return false
        }
    }
}
