// SPDX-License-Identifier: Apache-2.0

internal import Model
internal import NIOCore
internal import NIOPosix
internal import NIOSSL
internal import NIOTLS
internal import Synchronization

/// A transport session with a collector: a connected UDP socket, a TCP connection, TLS over one.
struct CollectorConnection: Sendable {
    private let channel: any Channel
    private let troubles: Troubles
    /// Bytes that a message may have: with UDP what the path takes whole, and never more than Ethernet does.
    let maximumLength: Int

    /// What a channel has told of, since the last look.
    private final class Troubles: Sendable {
        private let state = Mutex<(count: Int, last: String)>((0, ""))
        private let hands = Mutex(false)

        func note(_ error: any Error) { state.withLock { $0 = ($0.count + 1, "\(error)") } }
        func shakeHands() { hands.withLock { $0 = true } }
        var haveShakenHands: Bool { hands.withLock { $0 } }
        var last: String { state.withLock { $0.last } }
        func take() -> Int {
            state.withLock { state in
                defer { state.count = 0 }
                return state.count
            }
        }
    }

    private final class Watch: ChannelInboundHandler, Sendable {
        typealias InboundIn = Never
        private let troubles: Troubles
        private let isDatagram: Bool

        init(_ troubles: Troubles, isDatagram: Bool) {
            self.troubles = troubles
            self.isDatagram = isDatagram
        }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {}  // A collector has nothing to say.

        func errorCaught(context: ChannelHandlerContext, error: any Error) {
            troubles.note(error)
            if !isDatagram { context.close(promise: nil) }
        }

        func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
            if case TLSUserEvent.handshakeCompleted = event { troubles.shakeHands() }
            context.fireUserInboundEventTriggered(event)
        }
    }

    static func open(_ settings: FlowExportSettings, _ collector: CollectorAddress) async throws -> Self {
        let group = MultiThreadedEventLoopGroup.singleton
        let troubles = Troubles()
        if collector.transport == .udp {
            let channel = try await DatagramBootstrap(group: group).channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Watch(troubles, isDatagram: true))
                }
            }.connect(host: collector.host, port: Int(collector.port)).get()
            return Self(channel: channel, troubles: troubles, maximumLength: await datagramLength(channel))
        }
        let context = collector.transport == .tls ? try NIOSSLContext(configuration: tls(settings)) : nil
        // An address is looked for in the certificate as such.
        let name = IPAddress(collector.host) == nil ? collector.host : nil
        let channel = try await ClientBootstrap(group: group).connectTimeout(.seconds(5)).channelInitializer {
            channel in
            channel.eventLoop.makeCompletedFuture {
                if let context {
                    try channel.pipeline.syncOperations.addHandler(
                        NIOSSLClientHandler(context: context, serverHostname: name))
                }
                try channel.pipeline.syncOperations.addHandler(Watch(troubles, isDatagram: false))
            }
        }.connect(host: collector.host, port: Int(collector.port)).get()
        let connection = Self(channel: channel, troubles: troubles, maximumLength: 16384)
        if context != nil { try await connection.waitForHandshake() }
        return connection
    }

    private func waitForHandshake() async throws {
        let deadline = ContinuousClock.now + .seconds(5)
        while !troubles.haveShakenHands {
            guard channel.isActive, ContinuousClock.now < deadline else {
                close()
                throw NoHandshake(reason: lastTrouble.isEmpty ? "the other side says nothing" : lastTrouble)
            }
            try await Task.sleep(for: .milliseconds(10))
        }
    }

    private struct NoHandshake: Error, CustomStringConvertible {
        var reason: String
        var description: String { "no TLS: \(reason)" }
    }

    private static func tls(_ settings: FlowExportSettings) throws -> TLSConfiguration {
        var configuration = TLSConfiguration.makeClientConfiguration()
        configuration.minimumTLSVersion = .tlsv12
        if !settings.authorityFile.isEmpty { configuration.trustRoots = .file(settings.authorityFile) }
        if !settings.certificateFile.isEmpty {
            configuration.certificateChain = try NIOSSLCertificate.fromPEMFile(settings.certificateFile).map {
                .certificate($0)
            }
            configuration.privateKey = .privateKey(
                try NIOSSLPrivateKey(file: settings.keyFile, format: .pem))
        }
        return configuration
    }

    /// UDP's payload in the path's MTU (IP_MTU and IPV6_MTU of ip(7) and ipv6(7)).
    private static func datagramLength(_ channel: any Channel) async -> Int {
        let isIPv6 = channel.remoteAddress?.protocol == .inet6
        let option = ChannelOptions.Types.SocketOption(
            level: isIPv6 ? 41 : 0, name: isIPv6 ? 24 : 14)
        let known = try? await channel.getOption(option).get()
        let mtu = known ?? 1280
        return min(max(mtu, 1280), 1500) - (isIPv6 ? 48 : 28)
    }

    /// Returns when the socket has taken all of it.
    func send(_ messages: [[UInt8]]) async throws {
        guard let last = messages.last else { return }
        for message in messages.dropLast() { channel.write(ByteBuffer(bytes: message), promise: nil) }
        try await channel.writeAndFlush(ByteBuffer(bytes: last))
    }

    /// Errors since the last look: with UDP what the other side's "port unreachable" has become.
    func takeTroubles() -> Int { troubles.take() }
    var lastTrouble: String { troubles.last }
    var isActive: Bool { channel.isActive }

    func close() { channel.close(promise: nil) }
}
