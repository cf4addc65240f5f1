// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model
internal import OrderedCollections

/// Names that make addresses and devices readable in a dump.
public struct DumpNames: Sendable {
    public var addresses: [IPAddress: String]
    public var interfaces: [UInt32: String]

    public init(addresses: [IPAddress: String] = [:], interfaces: [UInt32: String] = [:]) {
        self.addresses = addresses
        self.interfaces = interfaces
    }

    func interface(_ index: UInt32) -> ManifestValue { .string(interfaces[index] ?? (index == 0 ? "-" : "\(index)")) }
}

extension NodeMaps {
    /// Names of all maps.
    public static let names = [
        "allowed_sources4", "allowed_sources6", "config", "counters", "destinations", "endpoints4", "endpoints6",
        "event_control", "events", "flows4", "flows6", "fragments4", "fragments6", "guard_prefixes4",
        "guard_prefixes6", "interfaces", "locals4", "locals6", "masquerade4", "masquerade6", "peers",
        "route_addresses4", "route_addresses6", "route_blocks4", "route_blocks6", "route_prefixes4",
        "route_prefixes6", "tunnel",
    ]

    /// The entries of one map, decoded, in a stable order: an object each. Nil: no such map.
    ///
    /// Slots of arrays that nobody uses are left out.
    public func dump(_ name: String, names: DumpNames) throws(BPFError) -> [ManifestValue]? {
        let family: AddressFamily = name.hasSuffix("6") ? .ipv6 : .ipv4
        let owners = try destinations.slotOwners()
        func slot(_ number: Int) -> ManifestValue {
            switch number {
            case DestinationSlot.outside: "outside"
            case DestinationSlot.pool: "pool"
            case DestinationSlot.local: "local"
            default: .string(owners[number].map { "\($0.node)" } ?? "slot \(number)")
            }
        }
        switch name {
        case "config": return try dumpConfig(names)
        case "counters":
            return try counters.readAll().map {
                .object([
                    "reason": .string($0.reason.name), "hook": .string($0.hook.name),
                    "packets": number($0.value.packets), "bytes": number($0.value.bytes),
                    "meaning": .string($0.reason.text),
                ])
            }
        case "destinations": return dumpDestinations(owners, names, slot)
        case "peers":
            return owners.sorted { $0.key < $1.key }.map {
                .object([
                    "slot": .integer(Int64($0.key)), "node": .string($0.value.node),
                    "family": .string($0.value.family.description),
                    "publicKey": .string($0.value.publicKey?.description ?? "none"),
                ])
            }
        case "endpoints4", "endpoints6":
            return try endpoints.entries().filter { $0.key.family == family }.sorted { $0.key < $1.key }.map {
                .object(["endpoint": .string($0.value.endpoint.description), "destination": slot($0.value.slot)])
            }
        case "locals4", "locals6":
            return try locals.entries().filter { $0.key.family == family }.sorted { $0.key < $1.key }.map {
                .object([
                    "address": .string($0.key.description), "kind": .string("\($0.value.kind)"),
                    "device": names.interface($0.value.interface),
                    "farEnd": .string($0.value.farEnd?.destinationText ?? "-"),
                    "name": .string(names.addresses[$0.key] ?? "-"),
                ])
            }
        case "route_addresses4", "route_addresses6", "route_blocks4", "route_blocks6", "route_prefixes4",
            "route_prefixes6":
            let place: RoutePlace =
                name.hasPrefix("route_a") ? .address : name.hasPrefix("route_b") ? .block : .prefix
            return try routes.placedEntries().filter { $0.key.family == family && $0.value.place == place }
                .sorted { $0.key < $1.key }.map {
                    .object(["prefix": .string($0.key.description), "destination": slot($0.value.slot)])
                }
        case "flows4", "flows6": return try dumpFlows(family, names, slot)
        case "masquerade4", "masquerade6": return try dumpMasquerade(family)
        default: return try dumpMinor(name, family, names)
        }
    }

    private func dumpMinor(
        _ name: String, _ family: AddressFamily, _ names: DumpNames
    ) throws(BPFError) -> [ManifestValue]? {
        switch name {
        case "allowed_sources4", "allowed_sources6":
            return try allowedSources.entries().filter { $0.prefix.family == family }.sorted().map {
                .object(["device": names.interface($0.interface), "prefix": .string($0.prefix.description)])
            }
        case "event_control":
            return [DataplaneEvent.Kind.drop, .flow, .trace].map { kind in
                let until = (try? events.listening(to: kind)) ?? 0
                return .object(["event": .string("\(kind)"), "until": number(until)])
            }
        // A ring buffer is read once, by who follows it.
        case "events": return []
        case "fragments4", "fragments6":
            return try fragments.entries().filter { $0.source.family == family }
                .sorted { ($0.source, $0.identification) < ($1.source, $1.identification) }.map {
                    .object([
                        "source": .string($0.source.description), "destination": .string($0.destination.description),
                        "identification": .integer(Int64(UInt32(bigEndian: $0.identification))),
                        "writes": .string($0.address.description),
                    ])
                }
        case "guard_prefixes4", "guard_prefixes6":
            guard let table = guardPrefixes else { return [] }
            return try table.entries().filter { $0.key.family == family }.sorted { $0.key < $1.key }.map {
                .object(["prefix": .string($0.key.description), "kind": .string("\($0.value)")])
            }
        case "tunnel":
            return try tunnel.readAll().map {
                .object([
                    "direction": .string($0.direction.rawValue), "family": .string($0.family.description),
                    "packets": number($0.count.packets), "bytes": number($0.count.bytes),
                    "messageBytes": number($0.count.messageBytes), "slack": number($0.count.slack),
                ])
            }
        case "interfaces":
            return try interfaces.entries().sorted().map {
                .object(["device": names.interface($0), "sources": "checked"])
            }
        default: return nil
        }
    }

