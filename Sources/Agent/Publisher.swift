// SPDX-License-Identifier: Apache-2.0

internal import AsyncAlgorithms
internal import Datastore
internal import DesiredState
internal import Logging
internal import Model
internal import Synchronization

/// Writes to the datastore what the controller wants said there, beside its passes: a datastore that takes its time
/// holds up nothing else. Only the latest wish counts; one that fails is tried again.
final class Publisher: Sendable {
    struct Wish: Sendable, Equatable {
        /// Of the Node; nil removes one.
        var annotations: [String: String?] = [:]
        var condition: NodeCondition?
        /// The node's own resource, as it was told.
        var node: Manifest?
        /// Families whose devices need an address, with the blocks that one may be taken from.
        var lacking: [AddressFamily: [String]] = [:]
        /// Blocks that hold an address that is to be given back, by family.
        var releases: [AddressFamily: [String]] = [:]
    }

    private struct State {
        var wish: Wish?
        var addresses: [AddressFamily: IPAddress] = [:]
        var problems: [Problem] = []
    }

    private let publication: Publication
    private let state = Mutex(State())
    private let signals: AsyncStream<Void>
    private let signal: AsyncStream<Void>.Continuation

    init(_ publication: Publication) {
        self.publication = publication
        (signals, signal) = AsyncStream.makeStream(bufferingPolicy: .bufferingNewest(1))
    }

    func wish(_ wish: Wish) {
        let isNew = state.withLock { state in
            defer { state.wish = wish }
            // One that nobody waits for any more must not be had later, when it may be another's.
            state.addresses = state.addresses.filter { wish.lacking[$0.key] != nil }
            return state.wish != wish
        }
        if isNew { signal.yield() }
    }

    /// What failed last.
    var problems: [Problem] { state.withLock(\.problems) }

    /// An address that was taken for a family's device; once.
    func takeAddress(_ family: AddressFamily) -> IPAddress? {
        state.withLock { $0.addresses.removeValue(forKey: family) }
    }

    /// Until it is cancelled. `changed`: there is something new for the controller.
    func run(_ changed: @escaping @Sendable () async -> Void) async {
        let retries = AsyncTimerSequence(interval: .seconds(1), clock: .continuous).map { _ in }
        var fulfilled: Wish?
        var backoff = Backoff(first: .seconds(1), limit: .seconds(10))
        var notBefore = ContinuousClock.now
        var failed: Wish?
        for await _ in merge(signals, retries) {
            guard let wish = state.withLock({ $0.wish }) else { continue }
            if wish == fulfilled {
                // What failed since was another wish, and nobody's any more.
                if clearProblems() { await changed() }
                continue
            }
            if wish == failed, ContinuousClock.now < notBefore { continue }
            let (addresses, error) = await publication.fulfil(wish, mayRelease: isReleased)
            let problems = error.map { [NodeController.problem(of: $0)] } ?? []
            if error == nil {
                (fulfilled, failed) = (wish, nil)
                backoff.succeeded()
            } else {
                failed = wish
                notBefore = .now + backoff.next()
            }
            let isNews = state.withLock { state in
                defer { state.problems = problems }
                state.addresses.merge(addresses) { $1 }
                return !addresses.isEmpty || state.problems != problems
            }
            if isNews { await changed() }
        }
    }

    /// Whether the latest wish gives a block's address back.
    private func isReleased(_ family: AddressFamily, _ block: String) -> Bool {
        state.withLock { $0.wish?.releases[family]?.contains(block) == true }
    }

    /// Whether there were any.
    private func clearProblems() -> Bool {
        state.withLock { state in
            defer { state.problems = [] }
            return !state.problems.isEmpty
        }
    }
}

extension Publication {
    /// Returns the addresses that were taken, and what failed last. `mayRelease`: it is wished at that moment.
    func fulfil(
        _ wish: Publisher.Wish, mayRelease: (AddressFamily, String) -> Bool
    ) async -> (addresses: [AddressFamily: IPAddress], failure: (any Error)?) {
        var addresses: [AddressFamily: IPAddress] = [:]
        var failure: (any Error)?
        for (family, blocks) in wish.lacking.sorted(by: { $0.key < $1.key }) {
            do {
                addresses[family] = try await allocate(family, blocks)
            } catch {
                failure = error
            }
        }
        do {
            try await write(wish.annotations, wish.condition, wish.node)
            for (family, blocks) in wish.releases.sorted(by: { $0.key < $1.key }) {
                // Since then the address may be in use again.
                for block in blocks where mayRelease(family, block) { try await release(family, block) }
            }
        } catch {
            failure = error
        }
        return (addresses, failure)
    }

    /// An address of one of the node's blocks.
    private func allocate(_ family: AddressFamily, _ blocks: [String]) async throws -> IPAddress {
        let node = node
        for block in blocks {
            let updated = try await datastore.update(ResourceKey(.ipamBlock, block)) { current in
                guard let current, AddressAllocation.find(in: current, node: node, family: family) == nil else {
                    return current
                }
                return AddressAllocation.allocate(in: current, node: node, family: family)?.block ?? current
            }
            if let updated, let address = AddressAllocation.find(in: updated, node: node, family: family) {
                logger.info("address is taken", metadata: ["address": "\(address)", "block": "\(block)"])
                return address
            }
        }
        throw ProblemsError(
            Problem(
                resource: "Node/\(node)", field: "IPAMBlock",
                message: "has no block with a free \(family) address for its WireGuard device",
                remedy: "give the node a block with a free address"))
    }
}
