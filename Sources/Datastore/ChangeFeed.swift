// SPDX-License-Identifier: Apache-2.0

public import Model
internal import Synchronization

/// Between a datastore that tells and an agent that works: changes wait, the latest of each resource, so that a slow
/// reader costs no memory and misses nothing.
public final class ChangeFeed: Sendable {
    /// Whose agent it is.
    public let node: String
    /// One element when there is something to take.
    public let signals: AsyncStream<Void>
    /// One element when other pods are wanted.
    public let scopeChanges: AsyncStream<Void>
    private let signal: AsyncStream<Void>.Continuation
    private let scopeSignal: AsyncStream<Void>.Continuation
    private let state: Mutex<State>

    private struct State {
        var waiting = ResourceChanges()
        var podScope: PodScope
    }

    public init(node: String, podScope: PodScope = .own) {
        self.node = node
        (signals, signal) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
        (scopeChanges, scopeSignal) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
        state = Mutex(State(podScope: podScope))
    }

    public func post(_ changes: ResourceChanges) {
        guard !changes.isEmpty else { return }
        state.withLock { $0.waiting.merge(changes) }
        signal.yield()
    }

    public func note(_ availability: ResourceChanges.Availability) {
        var changes = ResourceChanges()
        changes.availability = availability
        post(changes)
    }

    /// What has come since the last call.
    public func take() -> ResourceChanges {
        state.withLock { state in
            defer { state.waiting = ResourceChanges() }
            return state.waiting
        }
    }

    /// Runs `body` for the pods that are wanted, until it is cancelled: it is ended and run again when others are.
    public func withScope(_ body: @escaping @Sendable (PodScope) async -> Void) async {
        while !Task.isCancelled {
            let scope = podScope
            await withTaskGroup(of: Void.self) { group in
                group.addTask { await body(scope) }
                group.addTask { for await _ in self.scopeChanges where self.podScope != scope { return } }
                await group.next()
                group.cancelAll()
            }
        }
    }

    /// Which pods the reader wants to be told of. A datastore that cannot choose tells of all.
    public var podScope: PodScope {
        get { state.withLock(\.podScope) }
        set {
            let isNew = state.withLock { state in
                defer { state.podScope = newValue }
                return state.podScope != newValue
            }
            if isNew { scopeSignal.yield() }
        }
    }
}
