// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
internal import Model

extension FlowReader {
    /// What a flow's record is made from, beside its entries.
    struct Context {
        var names: FlowNames
        var owners: [Int: SlotOwner]
        var destinations: DestinationTable
        var translations: [MasqueradeKey: MasqueradeEntry]
        var locals: [IPAddress: LocalAddress]
        var routes: RouteLookup

        func biflow(_ key: FlowKey, _ entry: FlowEntry, _ reverse: FlowEntry?) -> Biflow {
            let slots = [entry.slot, reverse?.slot].compactMap { $0 }
            let remote = slots.first { $0 >= DestinationSlot.firstPeer }
            let owner = remote.flatMap { owners[$0] }
            let tunnelled =
                entry.isTunnelled || reverse?.isTunnelled == true
                || reverse == nil && entry.hook == .fromWireGuard
            let way = FlowReader.way(
                tunnelled: tunnelled, clear: entry.isClear || reverse?.isClear == true, crosses: remote != nil,
                slot: entry.slot)
            let destination = remote.map { destinations[$0] }
            let isTunnel = way == "tunnel" || way == "mixed"
            var flow = Biflow(
                transport: FlowReader.transportName(key.transport), protocolNumber: key.transport, source: key.source,
                sourcePort: key.sourcePort, destination: key.destination, destinationPort: key.destinationPort,
                packets: entry.packets, bytes: entry.bytes, reversePackets: reverse?.packets ?? 0,
                reverseBytes: reverse?.bytes ?? 0, first: min(entry.first, reverse?.first ?? entry.first),
                last: max(entry.last, reverse?.last ?? 0), way: way, isEncrypted: way == "tunnel",
                sourceName: names.addresses[key.source], destinationName: names.addresses[key.destination],
                sourceNode: node(key.source), destinationNode: node(key.destination), peer: owner?.node,
                peerKey: isTunnel ? owner?.publicKey : nil,
                lane: isTunnel ? destination?.lanes.first.map { names.device($0) } : nil,
                translation: translation(key), tcpFlags: entry.tcpFlags, reverseTCPFlags: reverse?.tcpFlags ?? 0,
                verdict: verdict(entry, destinations[entry.slot]),
                dropReason: (entry.dropReason ?? reverse?.dropReason)?.name, device: names.device(key.interface))
            if key.transport == 6 { flow.state = connectionState(flow.tcpFlags, flow.reverseTCPFlags) }
            return flow
        }

        /// The node that an address is on, as far as this node's own maps tell.
        private func node(_ address: IPAddress) -> String? {
            if locals[address] != nil { return names.node }
            let slot = routes.slot(of: address)
            return slot == DestinationSlot.local ? names.node : owners[slot]?.node
        }

        private func verdict(_ entry: FlowEntry, _ destination: Destination) -> String {
            if entry.isPassed { return "pass" }
            if entry.slot == DestinationSlot.outside { return "pass" }
            return destination.action.name
        }

        private func translation(_ key: FlowKey) -> String? {
            let own = MasqueradeKey(
                source: key.source, destination: key.destination, sourcePort: key.sourcePort,
                destinationPort: key.transport == 1 || key.transport == 58 ? 0 : key.destinationPort,
                transport: key.transport, isOutgoing: true)
            return translations[own].map { Endpoint(address: $0.address, port: $0.port).description }
        }
    }
}
