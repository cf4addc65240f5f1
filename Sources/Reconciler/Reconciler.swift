// SPDX-License-Identifier: Apache-2.0

/// Keeps a table of objects as it should be: finds what differs, applies it, and
/// tries again what failed, each object with its own back-off.
///
/// Operations must be idempotent: to delete what is not there is no error.
public struct Reconciler<Key: Hashable & Comparable & Sendable, Value: Equatable & Sendable>: Sendable {
    /// What is known to be in place.
    public private(set) var applied: [Key: Value] = [:]
    private var failures: [Key: Failure] = [:]
    private let clock: @Sendable () -> ContinuousClock.Instant

    private struct Failure: Sendable {
        var attempts: Int
        var retryAt: ContinuousClock.Instant
        var message: String
    }

    public init(clock: @escaping @Sendable () -> ContinuousClock.Instant = { .now }) {
        self.clock = clock
    }

    /// Takes what a look at the real table has found as what is in place.
    public mutating func adopt(_ actual: [Key: Value]) { applied = actual }

    /// Takes what a look at the real table has found to differ from what is in place; nil: it is not there.
    public mutating func adopt(changes: [Key: Value?]) {
        for (key, value) in changes { applied[key] = value }
    }

    /// Makes or changes what differs from `desired`; returns the keys that changed.
    @discardableResult
    public mutating func update(
        to desired: [Key: Value], _ operation: (Key, Value) throws -> Void
    ) -> [Key] {
        // What has come to be as it should be without us needs no other try.
        for key in failures.keys where desired[key] != nil && applied[key] == desired[key] { failures[key] = nil }
        var changed: [Key] = []
        for (key, value) in desired.filter({ applied[$0.key] != $0.value }).sorted(by: { $0.key < $1.key }) {
            guard isDue(key) else { continue }
            do {
                try operation(key, value)
                applied[key] = value
                failures[key] = nil
                changed.append(key)
            } catch {
                fail(key, error)
            }
        }
        return changed
    }

    /// The same where many can be set in one step: `atOnce` is tried with all that differ, where they are at least
    /// `least`; where it throws, they are set one by one.
    public mutating func update(
        to desired: [Key: Value], least: Int, atOnce: ([(key: Key, value: Value)]) throws -> Void,
        _ operation: (Key, Value) throws -> Void
    ) {
        let changed = desired.filter { applied[$0.key] != $0.value && isDue($0.key) }
        if changed.count >= least {
            do {
                try atOnce(changed.map { ($0.key, $0.value) })
                for (key, value) in changed {
                    applied[key] = value
                    failures[key] = nil
                }
                return
            } catch {
                // Which one it was, each tells for itself.
            }
        }
        update(to: desired, operation)
    }

    /// Deletes what `desired` has not; returns the keys that went. Call it only when
    /// every source of `desired` has told its first complete list.
    @discardableResult
    public mutating func prune(
        to desired: [Key: Value], _ operation: (Key) throws -> Void
    ) -> [Key] {
        let gone = remove(applied.keys.filter { desired[$0] == nil }, operation)
        for key in failures.keys where desired[key] == nil && applied[key] == nil { failures[key] = nil }
        return gone
    }

    /// Deletes these; returns the keys that went. What is not in place is forgotten.
    @discardableResult
    public mutating func remove(_ keys: some Sequence<Key>, _ operation: (Key) throws -> Void) -> [Key] {
        var gone: [Key] = []
        for key in keys.sorted() {
            guard applied[key] != nil else {
                failures[key] = nil
                continue
            }
            guard isDue(key) else { continue }
            do {
                try operation(key)
                applied[key] = nil
                failures[key] = nil
                gone.append(key)
            } catch {
                fail(key, error)
            }
        }
        return gone
    }

    /// Forgets that these have failed, of those that are not in place.
    public mutating func forgetFailures(_ keys: some Sequence<Key>) {
        for key in keys where applied[key] == nil { failures[key] = nil }
    }

    /// What failed last, by key.
    public var errors: [Key: String] { failures.mapValues(\.message) }

    /// When the next failed object is due; nil: none failed.
    public var nextRetry: ContinuousClock.Instant? { failures.values.map(\.retryAt).min() }

    private func isDue(_ key: Key) -> Bool {
        guard let failure = failures[key] else { return true }
        return failure.retryAt <= clock()
    }

    /// 100 ms, doubled with each attempt, up to a minute.
    private mutating func fail(_ key: Key, _ error: any Error) {
        let attempts = (failures[key]?.attempts ?? 0) + 1
        let delay = min(Duration.seconds(60), .milliseconds(100) * (1 << min(attempts - 1, 10)))
        failures[key] = Failure(attempts: attempts, retryAt: clock() + delay, message: "\(error)")
    }
}
