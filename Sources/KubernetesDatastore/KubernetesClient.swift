// SPDX-License-Identifier: Apache-2.0

internal import AsyncHTTPClient
internal import Foundation
internal import Logging
internal import NIOCore
internal import NIOHTTP1
internal import NIOPosix
internal import Synchronization

/// What an API server answers that is not what was asked for.
struct KubernetesError: Error, CustomStringConvertible {
    /// `list`, `watch`, `get`, `create`, `patch`, `delete`: as RBAC names them.
    var verb: String
    /// `nodes`, `nodes/status`.
    var target: String
    /// HTTP status.
    var code: Int
    /// Of the Status object (`Forbidden`, `Expired`, `Conflict`).
    var reason: String
    var message: String
    /// As the server asks.
    var retryAfter: Duration = .zero

    var description: String {
        "may not or cannot \(verb) \(target): \(code) \(reason)\(message.isEmpty ? "" : ", \(message)")"
    }
}

/// Requests to an API server, over one connection as far as the server speaks HTTP/2.
final class KubernetesClient: Sendable {
    let access: KubernetesAccess
    private let credentials: Credentials
    private let limiter = RateLimiter()
    private let logger: Logger
    private let timeOuts: TimeOuts
    private let current: Mutex<Current>

    struct TimeOuts: Sendable {
        var connect = Duration.seconds(10)
        /// Of a request that is answered at once.
        var request = Duration.seconds(30)
        /// Silence after which a connection is taken for dead: a watch gets a bookmark each minute.
        var idle = Duration.seconds(90)
    }

    private struct Current {
        var client: HTTPClient?
        var certificate: [UInt8]?
        var authorities: [UInt8]?
        /// Counts clients.
        var generation = 0
        var isClosed = false
    }

    init(_ access: KubernetesAccess, timeOuts: TimeOuts = TimeOuts(), logger: Logger) {
        self.access = access
        self.timeOuts = timeOuts
        self.logger = logger
        credentials = Credentials(access.identity)
        current = Mutex(Current())
    }

    // MARK: Connections

    private func client(_ credential: Credential) throws -> HTTPClient {
        var old: HTTPClient?
        defer { Self.end(old) }
        let authorities = try access.authorities?.bytes()
        return try current.withLock { state in
            guard !state.isClosed else { throw AccessError("the connection is closed", remedy: "open it again") }
            if let client = state.client, state.certificate == credential.chain, state.authorities == authorities {
                return client
            }
            var pair: (chain: [UInt8], key: [UInt8])?
            if let chain = credential.chain, let key = credential.key { pair = (chain, key) }
            var configuration = HTTPClient.Configuration(
                tlsConfiguration: try access.tlsConfiguration(pair),
                timeout: .init(
                    connect: .nanoseconds(timeOuts.connect.nanoseconds), read: .nanoseconds(timeOuts.idle.nanoseconds)))
            configuration.httpVersion = .automatic
            let client = HTTPClient(
                eventLoopGroup: MultiThreadedEventLoopGroup.singleton, configuration: configuration)
            old = state.client
            state.client = client
            state.certificate = credential.chain
            state.authorities = authorities
            state.generation += 1
            return client
        }
    }

    /// Which client requests go by now.
    var generation: Int { current.withLock(\.generation) }

    /// The next request makes a connection anew, unless that was done since: this one is silent, and requests would
    /// follow each other into it.
    func renew(_ generation: Int) {
        Self.end(
            current.withLock { state in
                guard generation == 0 || state.generation == generation else { return nil }
                defer { state.client = nil }
                return state.client
            })
    }

    private static func end(_ client: HTTPClient?) {
        guard let client else { return }
        // Waits for nobody: requests of a connection that is given up fail.
        client.shutdown(queue: .global()) { _ in }
    }

    func close() async {
        let client = current.withLock { state in
            defer { (state.client, state.isClosed) = (nil, true) }
            return state.client
        }
        try? await client?.shutdown()
    }

    // MARK: Requests

    struct Request: Sendable {
        var verb: String
        var target: String
        var method: HTTPMethod = .GET
        /// `/api/v1/nodes`.
        var path: String
        var query: [(name: String, value: String)] = []
        var body: [UInt8]?
        var contentType = "application/json"
    }

