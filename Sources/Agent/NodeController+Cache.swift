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
        guard let content = cache.read() else { return }
        remember(content.resources, podScope: content.head.podScope)
        remembered = content.head
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

    /// Keeps what is known, while it is in use.
    func keepCache(isLast: Bool = false) async {
        // What is off needs no memory, and must not come on by it.
        guard !families.isEmpty else { return await cache.forget() }
        guard inventory.isComplete, let podScope = inventory.podScope else { return }
        await cache.keep(
            inventory.cluster, podScope: podScope, version: inventory.version + inventory.podVersion, isLast: isLast)
    }
}
