// SPDX-License-Identifier: Apache-2.0

import Model
import Netlink
import SystemDescriptors
import SystemPackage

/// Namespaces and devices of a lab. All calls block.
///
/// The underlay is a bridge in a namespace of its own; each node has a network and a
/// mount namespace, each pod a network namespace. Nothing is made in the machine's own.
struct LabNetwork {
    let paths: LabPaths

    /// Calico's address of every pod's gateway: the host answers for it by proxy ARP.
    static let gateway4 = IPAddress(family: .ipv4, bits: 0xa9fe_0101)
    /// Link-local address of the host side's fixed hardware address.
    static let gateway6 = IPAddress(family: .ipv6, bits: UInt128(0xfe80) << 112 | 0xecee_eeff_feee_eeee)
    static let hostHardwareAddress: [UInt8] = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee]
    static let mtu: UInt32 = 1500

    func underlay() -> NamespaceFiles { NamespaceFiles(network: "\(paths.namespaces)/underlay") }

    func node(_ name: String) -> NamespaceFiles {
        NamespaceFiles(network: "\(paths.namespaces)/\(name)", mount: "\(paths.namespaces)/\(name).mnt")
    }

    func pod(_ name: String) -> NamespaceFiles { NamespaceFiles(network: "\(paths.namespaces)/\(name)") }

    // MARK: Making

    /// The bridge has an address of its own: the nodes' default gateway, and the outside world.
    func createUnderlay(families: [AddressFamily]) throws {
        let files = underlay()
        try files.create {}
        try files.run {
            Self.quiet()
            let route = try RouteSession()
            try route.createLink(named: "underlay", kind: "bridge", mtu: Self.mtu)
            let index = try Self.up(route, "underlay")
            for family in families {
                try route.addAddress(
                    LabAddresses.gateway(family), prefixLength: family == .ipv4 ? 24 : 64, index: index)
            }
            try Self.up(route, "lo")
        }
    }

    /// A machine on the underlay that is no node: the datastore's.
    func createControl(families: [AddressFamily]) throws {
        let files = pod(Self.control)
        try files.create {}
        try files.run {
            Self.quiet()
            try Self.up(RouteSession(), "lo")
        }
        try connect(Self.control, files)
        try files.run {
            let route = try RouteSession()
            let uplink = try Self.up(route, "eth0")
            for family in families {
                try route.addAddress(
                    LabAddresses.control(family), prefixLength: family == .ipv4 ? 24 : 64, index: uplink)
            }
        }
    }

    static let control = "control"

    /// Joins a namespace to the underlay's bridge: its `eth0`, and a port of the place's name.
    private func connect(_ name: String, _ files: NamespaceFiles) throws {
        let namespace = SharedDescriptor(try openFile(files.network, flags: 0))
        try underlay().run {
            let route = try RouteSession()
            try route.createVethPair(
                name, mtu: Self.mtu, peer: "eth0", peerMTU: Self.mtu, peerNamespace: namespace)
            guard let port = try route.link(named: name), let bridge = try route.link(named: "underlay") else { return }
            try route.setLink(port.index, up: true, master: bridge.index)
        }
    }

    func createNode(_ number: Int, name: String, families: [AddressFamily], nodes: Int) throws {
        let run = paths.run(name)
        try makeFolders("\(paths.runDirectory(name))/datastore", mode: 0o700)
        try makeFolders("\(paths.bpf)/\(name)", mode: 0o700)
        try bindMount(paths.datastore, on: "\(paths.runDirectory(name))/datastore")
        let bpf = "\(paths.bpf)/\(name)"
        let files = node(name)
        try files.create {
            try mountFileSystem("sysfs", on: "/sys")
            try bindMount(bpf, on: "/sys/fs/bpf")
            try bindMount(run, on: "/run")
        }
        try files.run {
            Self.quiet()
            try Self.set("net/ipv4/ip_forward", "1")
            try Self.set("net/ipv4/conf/all/rp_filter", "1")
            try? Self.set("net/ipv6/conf/all/forwarding", "1")
            try Self.up(RouteSession(), "lo")
        }
        try connect(name, files)
        try files.run {
            let route = try RouteSession()
            let uplink = try Self.up(route, "eth0")
            for family in families {
                try route.addAddress(
                    LabAddresses.node(number, family), prefixLength: family == .ipv4 ? 24 : 64, index: uplink)
                // Proxy ARP answers a pod only when the node has a route to what it asks for.
                try route.replaceRoute(
                    Route(Self.everything(family), index: uplink, gateway: LabAddresses.gateway(family)))
                // What Calico's BGP would tell: each block by its node.
                for other in 1...nodes where other != number {
                    try route.replaceRoute(
                        Route(
                            LabAddresses.block(other, family), index: uplink,
                            gateway: LabAddresses.node(other, family)))
                }
            }
        }
    }

    /// Calico's point-to-point wiring: host routes on the node, the gateway answered by proxy.
    func createPod(_ pod: LabPod, node name: String, mtu: UInt32) throws {
        let files = self.pod(pod.name)
        try files.create {}
        try files.run {
            Self.quiet()
            try Self.up(RouteSession(), "lo")
        }
        let namespace = SharedDescriptor(try openFile(files.network, flags: 0))
        try node(name).run {
            let route = try RouteSession()
            try route.createVethPair(
                pod.device, mtu: mtu, hardwareAddress: Self.hostHardwareAddress, peer: "eth0",
                peerMTU: mtu,
                peerNamespace: namespace)
            let index = try Self.up(route, pod.device)
            try Self.set("net/ipv4/conf/\(pod.device)/proxy_arp", "1")
            // Answer at once: the pod is the only one there.
            try Self.set("net/ipv4/neigh/\(pod.device)/proxy_delay", "0")
            try? Self.set("net/ipv6/conf/\(pod.device)/proxy_ndp", "1")
            for address in pod.addresses {
                try route.replaceRoute(Route(CIDR(host: address), index: index))
            }
        }
        try files.run {
            let route = try RouteSession()
            let index = try Self.up(route, "eth0")
            for address in pod.addresses {
                try route.addAddress(address, prefixLength: address.family.bitWidth, index: index)
                if address.family == .ipv4 {
                    try route.replaceRoute(Route(CIDR(host: Self.gateway4), index: index))
                    try route.replaceRoute(Route(Self.everything(.ipv4), index: index, gateway: Self.gateway4))
                } else {
                    try route.replaceRoute(Route(Self.everything(.ipv6), index: index, gateway: Self.gateway6))
                }
            }
        }
    }

    func deletePod(_ pod: LabPod, node name: String) throws {
        try node(name).run { try RouteSession().deleteLink(named: pod.device) }
        self.pod(pod.name).remove()
    }

    /// Routes of the underlay for a prefix: on every node but its own, by that node.
    func routePrefix(_ cidr: CIDR, to number: Int, nodes: Int) throws {
        for other in 1...nodes {
            try node("node\(other)").run {
                let route = try RouteSession()
                guard let uplink = try route.link(named: "eth0") else { return }
                if other == number {
                    try route.deleteRoute(Route(cidr, index: uplink.index))
                } else {
                    try route.replaceRoute(
                        Route(cidr, index: uplink.index, gateway: LabAddresses.node(number, cidr.family)))
                }
            }
        }
    }

    // MARK: Helpers

    private static func everything(_ family: AddressFamily) -> CIDR {
        let zero = family == .ipv4 ? IPAddress.anyIPv4 : .anyIPv6
        guard let cidr = CIDR(masking: zero, prefixLength: 0) else { preconditionFailure("0 is a length") }
        return cidr
    }

    @discardableResult
    private static func up(_ route: RouteSession, _ name: String) throws -> UInt32 {
        guard let link = try route.link(named: name) else {
            throw ProblemsError(
                Problem(resource: "Device/\(name)", message: "is not there", remedy: "take the lab down and up again"))
        }
        try route.setLink(link.index, up: true)
        return link.index
    }

    private static func set(_ name: String, _ value: String) throws(Errno) {
        try writeExistingFile("/proc/sys/\(name)", value)
    }

    /// No duplicate address detection and no autoconfiguration: addresses count at once.
    private static func quiet() {
        for scope in ["all", "default"] {
            try? set("net/ipv6/conf/\(scope)/accept_dad", "0")
            try? set("net/ipv6/conf/\(scope)/dad_transmits", "0")
            try? set("net/ipv6/conf/\(scope)/accept_ra", "0")
            try? set("net/ipv6/conf/\(scope)/router_solicitations", "0")
        }
    }
}
