// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
import DesiredState
import Model
import Netlink
import Steering

/// What the kernel says of this node's devices, addresses and routes.
struct KernelFacts: Sendable, Equatable {
    var links: [Link]
    var addresses: [LinkAddress]
    /// Host-side device by pod address: host routes of the main table.
    var hostRoutes: [IPAddress: UInt32] = [:]

    init(_ session: RouteSession) throws {
        links = try session.links()
        addresses = try session.addresses()
        for family in AddressFamily.allCases {
            for route in try session.routes(family, table: 254)
            where route.destination.isHost && route.type == 1 && route.index != 0
                && route.gateway == nil
            {
                hostRoutes[route.destination.address] = route.index
            }
        }
    }

    func link(_ index: UInt32) -> Link? { links.first { $0.index == index } }

    /// Devices that lead to other nodes: by name, not part of a bond or bridge, not WireGuard. Those
    /// that are down too: they come up with the programs in place.
    func uplinks(pattern: String, excluding names: Set<String>) -> [Link] {
        guard let expression = try? Regex(pattern) else { return [] }
        let found = links.filter {
            !$0.isLoopback && $0.master == 0 && !names.contains($0.name) && $0.kind != "wireguard"
                && $0.name.firstMatch(of: expression) != nil
        }
        // What a VLAN carries is seen at the VLAN's device, which has the address.
        let addressed = Set(addresses.filter { !$0.address.isLinkLocal }.map(\.index))
        let parents = Set(found.filter { $0.kind == "vlan" }.map(\.parent)).subtracting(addressed)
        return found.filter { !parents.contains($0.index) }
    }

    /// Devices that wrap packets for other nodes into others: VXLAN, IP in IP and their like.
    /// What is to be encrypted is steered there, before it is wrapped.
    func overlays(excluding names: Set<String>) -> [Link] {
        let kinds: Set<String> = ["vxlan", "geneve", "ipip", "sit", "ip6tnl", "gre", "ip6gre", "gretap"]
        return links.filter { kinds.contains($0.kind) && $0.master == 0 && !names.contains($0.name) }
    }

    /// Addresses of this node as the programs should know them.
    func locals(
        pods: [LocalPod], deviceAddresses: [IPAddress], farEnds: [UInt32: FrameAddresses]
    ) -> [IPAddress: LocalAddress] {
        var result: [IPAddress: LocalAddress] = [:]
        for pod in pods {
            for address in pod.addresses {
                let device = hostRoutes[address].flatMap(link)
                result[address] = LocalAddress(
                    kind: .pod, interface: device?.index ?? 0, mtu: UInt16(clamping: device?.mtu ?? 0),
                    farEnd: device.flatMap { farEnds[$0.index] })
            }
        }
        for address in addresses where !address.address.isLoopback && !address.address.isLinkLocal {
            result[address.address] = LocalAddress(kind: .host)
        }
        for address in deviceAddresses { result[address] = LocalAddress(kind: .tunnel) }
        return result
    }

    /// Host-side devices of pods: those that the kernel's routes tell, and those that bear such a
    /// name, of whose pod nobody has heard yet.
    func podDevices(_ pods: [LocalPod], prefixes: [String], uplinks: [Link]) -> [Link] {
        let indices = Set(pods.flatMap(\.addresses).compactMap { hostRoutes[$0] })
        let others = Set(uplinks.map(\.index))
        return links.filter { link in
            guard link.isEthernet, !others.contains(link.index) else { return false }
            let isNamed = link.kind == "veth" && link.master == 0 && prefixes.contains { link.name.hasPrefix($0) }
            return indices.contains(link.index) || isNamed
        }
    }

    /// Devices of which every address that may send is known, and what may beside the pods'.
    func sources(_ pods: [LocalPod]) -> (checked: Set<UInt32>, allowed: Set<AllowedSource>) {
        let known = Set(pods.flatMap(\.addresses))
        let checked = Set(known.compactMap { hostRoutes[$0] })
        var allowed: Set<AllowedSource> = []
        for pod in pods {
            for index in Set(pod.addresses.compactMap({ hostRoutes[$0] })) {
                for prefix in pod.allowedSources { allowed.insert(AllowedSource(interface: index, prefix: prefix)) }
            }
        }
        // An address that the kernel routes to the device is the pod's, whoever has given it.
        for (address, index) in hostRoutes where checked.contains(index) && !known.contains(address) {
            allowed.insert(AllowedSource(interface: index, prefix: CIDR(host: address)))
        }
        return (checked, allowed)
    }
}
