// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import GRPCCore
internal import GRPCNIOTransportHTTP2Posix
internal import Logging
internal import NIOCore
internal import Synchronization

/// Calls to an etcd cluster: one connection to one of its members, to another one when that is gone or silent.
final class EtcdClient: Sendable {
    typealias Channel = GRPCClient<HTTP2ClientTransport.Posix>

    let access: EtcdAccess
    private let logger: Logger
    private let keepAlive: Duration
    private let state = Mutex(State())

    private struct State {
        var connection: Connection?
        var generation = 0
        var token: String?
        var isClosed = false
    }

    private struct Connection {
        var channel: Channel
        var runner: Task<Void, Never>
    }

    /// `keepAlive`: how often a connection is tried; it is dead after half of that without an answer.
    init(_ access: EtcdAccess, keepAlive: Duration, logger: Logger) {
        self.access = access
        self.keepAlive = keepAlive
        self.logger = logger
    }

    // MARK: Connections

    private func channel() throws -> (Channel, generation: Int) {
        try state.withLock { state in
            guard !state.isClosed else { throw RPCError(code: .cancelled, message: "the connection is closed") }
            if let connection = state.connection { return (connection.channel, state.generation) }
            let channel = Channel(transport: try transport(access.endpoints[state.generation % access.endpoints.count]))
            let runner = Task { [logger] in
                do {
                    try await channel.runConnections()
                } catch {
                    logger.debug("etcd: connection has ended", metadata: ["error": "\(error)"])
                }
            }
            state.connection = Connection(channel: channel, runner: runner)
            return (channel, state.generation)
        }
    }

    private func transport(_ endpoint: EtcdAccess.Endpoint) throws -> HTTP2ClientTransport.Posix {
        var security = HTTP2ClientTransport.Posix.TransportSecurity.plaintext
        if endpoint.isEncrypted {
            var tls = HTTP2ClientTransport.Posix.TransportSecurity.TLS.defaults
            if let file = access.authorities { tls.trustRoots = .certificates([.file(path: file, format: .pem)]) }
            if let certificate = access.certificate, let key = access.key {
                tls.certificateChain = [.file(path: certificate, format: .pem)]
                tls.privateKey = .file(path: key, format: .pem)
            }
            security = .tls(tls)
        }
        var config = HTTP2ClientTransport.Posix.Config.defaults
        config.connection.keepalive = .init(
            time: keepAlive, timeout: keepAlive / 2, allowWithoutCalls: false)
        config.connection.maxIdleTime = nil
        config.backoff.initial = .milliseconds(100)
        config.backoff.max = .seconds(2)
        let target: any ResolvableTarget
        if endpoint.host.contains(":") {
            target = .ipv6(address: endpoint.host, port: endpoint.port)
        } else if endpoint.host.allSatisfy({ $0.isNumber || $0 == "." }) {
            target = .ipv4(address: endpoint.host, port: endpoint.port)
        } else {
            target = .dns(host: endpoint.host, port: endpoint.port)
        }
        return try HTTP2ClientTransport.Posix(target: target, transportSecurity: security, config: config)
    }

    /// Goes to the next member, unless somebody has done so since.
    func renew(_ generation: Int) {
        let old = state.withLock { state -> Connection? in
            guard state.generation == generation else { return nil }
            state.generation += 1
            // A token is a member's own when it is a simple one.
            state.token = nil
            defer { state.connection = nil }
            return state.connection
        }
        Self.end(old)
    }

    private static func end(_ connection: Connection?) {
        guard let connection else { return }
        connection.channel.beginGracefulShutdown()
        // Calls that nobody answers would keep it.
        Task {
            try? await Task.sleep(for: .seconds(5))
            connection.runner.cancel()
        }
    }

    func close() {
        Self.end(
            state.withLock { state in
                state.isClosed = true
                defer { state.connection = nil }
                return state.connection
            })
    }

    // MARK: Calls

    private static let timeOut = Duration.seconds(10)

    /// One call, with the user's token. It is made again once when the token is refused; what the connection's end has
    /// cut off makes the next call go to another member.
    func call<Result>(_ body: (Channel, Metadata, CallOptions) async throws -> Result) async throws -> Result {
        var options = CallOptions.defaults
        options.timeout = Self.timeOut
        options.maxResponseMessageBytes = 64 << 20
        return try await attempt(options, body)
    }

    /// One stream, without a deadline.
    func stream<Result>(_ body: (Channel, Metadata, CallOptions) async throws -> Result) async throws -> Result {
        var options = CallOptions.defaults
        options.maxResponseMessageBytes = 64 << 20
        return try await attempt(options, body)
    }

    private func attempt<Result>(
        _ options: CallOptions, _ body: (Channel, Metadata, CallOptions) async throws -> Result
    ) async throws -> Result {
        let (channel, generation) = try channel()
        do {
            let token = try await token(channel, refused: nil)
            do {
                return try await body(channel, Self.metadata(token), options)
            } catch let error as RPCError where token != nil && Self.isRefusedToken(error) {
                return try await body(channel, Self.metadata(try await self.token(channel, refused: token)), options)
            }
        } catch let error as RPCError {
            if Task.isCancelled { throw CancellationError() }
            if [.unavailable, .deadlineExceeded, .cancelled, .aborted].contains(error.code) { renew(generation) }
            throw error
        }
    }

    private static func metadata(_ token: String?) -> Metadata {
        // Without a leader a member cuts a watch off rather than let it be silent.
        var metadata: Metadata = ["hasleader": "true"]
        if let token { metadata.addString(token, forKey: "token") }
        return metadata
    }

    private static func isRefusedToken(_ error: RPCError) -> Bool {
        error.code == .unauthenticated
            || ["invalid auth token", "auth store is old", "user name is empty"].contains { error.message.contains($0) }
    }

    private func token(_ channel: Channel, refused: String?) async throws -> String? {
        guard let user = access.user else { return nil }
        if let token = state.withLock(\.token), token != refused { return token }
        var request = Etcdserverpb_AuthenticateRequest()
        request.name = user
        request.password = access.password ?? ""
        var options = CallOptions.defaults
        options.timeout = Self.timeOut
        let answer = try await Etcdserverpb_Auth.Client(wrapping: channel).authenticate(request, options: options)
        state.withLock { $0.token = answer.token }
        return answer.token
    }
}