    private func number(_ value: UInt64) -> ManifestValue { .integer(Int64(clamping: value)) }

    private func dumpConfig(_ names: DumpNames) throws(BPFError) -> [ManifestValue] {
        let (config, generation) = try self.config.read()
        var fields: OrderedDictionary<String, ManifestValue> = [
            "generation": .integer(Int64(generation)),
            "firewallMark": .string("0x" + String(config.firewallMark, radix: 16)),
            "steeringPath": .string(config.isDirect ? "Direct" : "Stack"),
            "masqueradePorts": .string("\(config.masqueradePorts.lowerBound)-\(config.masqueradePorts.upperBound)"),
            "strict": .bool(config.isStrict), "hostEncryption": .bool(config.encryptsHosts),
            "sourceCheck": .bool(config.checksSources), "conntrack": .bool(config.asksConntrack),
            "vxlanPorts": .string(config.vxlanPorts.map { "\($0)" }.joined(separator: " ")),
            "exemptPorts": .string(config.exemptPorts.map(\.description).joined(separator: " ")),
            "formerFirewallMark": .string("0x" + String(config.oldFirewallMark, radix: 16)),
            "admitsAnybody": .bool(config.admitsAnybody), "clsact": .bool(config.isClsact),
        ]
        for family in AddressFamily.allCases {
            let suffix = family == .ipv4 ? "4" : "6"
            fields["device\(suffix)"] = config[family].map { names.interface($0.interface) } ?? "off"
            fields["port\(suffix)"] = .integer(Int64(config[family]?.listeningPort ?? 0))
            fields["otherPort\(suffix)"] = .integer(Int64(config[family]?.otherPort ?? 0))
            fields["blockLength\(suffix)"] = .integer(Int64(config.blockLength(family)))
            fields["address\(suffix)"] = .string(config[family]?.address?.description ?? "-")
            fields["mtu\(suffix)"] = .integer(Int64(config[family]?.mtu ?? 0))
            fields["mss\(suffix)"] = .integer(Int64(config[family]?.maximumSegment ?? 0))
        }
        return [.object(fields)]
    }

    private func dumpDestinations(
        _ owners: [Int: SlotOwner], _ names: DumpNames, _ slot: (Int) -> ManifestValue
    ) -> [ManifestValue] {
        let used = [DestinationSlot.outside, DestinationSlot.pool, DestinationSlot.local] + owners.keys.sorted()
        return used.map { index in
            let value = destinations[index]
            let lanes = value.lanes.map { names.interface($0).text }.joined(separator: " ")
            return .object([
                "slot": .integer(Int64(index)), "destination": slot(index),
                "family": .string(value.family?.description ?? "-"), "action": .string(value.action.name),
                "generation": .integer(Int64(value.generation)), "lanes": .string(lanes.isEmpty ? "-" : lanes),
            ])
        }
    }

    private func dumpFlows(
        _ family: AddressFamily, _ names: DumpNames, _ slot: (Int) -> ManifestValue
    ) throws(BPFError) -> [ManifestValue] {
        let entries = try flows.entries().filter { $0.key.source.family == family }
        func order(_ key: FlowKey) -> (IPAddress, IPAddress, UInt8, UInt16, UInt16, UInt32) {
            (key.source, key.destination, key.transport, key.sourcePort, key.destinationPort, key.interface)
        }
        return entries.sorted { order($0.key) < order($1.key) }.map { key, value in
            var flags: [String] = []
            if value.isTunnelled { flags.append("tunnelled") }
            if value.isClear { flags.append("clear") }
            if value.isFromHost { flags.append("host") }
            if value.isPassed { flags.append("pass") }
            if value.isPromised { flags.append("promised") }
            if value.takesStack { flags.append("stack") }
            if value.isExempt { flags.append("exempt") }
            if let reason = value.dropReason { flags.append(reason.name) }
            return .object([
                "protocol": .integer(Int64(key.transport)),
                "source": .string(Endpoint(address: key.source, port: key.sourcePort).description),
                "destination": .string(Endpoint(address: key.destination, port: key.destinationPort).description),
                "device": names.interface(key.interface), "slot": slot(value.slot),
                "packets": number(value.packets), "bytes": number(value.bytes),
                "flags": .string(flags.joined(separator: ",")), "hook": .string(value.hook.name),
            ])
        }
    }

    private func dumpMasquerade(_ family: AddressFamily) throws(BPFError) -> [ManifestValue] {
        let entries = try masquerade.entries().filter { $0.key.source.family == family }
        func order(_ key: MasqueradeKey) -> (Int, IPAddress, IPAddress, UInt8, UInt16, UInt16) {
            (key.isOutgoing ? 0 : 1, key.source, key.destination, key.transport, key.sourcePort, key.destinationPort)
        }
        return entries.sorted { order($0.key) < order($1.key) }.map { key, value in
            .object([
                "direction": .string(key.isOutgoing ? "out" : "in"), "protocol": .integer(Int64(key.transport)),
                "source": .string(Endpoint(address: key.source, port: key.sourcePort).description),
                "destination": .string(Endpoint(address: key.destination, port: key.destinationPort).description),
                "writes": .string(Endpoint(address: value.address, port: value.port).description),
            ])
        }
    }
}
