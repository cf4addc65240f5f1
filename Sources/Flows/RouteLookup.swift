// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
public import Model

/// Longest prefixes by address: a copy of the maps of routes, for who asks often.
public struct RouteLookup: Sendable {
    private let slots: [CIDR: Int]
    /// The lengths that there are, longest first.
    private let lengths: [AddressFamily: [Int]]

    public init(_ slots: [CIDR: Int]) {
        self.slots = slots
        var found: [AddressFamily: Set<Int>] = [:]
        for cidr in slots.keys { found[cidr.family, default: []].insert(cidr.prefixLength) }
        lengths = found.mapValues { $0.sorted(by: >) }
    }

    /// The longest prefix that has an address, and its slot; nil: outside all.
    public func route(to address: IPAddress) -> (prefix: CIDR, slot: Int)? {
        for length in lengths[address.family] ?? [] {
            if let prefix = CIDR(masking: address, prefixLength: length), let slot = slots[prefix] {
                return (prefix, slot)
            }
        }
        return nil
    }

    public func slot(of address: IPAddress) -> Int { route(to: address)?.slot ?? DestinationSlot.outside }
}
