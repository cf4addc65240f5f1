// SPDX-License-Identifier: Apache-2.0

import BPF
import CBenchmark
import DataplaneMaps
import Foundation
import Model
import Netlink
import Steering
import SystemDescriptors

/// A node with one pod, a tunnel's device (TUN, as an L3 device as WireGuard's) and an uplink, in namespaces of its
/// own. What arrives at the end of a way is counted there, and dropped, by the same program in every mode.
///
/// To be used on a thread in the node's namespace.
final class SteeringRig {
    /// How the node leads packets on.
    enum Mode: Hashable {
        /// Not at all: they end where the node takes them from the sender, whose cost that is.
        case sender
        /// By routes, unencrypted.
        case plain
        /// Route mode, as Felix does it.
        case route
        case ebpf
        /// The programs, which do not count flows.
        case uncounted
    }

    struct Cluster: Hashable {
        var nodes: Int
        /// Routes of single addresses beside.
        var pods = 0
    }

    static let podDevice = "cali0"
    static let tunnel = "wireguard.cali"
    static let mtu: UInt32 = 1420
    /// The processor on which everything happens.
    static let processor: Int32 = 1

    /// Puts the calling thread there.
    static func pin() throws {
        let error = wgb_pin(processor)
        if error != 0 { throw BenchmarkError("needs processor \(processor) for itself: errno \(error)") }
    }

    private static var folder: String { "/run/wgplane-bench-\(ProcessInfo.processInfo.processIdentifier)" }
    static let node = NamespaceFiles(network: "\(folder)/node")
    static let pod = NamespaceFiles(network: "\(folder)/pod")
    static let world = NamespaceFiles(network: "\(folder)/world")

    let layout = PinLayout(root: "/sys/fs/bpf/wgplane-bench-\(ProcessInfo.processInfo.processIdentifier)-node")
    let yardsticks: YardstickPrograms
    let tun: Int32
    let gauge: Gauge
    private let session: RouteSession
    private let indexes: [String: UInt32]
    private let sinks: (ethernet: BPFProgram, tunnel: BPFProgram)
    private var attached: [(Attachment, pin: String)] = []
    private var current: (Mode, Cluster)?
    /// As an agent finds it.
    private var farEnd: FrameAddresses?

    /// Makes the namespaces, runs a body on a thread in the node's, and takes all away.
    static func with<Value: Sendable>(_ body: @escaping @Sendable (SteeringRig) throws -> Value) throws -> Value {
        try makeFolders(folder, mode: 0o700)
        try mountFileSystem("tmpfs", on: folder, options: "mode=0700")
        defer {
            for place in [node, pod, world] { place.remove() }
            detachMount(folder)
            try? removeFolder(folder)
        }
        try makeMountPrivate(folder)
        for place in [node, pod, world] { try place.create {} }
        return try node.run {
            let rig = try SteeringRig()
            defer { rig.remove() }
            return try body(rig)
        }
    }

    private init() throws {
        let session = try RouteSession()
        self.session = session
        for (name, value) in [
            ("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1"), ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] { try writeExistingFile("/proc/sys/\(name)", value) }
        let pod = SharedDescriptor(try openFile(Self.pod.network, flags: 0))
        let world = SharedDescriptor(try openFile(Self.world.network, flags: 0))
        try session.createVethPair(
            Self.podDevice, mtu: Self.mtu, hardwareAddress: Self.gateway, peer: "eth0", peerMTU: Self.mtu,
            peerNamespace: pod)
        try session.createVethPair("eth0", mtu: 1500, peer: "far", peerMTU: 1500, peerNamespace: world)
        tun = wgb_tun_open(Self.tunnel)
        guard tun >= 0 else { throw BenchmarkError("no TUN device: errno \(-tun)") }
        var indexes: [String: UInt32] = [:]
        for link in try session.links() {
            indexes[link.name] = link.index
            try session.setLink(link.index, up: true, mtu: link.name == Self.tunnel ? Self.mtu : nil)
        }
        self.indexes = indexes
        try Self.pod.run {
            let session = try RouteSession()
            for link in try session.links() where link.name == "lo" { try session.setLink(link.index, up: true) }
        }
        try Self.pin()
        gauge = try Gauge(in: Self.pod)
        yardsticks = try YardstickPrograms("sink")
        sinks = (try yardsticks.sink(isEthernet: true), try yardsticks.sink(isEthernet: false))
        try connect()
    }

    private func remove() {
        try? leave()
        yardsticks.remove()
        try? layout.remove()
        close(tun)
    }

