// SPDX-License-Identifier: Apache-2.0

internal import Foundation
public import Flows

/// What a dashboard tells of: a node, or a cluster of them.
public protocol DashboardSource: Sendable {
    /// Title of its page.
    var title: String { get }

    func state() async throws -> DashboardState

    /// Metrics as text. `node`: of that one; nil: of the only one. Nil when there is no such node.
    func metrics(_ format: MetricText, node: String?) async throws -> String?
}

/// The state for all who look: made at most once a second, and by nobody while nobody looks.
actor StateFeed {
    private let source: any DashboardSource
    private var last: (text: String, at: ContinuousClock.Instant)?
    private var pending: Task<String, any Error>?

    static let lifetime = Duration.milliseconds(900)

    init(_ source: any DashboardSource) { self.source = source }

    /// As JSON, keys sorted.
    func latest() async throws -> String {
        if let last, ContinuousClock.now - last.at < Self.lifetime { return last.text }
        if let pending { return try await pending.value }
        let task = Task { [source] in
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
            return String(decoding: try encoder.encode(try await source.state()), as: UTF8.self)
        }
        pending = task
        defer { pending = nil }
        let text = try await task.value
        last = (text, .now)
        return text
    }
}
