// SPDX-License-Identifier: Apache-2.0

public import Model
internal import OrderedCollections

/// The WireGuard device's address in Calico's IPAM: one address of a block that is
/// affine to the node, under the handle that Calico itself uses.
public enum AddressAllocation {
    /// `wireguard-tunnel-addr-<node>`, `wireguard-v6-tunnel-addr-<node>`.
    public static func handle(_ node: String, _ family: AddressFamily) -> String {
        family == .ipv4 ? "wireguard-tunnel-addr-\(node)" : "wireguard-v6-tunnel-addr-\(node)"
    }

    /// The address that a block gives to the node's device; nil: none.
    public static func find(in block: ManifestValue, node: String, family: AddressFamily) -> IPAddress? {
        guard let cidr = block[["spec", "cidr"]]?.stringValue.flatMap(CIDR.init), cidr.family == family,
            let (allocations, attributes) = lists(block)
        else { return nil }
        for (offset, value) in allocations.enumerated() {
            guard case .integer(let index) = value, attributes.indices.contains(Int(index)),
                attributes[Int(index)]["handle_id"]?.stringValue == handle(node, family)
            else { continue }
            return cidr.address(at: UInt64(offset))
        }
        return nil
    }

    /// A block with one more address given to the node's device; nil when it is full or malformed.
    public static func allocate(
        in block: ManifestValue, node: String, family: AddressFamily
    ) -> (block: ManifestValue, address: IPAddress)? {
        guard let cidr = block[["spec", "cidr"]]?.stringValue.flatMap(CIDR.init), cidr.family == family,
            var (allocations, attributes) = lists(block),
            let offset = allocations.firstIndex(of: .null), let address = cidr.address(at: UInt64(offset))
        else { return nil }
        attributes.append(
            .object([
                "handle_id": .string(handle(node, family)),
                "secondary": .object(["node": .string(node), "type": .string("wireguardTunnelAddress")]),
            ]))
        allocations[offset] = .integer(Int64(attributes.count - 1))
        return (store(allocations, attributes, in: block), address)
    }

    /// A block without the address of the node's device; nil when it has none.
    public static func release(in block: ManifestValue, node: String, family: AddressFamily) -> ManifestValue? {
        guard var (allocations, attributes) = lists(block),
            let index = attributes.firstIndex(where: { $0["handle_id"]?.stringValue == handle(node, family) })
        else { return nil }
        attributes.remove(at: index)
        allocations = allocations.map { value in
            guard case .integer(let number) = value else { return value }
            if number == Int64(index) { return .null }
            return .integer(number > Int64(index) ? number - 1 : number)
        }
        return store(allocations, attributes, in: block)
    }

    private static func lists(_ block: ManifestValue) -> ([ManifestValue], [ManifestValue])? {
        guard case .array(let allocations) = block[["spec", "allocations"]] else { return nil }
        guard case .array(let attributes) = block[["spec", "attributes"]] ?? .array([]) else { return nil }
        return (allocations, attributes)
    }

    private static func store(
        _ allocations: [ManifestValue], _ attributes: [ManifestValue], in block: ManifestValue
    ) -> ManifestValue {
        var result = block
        result[["spec", "allocations"]] = .array(allocations)
        result[["spec", "attributes"]] = .array(attributes)
        result[["spec", "unallocated"]] = .array(
            allocations.enumerated().filter { $0.element == .null }.map { .integer(Int64($0.offset)) })
        return result
    }
}
