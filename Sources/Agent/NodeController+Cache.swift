// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import DesiredState
internal import Foundation
internal import Logging
internal import Model

/// What is known of the cluster, over a restart while the datastore is away.
extension NodeController {
    /// Reads what an earlier agent has known, before the datastore is followed.
    func remember() {
        rememberKeyOwners()
        guard let content = cache.read() else { return }
        remember(content.resources, podScope: content.head.podScope)
        remembered = content.head
        keptCounts = content.resources.keys.reduce(into: [:]) { $0[$1.kind, default: 0] += 1 }
    }

    /// Works on it, where the datastore has not told all yet.
    func recall() {
        guard recallInventory(), let remembered else { return }
        recalledFrom = remembered.written
        feed.podScope = remembered.podScope
        logger.warning(
            "the datastore is away; what was known is used", metadata: ["seconds old": "\(age(remembered.written))"])
    }

    private func age(_ written: Int64) -> Int64 { max(0, Int64(Date().timeIntervalSince1970) - written) }

    /// Says what is known from memory only.
    func staleProblems() -> [Problem] {
        guard let recalledFrom else { return [] }
        guard !inventory.stale.isEmpty else {
            self.recalledFrom = nil
            return []
        }
        let time = Date(timeIntervalSince1970: TimeInterval(recalledFrom)).formatted(.iso8601)
        return [
            Problem(
                .warning, resource: datastore.location, field: "state", value: "stale",
                message: "has not answered since the agent's start; what was known at \(time) is in force",
                remedy: "make the datastore reachable; the agent goes on by itself")
        ]
    }

    /// Keeps what is known, while it is in use: what is new when it is time, or now.
    func keepCache(isDue: Bool = false) async {
        // What is off needs no memory, and must not come on by it.
        guard !families.isEmpty else {
            guard hasAdopted else { return }
            keptCounts = [:]
            return await cache.forget()
        }
        guard inventory.isComplete, let podScope = inventory.podScope else { return }
        let counts = Dictionary(
            uniqueKeysWithValues: ResourceKind.allCases.map { ($0, inventory.cluster.count(of: $0)) })
        let isKept = await cache.keep(
            inventory.cluster, podScope: podScope, version: inventory.version + inventory.podVersion, isDue: isDue)
        // What could not be kept though it was due is tried again with what comes next, in its time.
        if isKept || isDue { keptCounts = counts }
    }

    /// Whether a kind has lost half of what the memory on disk has: then it is due. Held against that memory, the first
    /// list of an agent that starts would look like one of a datastore that has lost its disk.
    var hasOutlivedCache: Bool {
        !families.isEmpty && inventory.isComplete && keptCounts.contains { inventory.hasLostHalf(of: $1, $0) }
    }
}
