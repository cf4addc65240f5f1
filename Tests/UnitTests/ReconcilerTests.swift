// SPDX-License-Identifier: Apache-2.0

import Reconciler
import Synchronization
import Testing

@Suite("Reconciler")
struct ReconcilerTests {
    struct Refused: Error {}

    /// A clock that tests move.
    final class Clock: Sendable {
        let instant = Mutex(ContinuousClock.now)
        func advance(_ duration: Duration) { instant.withLock { $0 += duration } }
        var now: ContinuousClock.Instant { instant.withLock { $0 } }
    }

    @Test("only what differs is touched, in a stable order")
    func differences() {
        var reconciler = Reconciler<String, Int>()
        reconciler.adopt(["a": 1, "b": 2, "z": 9])
        var updates: [String] = []
        let desired = ["a": 1, "b": 3, "c": 4]
        reconciler.update(to: desired) { key, value in updates.append("\(key)=\(value)") }
        var gone: [String] = []
        reconciler.prune(to: desired) { gone.append($0) }
        #expect(updates == ["b=3", "c=4"])
        #expect(gone == ["z"])
        #expect(reconciler.applied == desired)
        reconciler.update(to: desired) { _, _ in Issue.record("nothing differs") }
    }

    @Test("what fails is tried again, later each time, and harms nothing else")
    func backoff() {
        let clock = Clock()
        var reconciler = Reconciler<String, Int>(clock: { clock.now })
        var attempts = 0
        func pass() -> [String] {
            reconciler.update(to: ["bad": 1, "good": 2]) { key, _ in
                guard key == "bad" else { return }
                attempts += 1
                throw Refused()
            }
        }
        #expect(pass() == ["good"])
        #expect(reconciler.errors.keys.sorted() == ["bad"])
        #expect(pass() == [] && attempts == 1, "not before its time")
        var waits: [Duration] = []
        for _ in 0..<14 {
            let wait = (reconciler.nextRetry ?? clock.now) - clock.now
            waits.append(wait)
            clock.advance(wait)
            _ = pass()
        }
        #expect(waits.prefix(4) == [.milliseconds(100), .milliseconds(200), .milliseconds(400), .milliseconds(800)])
        #expect(waits.last == .seconds(60))
        clock.advance(.seconds(60))
        let healed = reconciler.update(to: ["bad": 1, "good": 2]) { _, _ in }
        #expect(healed == ["bad"] && reconciler.errors.isEmpty && reconciler.nextRetry == nil)
    }

    @Test("an object that has come to be as it should be takes its failure along")
    func changedBack() {
        struct Refused: Error {}
        var reconciler = Reconciler<String, Int>()
        reconciler.adopt(["a": 1])
        reconciler.update(to: ["a": 2]) { _, _ in throw Refused() }
        #expect(reconciler.errors.count == 1)
        reconciler.update(to: ["a": 1]) { _, _ in Issue.record("nothing is to be done") }
        #expect(reconciler.errors.isEmpty && reconciler.nextRetry == nil)
    }

    @Test("an object that is wanted no more takes its failure along")
    func forgotten() {
        var reconciler = Reconciler<String, Int>()
        reconciler.update(to: ["a": 1]) { _, _ in throw Refused() }
        reconciler.prune(to: [:]) { _ in Issue.record("it was never there") }
        #expect(reconciler.errors.isEmpty)
    }
}
