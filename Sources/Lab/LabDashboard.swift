// SPDX-License-Identifier: Apache-2.0

internal import AsyncHTTPClient
public import Dashboard
public import Flows
internal import Foundation
public import Logging
internal import Model
internal import NIOCore
internal import NIOHTTP1
public import ServiceLifecycle

/// One page for a whole lab: what its agents' own dashboards tell, put together.
public struct LabDashboard: DashboardSource, Service {
    public let title: String
    private let nodes: [(name: String, socket: String)]
    private let listener: DashboardListener
    private let logger: Logger
    private let ready: @Sendable () -> Void

    /// `ready` is called once it listens.
    public init(
        _ lab: Lab, listener: DashboardListener, logger: Logger, ready: @escaping @Sendable () -> Void = {}
    ) {
        title = "lab \(lab.spec.name)"
        nodes = lab.nodeNames().map { ($0, "\(lab.paths.runDirectory($0))/http.sock") }
        self.listener = listener
        self.logger = logger
        self.ready = ready
    }

    public func run() async throws {
        let server = DashboardServer(self, logger: logger)
        try await server.run(listener, isReady: { ready() })
    }

    public func state() async throws -> DashboardState {
        let states = await withTaskGroup(of: (Int, DashboardState).self) { group in
            for (index, node) in nodes.enumerated() {
                group.addTask { (index, await Self.state(node.name, node.socket)) }
            }
            return await group.reduce(into: [(Int, DashboardState)]()) { $0.append($1) }.sorted { $0.0 < $1.0 }
        }
        return .cluster(title, time: Date().timeIntervalSince1970, states.map(\.1))
    }

    public func metrics(_ format: MetricText, node: String?) async throws -> String? {
        guard let node = nodes.first(where: { $0.name == node }) else { return nil }
        return String(buffer: try await Self.get(node.socket, "/metrics", accept: format.contentType))
    }

    /// A node whose agent does not answer is there all the same.
    private static func state(_ name: String, _ socket: String) async -> DashboardState {
        do {
            let bytes = try await get(socket, "/api/v1/state", accept: "application/json")
            return try JSONDecoder().decode(DashboardState.self, from: Data(bytes.readableBytesView))
        } catch {
            var node = DashboardState.Node(name: name, mode: "unknown")
            node.agentRunning = false
            node.problems = [.init(severity: "error", text: "its agent does not answer (\(error))")]
            return DashboardState(title: name, time: Date().timeIntervalSince1970, nodes: [node])
        }
    }

    private static func get(_ socket: String, _ path: String, accept: String) async throws -> ByteBuffer {
        let place = socket.addingPercentEncoding(withAllowedCharacters: .alphanumerics) ?? ""
        var request = HTTPClientRequest(url: "http+unix://\(place)\(path)")
        request.headers.add(name: "Accept", value: accept)
        let response = try await HTTPClient.shared.execute(request, timeout: .seconds(5))
        return try await response.body.collect(upTo: 16 << 20)
    }
}
