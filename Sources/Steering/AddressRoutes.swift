// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
public import Model
import Reconciler

/// Pods' addresses, where routes are made of them.
public struct WorkloadRoutes: Sendable {
    /// Whose own are local.
    public var node: String
    /// By address the pod whose node has it.
    public var owners: [IPAddress: SharedPod]
    /// Of others no route is known now.
    public var families: Set<AddressFamily>

    public init(node: String, owners: [IPAddress: SharedPod], families: Set<AddressFamily>) {
        self.node = node
        self.owners = owners
        self.families = families
    }

    /// Where an address leads that this pod has; nil: that is not known now.
    func target(_ address: IPAddress, _ owner: SharedPod) -> SteeringTarget? {
        guard families.contains(address.family) else { return nil }
        let name = owner.pod.node
        return name == node ? .local : .peer(PeerSlotKey(node: name, family: address.family))
    }
}

/// Routes of single addresses: a few of the plan, and pods' addresses, of which there may be a hundred thousand, so
/// that only those are looked at that have changed, unless all must be.
struct AddressRoutes: Sendable {
    private var routes = Reconciler<IPAddress, UInt32>()
    private var fixed: [IPAddress: UInt32] = [:]
    private var families: Set<AddressFamily> = []
    private var changed: Set<IPAddress> = []
    private var mustCompare = true
    private var looks = 0
    /// Whether they are gone is to be seen when all is known.
    private var postponed: Set<IPAddress> = []
    /// The plan's own are known.
    private(set) var isSet = false

    /// So many are written at once, and all flows look their routes up again.
    private static let many = 256

    /// Takes what is in the map, to begin with.
    mutating func adopt(_ actual: [IPAddress: UInt32]) { routes.adopt(actual) }

    /// Takes where the map differs from what was put there: that is looked at again, the rest is as it was wanted.
    /// Every tenth time what is wanted is looked at too, lest a change that nobody noted stays for good.
    mutating func adopt(changes: [IPAddress: UInt32?]) {
        looks += 1
        if looks % 10 == 0 { mustCompare = true }
        changed.formUnion(changes.keys)
        routes.adopt(changes: changes)
    }

    /// These may lead elsewhere now.
    mutating func note(_ addresses: some Sequence<IPAddress>) { changed.formUnion(addresses) }

    /// Slots are others': all may lead elsewhere now.
    mutating func noteSlots() { mustCompare = true }

    var applied: [IPAddress: UInt32] { routes.applied }
    var errors: [IPAddress: String] { routes.errors }
    var nextRetry: ContinuousClock.Instant? { routes.nextRetry }

    /// The plan's own are as they were.
    mutating func set(families new: Set<AddressFamily>) {
        if new != families { mustCompare = true }
        (families, isSet) = (new, true)
    }

    /// Sets the plan's own.
    mutating func set(fixed new: [IPAddress: UInt32], families newFamilies: Set<AddressFamily>) {
        for (address, slot) in new where fixed[address] != slot { changed.insert(address) }
        for address in fixed.keys where new[address] == nil { changed.insert(address) }
        if newFamilies != families { mustCompare = true }
        (fixed, families, isSet) = (new, newFamilies, true)
    }

    /// Makes the map what it should be. What is there of `preserved` families and has no target stays.
    mutating func apply(
        _ workloads: WorkloadRoutes?, _ slots: SlotAssignment, _ maps: NodeMaps, preserved: Set<AddressFamily>
    ) {
        func slot(_ address: IPAddress, _ owner: SharedPod?) -> UInt32? {
            if let slot = fixed[address] { return slot }
            switch owner.flatMap({ workloads?.target(address, $0) }) {
            case nil: return nil
            case .local: return UInt32(DestinationSlot.local)
            case .pool: return UInt32(DestinationSlot.pool)
            case .peer(let key): return UInt32(slots[key] ?? DestinationSlot.pool)
            }
        }
        let owners = workloads?.owners ?? [:]
        if mustCompare {
            for (address, owner) in owners where routes.applied[address] != slot(address, owner) {
                changed.insert(address)
            }
            for (address, slot) in fixed where routes.applied[address] != slot { changed.insert(address) }
            for address in routes.applied.keys where fixed[address] == nil && owners[address] == nil {
                changed.insert(address)
            }
        }
        mustCompare = false
        changed.formUnion(routes.errors.keys)
        changed.formUnion(postponed)
        postponed = []
        var wanted: [IPAddress: UInt32] = [:]
        var gone: [IPAddress] = []
        for address in changed {
            if let slot = slot(address, owners[address]) {
                wanted[address] = slot
            } else if preserved.contains(address.family) {
                if routes.applied[address] != nil { postponed.insert(address) }
            } else {
                gone.append(address)
            }
        }
        changed = []
        // One that was never there need not be tried again.
        routes.forgetFailures(routes.errors.keys.filter { wanted[$0] == nil })
        routes.update(to: wanted, least: Self.many, atOnce: { try maps.setRoutes($0) }) {
            try maps.setRoute(CIDR(host: $0), PlacedRoute(slot: Int($1), place: .address))
        }
        routes.remove(gone) { try maps.removeRoute(CIDR(host: $0)) }
    }
}

/// A change raises the generation of the slots that covered the prefix before and after it: their flows look up once
/// more, nobody else's.
extension NodeMaps {
    /// Of single addresses. Flows of all slots look up once more.
    func setRoutes(_ routes: [(key: IPAddress, value: UInt32)]) throws {
        // Of those that are set before one fails flows must look up once more, too.
        do {
            try self.routes.update(addresses: routes)
        } catch {
            try config.raiseGeneration()
            throw error
        }
        try config.raiseGeneration()
    }

    func setRoute(_ cidr: CIDR, _ route: PlacedRoute) throws {
        let before = try routes.slot(covering: cidr)
        try routes.update(cidr, slot: route.slot, place: route.place)
        destinations.raiseGeneration(before)
        if route.slot != before { destinations.raiseGeneration(route.slot) }
    }

    func removeRoute(_ cidr: CIDR) throws {
        let before = try routes.slot(covering: cidr)
        try routes.delete(cidr)
        let after = try routes.slot(covering: cidr)
        destinations.raiseGeneration(before)
        if after != before { destinations.raiseGeneration(after) }
    }
}
