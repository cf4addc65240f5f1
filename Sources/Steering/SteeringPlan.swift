// SPDX-License-Identifier: Apache-2.0

public import BPF
public import DataplaneMaps
public import Model

/// One peer's place in the data plane: its family's slot.
public struct PeerSlotKey: Sendable, Hashable, Comparable {
    public var node: String
    public var family: AddressFamily

    public init(node: String, family: AddressFamily) {
        self.node = node
        self.family = family
    }

    public static func < (a: Self, b: Self) -> Bool { a.node == b.node ? a.family < b.family : a.node < b.node }
}

/// How packets to a peer's prefixes go.
public struct PeerSteering: Sendable, Hashable {
    /// Nil: the node has no WireGuard.
    public var publicKey: PublicKey?
    /// Outer addresses that may speak WireGuard to us.
    public var endpoints: Set<Endpoint>
    public var action: DestinationAction
    /// WireGuard devices that carry it.
    public var lanes: [UInt32]

    public init(publicKey: PublicKey?, endpoints: Set<Endpoint>, action: DestinationAction, lanes: [UInt32]) {
        self.publicKey = publicKey
        self.endpoints = endpoints
        self.action = action
        self.lanes = lanes
    }
}

/// Where a route leads.
public enum SteeringTarget: Sendable, Hashable {
    case pool
    case local
    case peer(PeerSlotKey)
}

/// A hook at a device.
public struct HookPoint: Sendable, Hashable, Comparable {
    public var hook: Hook
    public var interface: UInt32
    /// Name, for people.
    public var device: String
    public var isEthernet: Bool

    public init(hook: Hook, interface: UInt32, device: String, isEthernet: Bool) {
        self.hook = hook
        self.interface = interface
        self.device = device
        self.isEthernet = isEthernet
    }

    public var direction: AttachmentDirection {
        [.toUplink, .toWireGuard, .guardOut].contains(hook) ? .egress : .ingress
    }

    public static func < (a: Self, b: Self) -> Bool {
        (a.interface, a.hook.rawValue) < (b.interface, b.hook.rawValue)
    }

    /// Whatever the device is called now.
    public static func == (a: Self, b: Self) -> Bool {
        (a.interface, a.hook, a.isEthernet) == (b.interface, b.hook, b.isEthernet)
    }

    func named(by names: [UInt32: String]) -> HookPoint {
        var point = self
        point.device = names[interface] ?? device
        return point
    }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(interface)
        hasher.combine(hook)
        hasher.combine(isEthernet)
    }
}

/// Everything that the data plane of a node should be.
public struct SteeringPlan: Sendable {
    public var config: DataplaneConfig
    public var peers: [PeerSlotKey: PeerSteering] = [:]
    public var routes: [CIDR: SteeringTarget] = [:]
    /// Beside them.
    public var workloads: WorkloadRoutes?
    public var locals: [IPAddress: LocalAddress] = [:]
    public var hooks: [HookPoint] = []
    /// Pods' devices all of whose addresses are known: no others may send from there.
    public var checkedInterfaces: Set<UInt32> = []
    public var allowedSources: Set<AllowedSource> = []
    /// What route mode needs beside.
    public var routing: RoutingPlan?
    /// Nil: strict mode is off, and there is no second lock.
    public var guardPlan: GuardPlan?
    /// Families of which the plan knows too little now (their device cannot be looked at):
    /// what is in place for them stays.
    public var preserved: Set<AddressFamily> = []

    public init(config: DataplaneConfig) { self.config = config }
}

/// One way to steer packets into WireGuard.
public protocol SteeringBackend {
    /// Makes the data plane what the plan says; returns what could not be done.
    mutating func apply(_ plan: SteeringPlan) throws -> [Problem]
    /// Takes everything away.
    mutating func remove() throws
}
