// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import DesiredState
internal import Model
internal import WireGuard

/// What the node should have, and what that depends on.
extension NodeController {
    /// All that a plan depends on and that changes.
    struct Ingredients: Equatable {
        var version: Int
        /// Of which nodes have pods' addresses.
        var nodesVersion: Int?
        var ownKeys: [AddressFamily: PublicKey]
        var keyOwners: [PublicKey: String]
        var keyPins: KeyPins
        var inForce: Settings?
    }

    func makePlan() -> NodePlan {
        inventory.refreshWorkloads()
        var ingredients = Ingredients(
            version: inventory.version, nodesVersion: inventory.workloads?.nodesVersion,
            ownKeys: families.compactMapValues { $0.device?.publicKey },
            keyOwners: keyOwners, keyPins: keyPins.current(), inForce: inForce)
        if let lastPlan, lastPlan.ingredients == ingredients { return lastPlan.plan }
        let plan = NodePlan(
            inventory.cluster, node: options.node, ownKeys: ingredients.ownKeys,
            keyOwners: keyOwners, keyPins: ingredients.keyPins, overrides: options.overrides, inForce: inForce,
            workloads: inventory.workloads)
        let followsWorkloads = plan.routeSource == .workloadIPs
        if followsWorkloads != (inventory.workloads != nil) {
            inventory.followWorkloads(followsWorkloads)
            return makePlan()
        }
        inForce = plan.settings
        keyOwners = plan.keyOwners
        keyPins.keep(plan.keyPins)
        // With what it has taught: the same again makes the same plan.
        (ingredients.inForce, ingredients.keyOwners) = (inForce, keyOwners)
        ingredients.keyPins = plan.keyPins
        lastPlan = (ingredients, plan)
        return plan
    }

    /// Who had each key first, which one each node had last, and which settings were in force, is known from an earlier
    /// agent's maps and its last report.
    func rememberKeyOwners() {
        guard !hasRemembered else { return }
        hasRemembered = true
        earlier = try? StatusReport.read(runDirectory: options.runDirectory)
        if let settings = earlier?.settings { inForce = Settings(inForce: settings) }
        var lastKeys: [AddressFamily: [String: PublicKey]] = [:]
        // In the maps it is the key that carries traffic, which may be the one before the last.
        let owners = options.layout.exists ? try? NodeMaps(options.layout).destinations.slotOwners() : nil
        for owner in owners?.values.map({ $0 }) ?? [] {
            guard let key = owner.publicKey else { continue }
            keyOwners[key] = owner.node
            lastKeys[owner.family, default: [:]][owner.node] = key
        }
        for family in AddressFamily.allCases {
            for peer in earlier?[family]?.peers ?? [] {
                keyOwners[peer.publicKey] = keyOwners[peer.publicKey] ?? peer.node
                guard peer.state != PeerTable.Readiness.retiring.rawValue else { continue }
                lastKeys[family, default: [:]][peer.node] = peer.publicKey
            }
        }
        remember(lastKeys)
    }
}
