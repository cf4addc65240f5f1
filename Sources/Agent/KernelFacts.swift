// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
import DesiredState
import Glibc
import Model
import Netlink
import Steering

/// What the kernel says of this node's devices, addresses and routes.
struct KernelFacts: Sendable {
    var links: [Link]
    var addresses: [LinkAddress]
    /// Host-side device by pod address: host routes of the main table.
    var hostRoutes: [IPAddress: UInt32] = [:]

    init(_ session: RouteSession) throws {
        links = try session.links()
        addresses = try session.addresses()
        for family in AddressFamily.allCases {
            for route in try Self.routes(session, family)
            where route.table == 254 && route.destination.isHost && route.type == 1 && route.index != 0
                && route.gateway == nil
            {
                hostRoutes[route.destination.address] = route.index
            }
        }
    }

    /// A kernel without IPv6 has no such routes.
    private static func routes(_ session: RouteSession, _ family: AddressFamily) throws -> [Route] {
        do {
            return try session.routes(family)
        } catch {
            if family == .ipv6, [EAFNOSUPPORT, EOPNOTSUPP].contains(error.errno) { return [] }
            throw error
        }
    }

    func link(_ index: UInt32) -> Link? { links.first { $0.index == index } }

    /// Devices that lead to other nodes: by name, up, not part of a bond or bridge, not WireGuard.
    func uplinks(pattern: String, excluding names: Set<String>) -> [Link] {
        guard let expression = try? Regex(pattern) else { return [] }
        return links.filter {
            $0.isUp && !$0.isLoopback && $0.master == 0 && !names.contains($0.name) && $0.kind != "wireguard"
                && $0.name.firstMatch(of: expression) != nil
        }
    }

    /// Addresses of this node as the programs should know them.
    func locals(pods: [LocalPod], deviceAddresses: [IPAddress]) -> [IPAddress: LocalAddress] {
        var result: [IPAddress: LocalAddress] = [:]
        for pod in pods {
            for address in pod.addresses {
                result[address] = LocalAddress(kind: .pod, interface: hostRoutes[address] ?? 0)
            }
        }
        for address in addresses where !address.address.isLoopback && !address.address.isLinkLocal {
            result[address.address] = LocalAddress(kind: .host)
        }
        for address in deviceAddresses { result[address] = LocalAddress(kind: .tunnel) }
        return result
    }

    /// Host-side devices of pods.
    func podDevices(_ pods: [LocalPod]) -> [Link] {
        let indices = Set(pods.flatMap(\.addresses).compactMap { hostRoutes[$0] })
        return links.filter { indices.contains($0.index) && $0.isEthernet }
    }
}
