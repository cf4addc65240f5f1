// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model

/// A destination slot as the programs see it.
public struct Destination: Sendable, Hashable, Codable {
    public var action: DestinationAction
    public var generation: UInt32
    /// Nil for the fixed slots.
    public var family: AddressFamily?
    /// Device indices of the WireGuard devices that carry it.
    public var lanes: [UInt32]
}

/// Who owns a destination slot.
public struct SlotOwner: Sendable, Hashable, Codable {
    public var node: String
    public var family: AddressFamily
    /// Nil: the node has no WireGuard.
    public var publicKey: PublicKey?

    public init(node: String, family: AddressFamily, publicKey: PublicKey? = nil) {
        self.node = node
        self.family = family
        self.publicKey = publicKey
    }
}

/// The array of destination slots, in memory shared with the programs, and the
/// names of their owners beside it.
///
/// One writer at a time: the agent's actor. A change of action or generation is one
/// atomic store, in force with the next packet.
public struct DestinationTable: Sendable {
    let map: BPFMap<UInt32, wgp_destination>
    let owners: BPFMap<UInt32, wgp_peer>
    private let mapping: BPFArrayMapping<wgp_destination>
    private let ownerMapping: BPFArrayMapping<wgp_peer>

    init(_ source: some MapSource) throws(BPFError) {
        map = try source.open("destinations")
        owners = try source.open("peers")
        mapping = try BPFArrayMapping(map)
        ownerMapping = try BPFArrayMapping(owners)
    }

    public var count: Int { mapping.count }

    public subscript(slot: Int) -> Destination {
        let value = mapping[slot]
        let lanes = unsafe withUnsafeBytes(of: value.lanes) { raw in
            (0..<min(Int(value.lane_count), Int(WGP_MAX_LANES))).map {
                unsafe raw.loadUnaligned(fromByteOffset: $0 * MemoryLayout<wgp_lane>.size, as: wgp_lane.self).ifindex
            }
        }
        return Destination(
            action: DestinationAction(rawValue: UInt8(truncatingIfNeeded: value.word)) ?? .drop,
            generation: UInt32(truncatingIfNeeded: value.word >> UInt64(WGP_WORD_ACTION_BITS)),
            family: AddressFamily(rawValue: value.family), lanes: lanes)
    }

    /// Changes a slot's action: in force with the next packet of all its flows.
    public func setAction(_ slot: Int, _ action: DestinationAction) {
        modify(slot) { word in word & ~UInt64(WGP_WORD_ACTION_MASK) | UInt64(action.rawValue) }
    }

    /// Makes every flow of this slot look up its route once more.
    public func raiseGeneration(_ slot: Int) {
        modify(slot) { word in
            let generation = UInt32(truncatingIfNeeded: word >> UInt64(WGP_WORD_ACTION_BITS)) &+ 1
            return UInt64(generation) << UInt64(WGP_WORD_ACTION_BITS) | word & UInt64(WGP_WORD_ACTION_MASK)
        }
    }

    /// Writes family and lanes, at least one; the action is set after it, by a store of its own.
    public func setLanes(_ slot: Int, family: AddressFamily, interfaces: [UInt32]) {
        precondition((1...Int(WGP_MAX_LANES)).contains(interfaces.count))
        var value = wgp_destination()
        value.family = family.rawValue
        value.lane_count = UInt8(interfaces.count)
        let current = mapping[slot]
        let header = [value.family, value.lane_count]
        var lanes: [UInt8] = []
        for interface in interfaces { lanes += memory(of: wgp_lane(ifindex: interface, pad: 0)) }
        lanes += [UInt8](repeating: 0, count: Int(WGP_MAX_LANES) * MemoryLayout<wgp_lane>.size - lanes.count)
        if memory(of: current.lanes) != lanes {
            BPFWork.note()
            for (index, interface) in interfaces.enumerated() {
                mapping.write(interface, to: slot, offset: 16 + index * MemoryLayout<wgp_lane>.size)
            }
            for index in interfaces.count..<Int(WGP_MAX_LANES) {
                mapping.write(UInt32(0), to: slot, offset: 16 + index * MemoryLayout<wgp_lane>.size)
            }
        }
        if [current.family, current.lane_count] != header {
            mapping.write(header[0], to: slot, offset: 8)
            mapping.write(header[1], to: slot, offset: 9)
        }
    }

    private func modify(_ slot: Int, _ change: (UInt64) -> UInt64) {
        unsafe mapping.withWord(of: slot, offset: 0) { pointer in
            let old = unsafe wgp_load_acquire(pointer)
            let new = change(old)
            guard new != old else { return }
            unsafe wgp_store_release(pointer, new)
            BPFWork.note()
        }
    }

    // MARK: Owners

    /// The owners of all slots that are taken.
    public func slotOwners() throws(BPFError) -> [Int: SlotOwner] {
        var result: [Int: SlotOwner] = [:]
        for slot in 0..<ownerMapping.count where !ownerMapping.isZero(wordOf: slot) {
            let value = ownerMapping[slot]
            let name = memory(of: value.node).prefix { $0 != 0 }
            guard !name.isEmpty, let family = AddressFamily(rawValue: value.family) else { continue }
            result[slot] = SlotOwner(
                node: String(decoding: name, as: UTF8.self), family: family,
                publicKey: PublicKey(bytes: memory(of: value.public_key)))
        }
        return result
    }

    public func setOwner(_ slot: Int, _ owner: SlotOwner?) throws(BPFError) {
        var raw = [UInt8](repeating: 0, count: MemoryLayout<wgp_peer>.size)
        if let owner {
            raw.replaceSubrange(
                0..<min(owner.node.utf8.count, Int(WGP_NODE_NAME_SIZE) - 1),
                with: owner.node.utf8.prefix(Int(WGP_NODE_NAME_SIZE) - 1))
            if let key = owner.publicKey {
                raw.replaceSubrange(Int(WGP_NODE_NAME_SIZE)..<Int(WGP_NODE_NAME_SIZE) + 32, with: key.bytes)
            }
            raw[Int(WGP_NODE_NAME_SIZE) + 32] = owner.family.rawValue
        }
        try owners.update(UInt32(slot), value(raw))
    }
}
