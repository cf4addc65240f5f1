// SPDX-License-Identifier: Apache-2.0

import NIOCore
import NIOPosix
import Synchronization

/// Between a client and a server on loopback: may be cut, may let so many bytes through only, may be slow.
final class Relay: Sendable {
    private let target: Int
    private let group = MultiThreadedEventLoopGroup.singleton
    private let state: Holder
    let port: Int

    private final class Holder: Sendable {
        let state = Mutex(State())

        func withLock<Result: Sendable>(_ body: (inout State) -> Result) -> Result { state.withLock { body(&$0) } }
    }

    private struct State {
        var server: (any Channel)?
        var channels: [ObjectIdentifier: any Channel] = [:]
        var isCut = false
        /// Bytes from the server that are still let through.
        var allowance: Int?
        var delay: TimeAmount?
        var received = 0
    }

    init(to target: UInt16) async throws {
        self.target = Int(target)
        let state = Holder()
        self.state = state
        let place = Int(target)
        let server = try await ServerBootstrap(group: group)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.autoRead, value: true)
            .childChannelOption(.allowRemoteHalfClosure, value: false)
            .childChannelInitializer { client in
                guard !state.withLock(\.isCut) else { return client.eventLoop.makeFailedFuture(ChannelError.eof) }
                state.withLock { $0.channels[ObjectIdentifier(client)] = client }
                client.closeFuture.whenComplete { _ in
                    state.withLock { $0.channels[ObjectIdentifier(client)] = nil }
                }
                return ClientBootstrap(group: client.eventLoop).connect(host: "127.0.0.1", port: place).flatMap {
                    upstream in
                    upstream.closeFuture.whenComplete { _ in client.close(promise: nil) }
                    client.closeFuture.whenComplete { _ in upstream.close(promise: nil) }
                    do {
                        try client.pipeline.syncOperations.addHandler(Forwarder(to: upstream))
                        try upstream.pipeline.syncOperations.addHandler(
                            Forwarder(to: client) { bytes in Self.passes(bytes, state) })
                        return client.eventLoop.makeSucceededVoidFuture()
                    } catch {
                        return client.eventLoop.makeFailedFuture(error)
                    }
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        port = server.localAddress?.port ?? 0
        state.withLock { $0.server = server }
    }

    /// Whether bytes of the server go on, and after what delay. Nil: the connection is to be cut.
    private static func passes(_ bytes: Int, _ state: Holder) -> TimeAmount? {
        state.withLock { state in
            state.received += bytes
            guard let allowance = state.allowance else { return state.delay ?? .zero }
            state.allowance = max(0, allowance - bytes)
            return allowance >= bytes ? state.delay ?? .zero : nil
        }
    }

    /// Bytes from the server so far.
    var received: Int { state.withLock(\.received) }

    /// Ends all connections and takes no more.
    func cut() {
        let channels = state.withLock { state in
            state.isCut = true
            return Array(state.channels.values)
        }
        for channel in channels { channel.close(promise: nil) }
    }

    /// Lets all through again.
    func restore() {
        state.withLock { ($0.isCut, $0.allowance, $0.delay) = (false, nil, nil) }
    }

    /// Cuts after so many more bytes from the server.
    func limit(_ bytes: Int) { state.withLock { $0.allowance = bytes } }

    /// Each piece from the server waits so long.
    func slow(_ delay: TimeAmount) { state.withLock { $0.delay = delay } }

    func close() async {
        cut()
        try? await state.withLock { $0.server }?.close()
    }

    private final class Forwarder: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        private let other: any Channel
        private let passes: (Int) -> TimeAmount?

        init(to other: any Channel, _ passes: @escaping (Int) -> TimeAmount? = { _ in .zero }) {
            self.other = other
            self.passes = passes
        }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            let buffer = unwrapInboundIn(data)
            guard let delay = passes(buffer.readableBytes) else { return context.close(promise: nil) }
            guard delay > .zero else { return other.writeAndFlush(buffer, promise: nil) }
            let other = other
            context.eventLoop.scheduleTask(in: delay) { other.writeAndFlush(buffer, promise: nil) }
        }

        func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
    }
}
