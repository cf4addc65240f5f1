// SPDX-License-Identifier: Apache-2.0

internal import Model

/// How long to wait before the next try: doubled with each failure, with jitter, so that a cluster's agents do not
/// come back all at once.
public struct Backoff: Sendable {
    private let first: Duration
    private let limit: Duration
    private var failures = 0

    public init(first: Duration = .milliseconds(100), limit: Duration = .seconds(30)) {
        self.first = first
        self.limit = limit
    }

    public mutating func succeeded() { failures = 0 }

    /// The wait after one more failure: between half of it and the whole.
    public mutating func next(atLeast: Duration = .zero) -> Duration {
        let whole = min(limit, first * (1 << min(failures, 16)))
        failures += 1
        return max(atLeast, whole * Double.random(in: 0.5...1))
    }
}

/// Whether each part of a datastore that is followed answers; together they are what a feed is told.
public actor Health {
    private let feed: ChangeFeed
    private var failures: [String: String] = [:]

    public init(_ feed: ChangeFeed) { self.feed = feed }

    /// `part` answers.
    public func succeeded(_ part: String) {
        failures[part] = nil
        tell()
    }

    public func failed(_ part: String, _ reason: String) {
        failures[part] = reason
        tell()
    }

    private func tell() {
        let first = failures.min { $0.key < $1.key }
        feed.note(first.map { .unavailable($0.value) } ?? .available)
    }
}
