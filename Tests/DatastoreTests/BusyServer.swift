// SPDX-License-Identifier: Apache-2.0

import NIOCore
import NIOPosix
import Synchronization

/// Speaks for an API server with two nodes, over HTTP/1.1 on loopback; or refuses every request in given words, as one does
/// that has too much to do, or a proxy before it.
final class BusyServer: Sendable {
    private let group = MultiThreadedEventLoopGroup.singleton
    private let state = Holder()
    let port: Int

    private final class Holder: Sendable {
        let state = Mutex(State())
    }

    private struct State {
        var server: (any Channel)?
        var channels: [ObjectIdentifier: any Channel] = [:]
        /// An answer as it goes over the wire; nil: requests are answered.
        var refusal: String?
        var requests = 0
    }

    init() async throws {
        let holder = state
        let server = try await ServerBootstrap(group: group)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { client in
                holder.state.withLock { $0.channels[ObjectIdentifier(client)] = client }
                client.closeFuture.whenComplete { _ in
                    holder.state.withLock { $0.channels[ObjectIdentifier(client)] = nil }
                }
                return client.eventLoop.makeCompletedFuture {
                    try client.pipeline.syncOperations.addHandler(
                        Answers { request in
                            holder.state.withLock { state in
                                state.requests += 1
                                return state.refusal ?? Self.answer(request)
                            }
                        })
                }
            }
            .bind(host: "127.0.0.1", port: 0).get()
        port = server.localAddress?.port ?? 0
        state.state.withLock { $0.server = server }
    }

    /// Requests since the last call.
    func takeRequests() -> Int {
        state.state.withLock { state in
            defer { state.requests = 0 }
            return state.requests
        }
    }

    /// From now on; what is under way ends. `header`: more lines of it; nil: requests are answered again.
    func refuse(_ status: String?, header: String = "", body: String = "") {
        let channels = state.state.withLock { state in
            state.refusal = status.map { Self.message($0, header: header, body: body) }
            return Array(state.channels.values)
        }
        for channel in channels { channel.close(promise: nil) }
    }

    func close() async {
        refuse(nil)
        try? await state.state.withLock { $0.server }?.close()
    }

    private static func message(_ status: String, header: String = "", body: String) -> String {
        "HTTP/1.1 \(status)\r\nContent-Type: application/json\r\nContent-Length: \(body.utf8.count)\r\n\(header)"
            + "Connection: close\r\n\r\n\(body)"
    }

    /// A watch tells of nothing, and stays.
    private static func answer(_ request: String) -> String {
        let path = request.split(separator: " ").dropFirst().first ?? ""
        if path.contains("watch=1") {
            return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        }
        let items = ["n1", "n2"].map { #"{"metadata":{"name":"\#($0)","resourceVersion":"7"}}"# }.joined(separator: ",")
        let isOfNodes = path.split(separator: "?")[0].hasSuffix("/nodes")
        return message(
            "200 OK", body: #"{"metadata":{"resourceVersion":"7"},"items":[\#(isOfNodes ? items : "")]}"#)
    }

    private final class Answers: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        private var received = ""
        private let answer: (String) -> String

        init(_ answer: @escaping (String) -> String) { self.answer = answer }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            received += String(buffer: unwrapInboundIn(data))
            guard received.contains("\r\n\r\n") else { return }
            let text = answer(received)
            received = ""
            let sent = context.channel.writeAndFlush(ByteBuffer(string: text))
            if text.contains("Connection: close") {
                let channel = context.channel
                sent.whenComplete { _ in channel.close(promise: nil) }
            }
        }
    }
}
