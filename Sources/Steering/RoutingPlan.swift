// SPDX-License-Identifier: Apache-2.0

public import Model

/// What route mode needs to know beside peers and prefixes.
public struct RoutingPlan: Sendable, Hashable {
    /// Of the routing rule.
    public var priority: UInt32
    /// Tables that may be taken.
    public var tables: [ClosedRange<UInt32>]
    /// Name and ports of each family's device.
    public var devices: [AddressFamily: Device]
    /// How pods' devices are named.
    public var podPrefixes: [String]
    /// That the kernel routes to a device of this node, inside pools.
    public var localAddresses: Set<IPAddress> = []
    /// The node's firewall gets exceptions where it would drop WireGuard's packets.
    public var makesExceptions: Bool

    public struct Device: Sendable, Hashable {
        /// The device's name, and the one that it is about to have.
        public var names: [String]
        public var interface: UInt32
        public var listeningPort: UInt16
        /// While the port changes, the other one; 0: none.
        public var otherPort: UInt16

        public init(names: [String], interface: UInt32, listeningPort: UInt16, otherPort: UInt16) {
            self.names = names
            self.interface = interface
            self.listeningPort = listeningPort
            self.otherPort = otherPort
        }
    }

    public init(
        priority: UInt32, tables: [ClosedRange<UInt32>], devices: [AddressFamily: Device], podPrefixes: [String],
        makesExceptions: Bool
    ) {
        self.priority = priority
        self.tables = tables
        self.devices = devices
        self.podPrefixes = podPrefixes
        self.makesExceptions = makesExceptions
    }
}
