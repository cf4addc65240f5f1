// SPDX-License-Identifier: Apache-2.0

import SystemDescriptors

/// How often is looked for what nobody tells of: each so many seconds, and less often where that takes long, on a node of
/// a large cluster: a fixed share of a processor at most, as far as the longest period allows.
struct Pace: Sendable {
    private let least: Duration
    private let longest: Duration
    /// A period is so many times as long as it takes to look.
    private let factor: Int
    /// Of the last times, in processor time of the whole process: what waits for a busy processor costs nothing.
    private var costs = [Duration.zero, .zero]
    private var last: ContinuousClock.Instant?

    init(_ least: Duration, factor: Int, longest: Duration) {
        self.least = least
        self.longest = max(least, longest)
        self.factor = factor
    }

    /// The first time, and others in which much was to be done, say nothing of what it takes to look.
    private var cost: Duration { costs.min() ?? .zero }
    var period: Duration { min(max(least, cost * factor), longest) }

    /// Whether a period has passed since `begin` was called last.
    var isDue: Bool { last.map { ContinuousClock.now - $0 >= period } ?? true }

    /// Returns what `end` wants.
    mutating func begin() -> UInt64 {
        last = .now
        return processorNanoseconds()
    }

    mutating func end(_ began: UInt64) { costs = [costs[1], .nanoseconds(processorNanoseconds() - began)] }
}
