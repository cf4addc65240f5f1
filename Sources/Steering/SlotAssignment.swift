// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps

/// Which peer has which destination slot. Survives the agent by the map `peers`.
struct SlotAssignment: Sendable {
    private var owners: [Int: SlotOwner] = [:]
    private var slots: [PeerSlotKey: Int] = [:]
    private var count = DestinationSlot.count
    private var nextFree = DestinationSlot.firstPeer

    init() {}

    init(_ owners: [Int: SlotOwner], count: Int) {
        self.owners = owners
        self.count = count
        for (slot, owner) in owners { slots[PeerSlotKey(node: owner.node, family: owner.family)] = slot }
    }

    subscript(key: PeerSlotKey) -> Int? { slots[key] }

    /// Whether each peer has the slot that it has there.
    func agrees(with other: SlotAssignment) -> Bool { slots == other.slots }

    func owner(_ slot: Int) -> SlotOwner? { owners[slot] }

    mutating func setOwner(_ slot: Int, _ owner: SlotOwner) { owners[slot] = owner }

    /// Those of peers that are not among these.
    func others(than peers: [PeerSlotKey: PeerSteering]) -> [(key: PeerSlotKey, slot: Int)] {
        slots.filter { peers[$0.key] == nil }.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }

    /// The key's slot, or the next that nobody has: one just freed comes last, so that
    /// flows of its former owner have long looked up anew.
    mutating func assign(_ key: PeerSlotKey) -> Int? {
        if let slot = slots[key] { return slot }
        for _ in DestinationSlot.firstPeer..<count {
            let slot = nextFree
            nextFree = nextFree + 1 < count ? nextFree + 1 : DestinationSlot.firstPeer
            if owners[slot] == nil {
                slots[key] = slot
                return slot
            }
        }
        return nil
    }

    mutating func release(_ key: PeerSlotKey) {
        if let slot = slots.removeValue(forKey: key) { owners[slot] = nil }
    }
}
