// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Datastore
internal import DesiredState
internal import Model
internal import Netlink
internal import Steering
internal import WireGuard

/// What the data plane should be.
extension NodeController {
    func steeringPlan(_ plan: NodePlan, _ facts: KernelFacts, _ uplinks: [Link]) throws -> SteeringPlan {
        func device(_ family: AddressFamily) -> DataplaneConfig.Device? {
            guard let state = families[family], let device = state.device else { return nil }
            return .init(
                interface: device.interface, listeningPort: state.settings.listeningPort, address: state.address)
        }
        var result = SteeringPlan(
            config: DataplaneConfig(
                ipv4: device(.ipv4), ipv6: device(.ipv6), firewallMark: plan.settings.firewallMark,
                isDirect: steeringPath(plan.settings.steeringPath).path == .direct))
        result.preserved = snapshot?.isComplete == true ? unsettled : Set(AddressFamily.allCases)
        for (family, state) in families where !unsettled.contains(family) {
            guard let device = state.device else { continue }
            addPeers(family, state, plan[family], device, to: &result)
            for (cidr, target) in plan[family].routes {
                switch target {
                case .pool: result.routes[cidr] = .pool
                case .local: result.routes[cidr] = .local
                case .node(let name): result.routes[cidr] = .peer(PeerSlotKey(node: name, family: family))
                }
            }
            result.hooks += [Hook.toWireGuard, .fromWireGuard].map {
                HookPoint(hook: $0, interface: device.interface, device: device.name, isEthernet: false)
            }
        }
        result.locals = facts.locals(pods: plan.pods, deviceAddresses: families.values.compactMap(\.address))
        for link in uplinks {
            result.hooks += [Hook.toUplink, .fromUplink].map {
                HookPoint(hook: $0, interface: link.index, device: link.name, isEthernet: link.isEthernet)
            }
        }
        for link in facts.podDevices(plan.pods) {
            result.hooks.append(
                HookPoint(hook: .fromPod, interface: link.index, device: link.name, isEthernet: true))
        }
        return result
    }

    func addPeers(
        _ family: AddressFamily, _ state: FamilyState, _ plan: FamilyPlan, _ device: DeviceState,
        to result: inout SteeringPlan
    ) {
        for (key, retiring) in state.peers.retiring where !retiring.node.isEmpty {
            result.peers[PeerSlotKey(node: retiring.node, family: family)] = PeerSteering(
                publicKey: key, endpoint: retiring.endpoint, action: .draining, lanes: [device.interface])
        }
        for (name, peer) in plan.peers {
            let action = state.action(for: name)
            result.peers[PeerSlotKey(node: name, family: family)] = PeerSteering(
                publicKey: state.peers.carrier(of: name) ?? peer.publicKey, endpoint: peer.endpoint, action: action,
                lanes: [device.interface])
        }
        // A node that cannot be read now is not one without WireGuard.
        let isComplete = snapshot?.isComplete == true
        for name in plan.unencrypted where isComplete || state.peers.carrier(of: name) == nil {
            let key = PeerSlotKey(node: name, family: family)
            if result.peers[key] == nil {
                result.peers[key] = PeerSteering(publicKey: nil, endpoint: nil, action: .clear, lanes: [])
            }
        }
    }

    func steeringPath(_ choice: SteeringPathChoice) -> (path: SteeringPathChoice, reason: String) {
        guard choice == .auto else { return (choice, "wireguardSteeringPath is set") }
        do {
            let tables = try FirewallInspection.tables()
            if tables.isEmpty { return (.direct, "nothing in netfilter looks at forwarded packets") }
            return (.stack, "netfilter may filter forwarded packets: \(tables.prefix(3).joined(separator: ", "))")
        } catch {
            return (.stack, "netfilter cannot be inspected: \(error)")
        }
    }
}