    /// The whole answer. Throws `KubernetesError` when it is none of 200 to 299.
    func send(_ request: Request) async throws -> [UInt8] {
        try await limiter.wait()
        return try await withRetryOfRefusal(request) { response in
            let body = try await response.body.collect(upTo: 256 << 20)
            return Array(body.readableBytesView)
        }
    }

    /// The answer line by line, for as long as it goes on; each line is handed on before the next is read. Returns when
    /// the server has ended it.
    func stream(_ request: Request, seconds: Int, _ line: (ArraySlice<UInt8>) async throws -> Void) async throws {
        try await limiter.wait()
        try await withRetryOfRefusal(request, deadline: .seconds(seconds + 60)) { response in
            var rest: [UInt8] = []
            for try await buffer in response.body {
                rest.append(contentsOf: buffer.readableBytesView)
                var start = 0
                while let end = rest[start...].firstIndex(of: 0x0a) {
                    if end > start { try await line(rest[start..<end]) }
                    start = end + 1
                }
                if start > 0 { rest.removeFirst(start) }
                guard rest.count < Self.maximumLine else {
                    throw KubernetesError(
                        verb: request.verb, target: request.target, code: 200, reason: "TooLarge",
                        message: "an object of more than \(Self.maximumLine) bytes")
                }
            }
        }
    }

    private static let maximumLine = 16 << 20

    private func withRetryOfRefusal<Result>(
        _ request: Request, deadline: Duration? = nil,
        _ read: (HTTPClientResponse) async throws -> Result
    ) async throws -> Result {
        let credential = try await credentials.credential()
        do {
            return try await once(request, credential, deadline, read)
        } catch let error as KubernetesError where error.code == 401 {
            // A token that was replaced meanwhile.
            let other = try await credentials.credential(refused: credential)
            guard other != credential else { throw error }
            return try await once(request, other, deadline, read)
        }
    }

    private func once<Result>(
        _ request: Request, _ credential: Credential, _ deadline: Duration?,
        _ read: (HTTPClientResponse) async throws -> Result
    ) async throws -> Result {
        var components = URLComponents()
        components.path = request.path
        components.queryItems =
            request.query.isEmpty ? nil : request.query.map { URLQueryItem(name: $0.name, value: $0.value) }
        var message = HTTPClientRequest(
            url: access.server + (components.string ?? request.path).replacing("+", with: "%2B"))
        message.method = request.method
        message.headers.add(name: "accept", value: "application/json")
        message.headers.add(name: "user-agent", value: "wgplane")
        if let token = credential.token { message.headers.add(name: "authorization", value: "Bearer \(token)") }
        if let body = request.body {
            message.headers.add(name: "content-type", value: request.contentType)
            message.body = .bytes(body)
        }
        let response = try await client(credential).execute(
            message, timeout: .nanoseconds((deadline ?? timeOuts.request).nanoseconds), logger: nil)
        guard (200..<300).contains(response.status.code) else {
            throw await Self.error(request, response)
        }
        return try await read(response)
    }

    private struct Status: Decodable {
        var message: String?
        var reason: String?
    }

    private static func error(_ request: Request, _ response: HTTPClientResponse) async -> KubernetesError {
        let body = try? await response.body.collect(upTo: 1 << 20)
        let status = body.flatMap {
            try? JSONDecoder().decode(Status.self, from: Data($0.readableBytesView))
        }
        var error = KubernetesError(
            verb: request.verb, target: request.target, code: Int(response.status.code),
            reason: status?.reason ?? response.status.reasonPhrase, message: status?.message ?? "")
        if let seconds = response.headers.first(name: "retry-after").flatMap({ Int($0) }) {
            error.retryAfter = .seconds(min(seconds, 300))
        }
        return error
    }
}

/// Twenty requests a second, forty at once.
actor RateLimiter {
    private var tokens = 40.0
    private var last = ContinuousClock.now
    private static let perSecond = 20.0
    private static let burst = 40.0

    func wait() async throws {
        let now = ContinuousClock.now
        tokens = min(Self.burst, tokens + (now - last).seconds * Self.perSecond)
        last = now
        tokens -= 1
        if tokens < 0 { try await Task.sleep(for: .seconds(-tokens / Self.perSecond)) }
    }
}

extension Duration {
    var seconds: Double { Double(components.seconds) + Double(components.attoseconds) / 1e18 }
    var nanoseconds: Int64 { components.seconds * 1_000_000_000 + components.attoseconds / 1_000_000_000 }
}