    static let gateway: [UInt8] = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee]
    private static let podHardware: [UInt8] = [2, 0, 0, 0, 0, 1]

    func index(_ device: String) -> UInt32 { indexes[device] ?? 0 }

    // MARK: Addresses

    static func pool(_ family: AddressFamily) -> CIDR { ProgramRig.pool(family) }
    static func podAddress(_ family: AddressFamily) -> IPAddress { address(family, 0, 1) }
    static func tunnelAddress(_ family: AddressFamily) -> IPAddress { address(family, 0, 3) }

    /// Of a block's, of which this node has the first.
    static func address(_ family: AddressFamily, _ block: Int, _ host: UInt128) -> IPAddress {
        IPAddress(family: family, bits: pool(family).address.bits + UInt128(block) * 64 + host)
    }

    static func block(_ family: AddressFamily, _ number: Int) -> CIDR? {
        CIDR(masking: address(family, number, 0), prefixLength: family == .ipv4 ? 26 : 122)
    }

    private static func everything(_ family: AddressFamily) -> CIDR? {
        CIDR(masking: family == .ipv4 ? .anyIPv4 : .anyIPv6, prefixLength: 0)
    }

    /// Permanent neighbours, so that none is asked for while it is measured.
    private func connect() throws {
        for family in AddressFamily.allCases {
            let pod = Self.podAddress(family)
            try session.replaceRoute(Route(CIDR(host: pod), index: index(Self.podDevice)))
            guard let everything = Self.everything(family) else { continue }
            let next = IPAddress(family: family, bits: family == .ipv4 ? 0x0a00_00fe : UInt128(0xfd00) << 112 + 254)
            let own = IPAddress(family: family, bits: family == .ipv4 ? 0x0a00_0001 : UInt128(0xfd00) << 112 + 1)
            try session.addAddress(own, prefixLength: family == .ipv4 ? 24 : 64, index: index("eth0"))
            try session.replaceNeighbour(next, index: index("eth0"), hardwareAddress: [2, 0, 0, 0, 0, 9])
            try session.replaceRoute(Route(everything, index: index("eth0"), gateway: next))
            try session.addAddress(
                Self.tunnelAddress(family), prefixLength: family.bitWidth, index: index(Self.tunnel))
        }
        let hardware = try Self.pod.run {
            let session = try RouteSession()
            guard let link = try session.link(named: "eth0") else { return [UInt8]() }
            try session.setLink(link.index, up: true)
            for family in AddressFamily.allCases {
                try session.addAddress(Self.podAddress(family), prefixLength: family.bitWidth, index: link.index)
                let gateway =
                    family == .ipv4
                    ? IPAddress(family: .ipv4, bits: 0xa9fe_0101)
                    : IPAddress(family: .ipv6, bits: UInt128(0xfe80) << 112 | 1)
                guard let everything = Self.everything(family) else { continue }
                if family == .ipv4 { try session.replaceRoute(Route(CIDR(host: gateway), index: link.index)) }
                try session.replaceNeighbour(gateway, index: link.index, hardwareAddress: Self.gateway)
                try session.replaceRoute(Route(everything, index: link.index, gateway: gateway))
            }
            return link.hardwareAddress
        }
        farEnd = FrameAddresses(destination: hardware, source: Self.gateway)
        for family in AddressFamily.allCases {
            try session.replaceNeighbour(
                Self.podAddress(family), index: index(Self.podDevice), hardwareAddress: hardware)
        }
        try Self.world.run {
            let session = try RouteSession()
            for link in try session.links() { try session.setLink(link.index, up: true) }
        }
    }

    /// A pod whose address is a route of its own.
    static func farPod(_ family: AddressFamily, _ number: Int) -> IPAddress {
        IPAddress(family: family, bits: (family == .ipv4 ? 0x0b00_0000 : UInt128(0xfd4b) << 112) + UInt128(number))
    }

    // MARK: Modes

    /// Makes the node lead packets on in a mode.
    func enter(_ mode: Mode, _ cluster: Cluster) throws {
        if let current, current == (mode, cluster) { return }
        try leave()
        current = (mode, cluster)
        let plan = plan(cluster, isDirect: true)
        switch mode {
        case .sender:
            try attachSink(Self.podDevice, .ingress)
            try attachSink(Self.tunnel, .ingress)
            return
        case .plain: break
        case .route:
            var route = try RouteSteering(stateFolder: "\(Self.folder)/state")
            try check(route.apply(plan))
        case .ebpf, .uncounted:
            var steering = try EBPFSteering(layout: layout, mechanism: .tcx)
            try check(steering.apply(plan))
            for number in 0..<cluster.pods {
                for family in AddressFamily.allCases {
                    try steering.maps.routes.update(
                        CIDR(host: Self.farPod(family, number)),
                        slot: DestinationSlot.firstPeer + number % cluster.nodes)
                }
            }
            if mode == .uncounted {
                var programs = try DataplanePrograms(layout, countsFlows: false)
                for point in plan.hooks {
                    try Attachment(interface: point.interface, direction: point.direction, mechanism: .tcx).attach(
                        programs.program(point.hook, isEthernet: point.isEthernet),
                        pin: layout.link(hook: point.hook, interface: point.interface))
                }
            }
        }
        // Behind the programs that are measured.
        try attachSink(Self.tunnel, .egress)
        // What is to go into the tunnel is not counted where it would leave in clear.
        if mode == .plain { try attachSink("eth0", .egress) }
        let pin = "\(yardsticks.layout.links)/sink-pod"
        let (sink, pod) = (sinks.ethernet, Self.pod)
        let attachment = try pod.run {
            let link = try RouteSession().link(named: "eth0")
            let attachment = Attachment(interface: link?.index ?? 0, direction: .ingress, mechanism: .tcx)
            try attachment.attach(sink, pin: pin)
            return attachment
        }
        attached.append((attachment, pin))
    }

    private func check(_ problems: [Problem]) throws {
        if let first = problems.first { throw BenchmarkError("the mode cannot be entered: \(first)") }
    }

    private func leave() throws {
        for (attachment, pin) in attached { try attachment.detach(pin: pin) }
        attached = []
        switch current?.0 {
        case .route: try RouteSteering.removeAll(stateFolder: "\(Self.folder)/state")
        case .ebpf, .uncounted: try EBPFSteering.removeAll(layout: layout)
        default: break
        }
        current = nil
    }

    private func attachSink(_ device: String, _ direction: AttachmentDirection) throws {
        let attachment = Attachment(interface: index(device), direction: direction, mechanism: .tcx)
        let pin = "\(yardsticks.layout.links)/sink-\(index(device))-\(direction == .ingress ? "in" : "out")"
        try attachment.attach(device == Self.tunnel ? sinks.tunnel : sinks.ethernet, pin: pin)
        attached.append((attachment, pin))
    }

    private func plan(_ cluster: Cluster, isDirect: Bool) -> SteeringPlan {
        func device(_ family: AddressFamily) -> DataplaneConfig.Device {
            .init(
                interface: index(Self.tunnel), listeningPort: family == .ipv4 ? 51820 : 51821,
                address: Self.tunnelAddress(family), mtu: UInt16(Self.mtu),
                maximumSegment: UInt16(Self.mtu) - (family == .ipv4 ? 40 : 60))
        }
        var plan = SteeringPlan(
            config: DataplaneConfig(
                ipv4: device(.ipv4), ipv6: device(.ipv6), firewallMark: 0x2000_0000, isDirect: isDirect))
        plan.config.checksSources = true
        plan.config.vxlanPorts = [4789, 8472]
        var devices: [AddressFamily: RoutingPlan.Device] = [:]
        for family in AddressFamily.allCases {
            devices[family] = .init(
                names: [Self.tunnel], interface: index(Self.tunnel), listeningPort: family == .ipv4 ? 51820 : 51821,
                otherPort: 0)
            plan.routes[Self.pool(family)] = .pool
            if let own = Self.block(family, 0) { plan.routes[own] = .local }
            plan.locals[Self.podAddress(family)] = LocalAddress(
                kind: .pod, interface: index(Self.podDevice), mtu: UInt16(Self.mtu),
                farEnd: DataplaneFeatures.countsAtFarEnds ? farEnd : nil)
            plan.locals[Self.tunnelAddress(family)] = LocalAddress(kind: .tunnel)
            for number in 1...cluster.nodes {
                let key = PeerSlotKey(node: "node\(number)", family: family)
                let endpoint = IPAddress(
                    family: family, bits: (family == .ipv4 ? 0x0a01_0000 : UInt128(0xfd01) << 112) + UInt128(number))
                plan.peers[key] = PeerSteering(
                    publicKey: nil, endpoints: [Endpoint(address: endpoint, port: 51820)], action: .tunnel,
                    lanes: [index(Self.tunnel)])
                if let block = Self.block(family, number) { plan.routes[block] = .peer(key) }
            }
        }
        plan.routing = RoutingPlan(
            priority: 99, tables: [1...250], devices: devices, podPrefixes: ["cali"], makesExceptions: false)
        plan.checkedInterfaces = [index(Self.podDevice)]
        plan.hooks = [
            HookPoint(hook: .toWireGuard, interface: index(Self.tunnel), device: Self.tunnel, isEthernet: false),
            HookPoint(hook: .fromWireGuard, interface: index(Self.tunnel), device: Self.tunnel, isEthernet: false),
            HookPoint(hook: .toUplink, interface: index("eth0"), device: "eth0", isEthernet: true),
            HookPoint(hook: .fromUplink, interface: index("eth0"), device: "eth0", isEthernet: true),
            HookPoint(hook: .fromPod, interface: index(Self.podDevice), device: Self.podDevice, isEthernet: true),
        ]
        return plan
    }
}
