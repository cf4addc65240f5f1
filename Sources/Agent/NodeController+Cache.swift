// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import DesiredState
internal import Foundation
internal import Logging
internal import Model

/// What is known of the cluster, over a restart while the datastore is away.
extension NodeController {
    /// Works on what an earlier agent has known, where the datastore has told nothing yet.
    func recall() {
        guard !inventory.isReady, let content = cache.read() else { return }
        recall(content.resources, podScope: content.head.podScope)
        recalledFrom = content.head.written
        feed.podScope = content.head.podScope
        logger.warning(
            "the datastore is away; what was known is used",
            metadata: ["resources": "\(content.resources.count)", "seconds old": "\(age(content.head.written))"])
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
        guard inventory.isComplete, let podScope = inventory.podScope else { return }
        guard !families.isEmpty else { return await cache.forget() }
        await cache.keep(inventory.cluster, podScope: podScope, version: inventory.version, isLast: isLast)
    }
}
