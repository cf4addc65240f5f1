// SPDX-License-Identifier: Apache-2.0

/// Calico's IPPool: a range that pods' addresses come from.
public struct IPPoolResource: Sendable, Hashable, Codable {
    public var name: String
    public var cidr: CIDR
    public var isDisabled: Bool

    /// Nil when there is no usable CIDR.
    public init?(_ manifest: Manifest, problems: inout [Problem]) {
        var reader = FieldReader(manifest.content, resource: manifest.key.description)
        let (cidr, disabled) = reader.object("spec") { spec in
            let cidr = spec.cidr("cidr")
            if cidr == nil, spec.value["cidr"] == nil {
                spec.report("cidr", "is missing", remedy: "give the pool a prefix like 10.48.0.0/16")
            }
            return (cidr, spec.bool("disabled") ?? false)
        }
        problems += reader.problems
        guard let cidr else { return nil }
        name = manifest.key.name
        self.cidr = cidr
        isDisabled = disabled
    }
}

/// Calico's IPAMBlock: a block of addresses and who holds each.
public struct IPAMBlockResource: Sendable, Hashable, Codable {
    public var name: String
    public var cidr: CIDR
    /// Node that the block is affine to; nil: to none.
    public var affinity: String?
    /// Addresses held by nodes other than the affine one ("borrowed"), by node.
    public var borrowed: [String: [IPAddress]]
    /// Addresses of WireGuard devices, by the handle that holds each.
    public var deviceAddresses: [String: IPAddress]

    /// Nil when there is no usable CIDR.
    public init?(_ manifest: Manifest, problems: inout [Problem]) {
        var reader = FieldReader(manifest.content, resource: manifest.key.description)
        var result: (cidr: CIDR, affinity: String?, borrowed: [String: [IPAddress]], devices: [String: IPAddress])?
        reader.object("spec") { spec in
            guard let cidr = spec.cidr("cidr") else {
                if spec.value["cidr"] == nil {
                    spec.report("cidr", "is missing", remedy: "give the block a prefix like 10.48.1.0/26")
                }
                return
            }
            let deleted = spec.bool("deleted") ?? false
            var affinity: String?
            if let text = spec.string("affinity"), !text.isEmpty {
                if text.hasPrefix("host:"), text.utf8.count > 5 {
                    affinity = String(text.dropFirst(5))
                } else {
                    spec.report("affinity", value: text, "names no node", remedy: "write it like host:node1")
                }
            }
            let owners: [(node: String?, handle: String?)] = spec.objects("attributes") { attribute in
                (attribute.object("secondary") { $0.string("node") }, attribute.string("handle_id"))
            }
            var borrowed: [String: [IPAddress]] = [:]
            var devices: [String: IPAddress] = [:]
            if case .array(let allocations)? = spec.field("allocations") {
                for (offset, value) in allocations.enumerated() {
                    guard case .integer(let index) = value else { continue }
                    guard owners.indices.contains(Int(index)) else {
                        spec.report(
                            "allocations[\(offset)]", value: "\(index)", "names an attribute that is not there",
                            remedy: "the block has \(owners.count) attributes")
                        continue
                    }
                    let (owner, handle) = owners[Int(index)]
                    guard let address = cidr.address(at: UInt64(offset)) else { continue }
                    if let handle, handle.hasPrefix("wireguard-") { devices[handle] = devices[handle] ?? address }
                    if let owner, owner != affinity { borrowed[owner, default: []].append(address) }
                }
            }
            if !deleted { result = (cidr, affinity, borrowed, devices) }
        }
        problems += reader.problems
        guard let result else { return nil }
        name = manifest.key.name
        cidr = result.cidr
        affinity = result.affinity
        borrowed = result.borrowed
        deviceAddresses = result.devices
    }
}

/// Calico's BlockAffinity: a node's claim to a block.
public struct BlockAffinityResource: Sendable, Hashable, Codable {
    public var name: String
    public var node: String
    public var cidr: CIDR
    public var isConfirmed: Bool

    public init?(_ manifest: Manifest, problems: inout [Problem]) {
        var reader = FieldReader(manifest.content, resource: manifest.key.description)
        let (node, cidr, state, deleted) = reader.object("spec") {
            ($0.string("node"), $0.cidr("cidr"), $0.string("state") ?? "confirmed", $0.string("deleted") ?? "false")
        }
        problems += reader.problems
        guard let node, let cidr, deleted != "true" else { return nil }
        name = manifest.key.name
        self.node = node
        self.cidr = cidr
        isConfirmed = state == "confirmed"
    }
}
