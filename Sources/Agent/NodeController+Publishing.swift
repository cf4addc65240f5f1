// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import DesiredState
internal import Logging
internal import Model
internal import WireGuard

/// What the node tells the others: its keys and its devices' addresses, as annotations of its Node.
extension NodeController {
    /// The annotations as they should be; nil removes one.
    func wantedAnnotations() -> [String: String?] {
        var result: [String: String?] = [:]
        for family in AddressFamily.allCases {
            let state = families[family].flatMap { $0.drainingUntil == nil ? $0 : nil }
            // A device that cannot be looked at keeps its key's annotation, unless it is to go.
            if state != nil, unsettled.contains(family) { continue }
            result.updateValue(state?.device?.publicKey?.description, forKey: NodeAnnotation.publicKey(family))
            result.updateValue(
                state?.device == nil ? nil : state?.address?.description,
                forKey: NodeAnnotation.interfaceAddress(family))
            result.updateValue(
                state?.device.map { "\($0.listeningPort)" }, forKey: NodeAnnotation.listeningPort(family))
        }
        return result
    }

    /// Wishes for an address for each device, and for annotations and condition as they should be.
    func publish(_ plan: NodePlan, _ problems: inout [Problem]) {
        var wish = Publisher.Wish(
            annotations: wantedAnnotations(), condition: condition(plan), node: inventory.ownNode)
        for family in families.keys.sorted() where families[family]?.drainingUntil == nil && !unsettled.contains(family)
        {
            let published = publishedAddress(family, plan)
            if families[family]?.address == nil { families[family]?.address = published }
            guard published == nil, isComplete || families[family]?.address == nil else { continue }
            // One that no block holds may be a pod's soon.
            if let address = publisher.takeAddress(family) {
                families[family]?.address = address
            } else if !usesNodeAddress(plan) {
                wish.lacking[family] = ownBlocks(family).filter { $0.affinity == options.node }.map(\.name)
            }
        }
        wish.annotations = wantedAnnotations()
        // A family that is off gives its address back; one that drains keeps it to the end.
        wish.releases = heldAddresses(AddressFamily.allCases.filter { families[$0] == nil || usesNodeAddress(plan) })
        publisher.wish(wish)
        problems += publisher.problems
    }

    /// Blocks that hold addresses of these families' devices.
    func heldAddresses(_ families: [AddressFamily]) -> [AddressFamily: [String]] {
        var result: [AddressFamily: [String]] = [:]
        for family in families {
            let handle = AddressAllocation.handle(options.node, family)
            let blocks = inventory.cluster.blocks.values.filter { $0.deviceAddresses[handle] != nil }
            if !blocks.isEmpty { result[family] = blocks.map(\.name).sorted() }
        }
        return result
    }

    /// Whether this node encrypts, and how, for its Node.
    func condition(_ plan: NodePlan) -> NodeCondition {
        let on = families.filter { $0.value.drainingUntil == nil }.keys.sorted()
        guard mode.mode != .disabled, !on.isEmpty else {
            return NodeCondition(isTrue: false, reason: "Disabled", message: disabledReason(plan))
        }
        let lacking = on.filter { families[$0]?.device == nil || unsettled.contains($0) }
        let names = on.map(\.description).joined(separator: " and ")
        if !lacking.isEmpty {
            return NodeCondition(
                isTrue: false, reason: "NoDevice",
                message: "no WireGuard device for \(lacking.map(\.description).joined(separator: " and "))")
        }
        return NodeCondition(
            isTrue: true, reason: mode.mode == .ebpf ? "EBPF" : "Route",
            message: "\(names) by \(mode.mode == .ebpf ? "eBPF programs" : "routes and rules"): \(mode.reason)")
    }

    /// The address that the datastore has for this node's device already.
    func publishedAddress(_ family: AddressFamily, _ plan: NodePlan) -> IPAddress? {
        if usesNodeAddress(plan) { return ownAddress(family) }
        return ownBlocks(family).lazy.compactMap {
            $0.deviceAddresses[AddressAllocation.handle(self.options.node, family)]
        }.first
    }

    /// Without Calico's IPAM, and with host encryption, the device has the node's own address.
    func usesNodeAddress(_ plan: NodePlan) -> Bool { plan.routeSource != .calicoIPAM || plan.encryptsHosts }

    func ownAddress(_ family: AddressFamily) -> IPAddress? {
        inventory.cluster.nodes[options.node]?.addresses[family]
    }

    /// Blocks that are this node's or hold an address of its device, by name.
    private func ownBlocks(_ family: AddressFamily) -> [IPAMBlockResource] {
        let handle = AddressAllocation.handle(options.node, family)
        return inventory.cluster.blocks.values.filter {
            $0.cidr.family == family && ($0.affinity == options.node || $0.deviceAddresses[handle] != nil)
        }.sorted { $0.name < $1.name }
    }
}
