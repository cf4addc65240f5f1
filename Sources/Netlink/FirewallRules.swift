// SPDX-License-Identifier: Apache-2.0

public import Addresses

/// What a packet must be for a rule of ours.
public enum FirewallMatch: Sendable, Hashable {
    case family(AddressFamily)
    /// IP protocol number.
    case transport(UInt8)
    case sourcePort(UInt16)
    case destinationPort(UInt16)
    /// Its source, its destination, is an address of this node.
    case sourceIsLocal
    case destinationIsLocal
    /// Its source is no address of the device that it leaves by.
    case sourceIsForeignAtOutput
    case input(String)
    /// A device whose name begins so.
    case inputPrefix(String)
    case output(String)
    /// Somebody listens where it goes.
    case hasListener
}

/// What becomes of it.
public enum FirewallAction: Sendable, Hashable {
    case accept
    /// Ends this chain only.
    case leave
    /// By an address of the device that it leaves by, from one of the ports, at random; ports are for
    /// TCP and UDP only.
    case masquerade(ports: ClosedRange<UInt16>?)
    /// Sets these bits of the mark.
    case mark(UInt32)
    /// Another UDP destination port, without conntrack knowing.
    case destinationPort(UInt16)
}

/// A rule: all matches, then the action.
public struct FirewallRule: Sendable, Hashable {
    /// Says what it is for, in lists of rules; names it within its chain.
    public var comment: String
    public var matches: [FirewallMatch]
    public var action: FirewallAction

    public init(_ comment: String, _ matches: [FirewallMatch], _ action: FirewallAction) {
        self.comment = comment
        self.matches = matches
        self.action = action
    }

    /// nf_tables alone can do it.
    public var needsTables: Bool {
        if case .destinationPort = action { return true }
        return matches.contains(.hasListener)
    }

    /// The one family that it is for; nil: both.
    public var family: AddressFamily? {
        for case .family(let family) in matches { return family }
        return nil
    }
}

/// Where a chain of ours is called from.
public enum FirewallHook: String, Sendable, Hashable, CaseIterable {
    /// Before conntrack.
    case prerouting
    case input
    case output
    case postrouting
}

/// Chains by hook; those without rules are not there.
public typealias FirewallChains = [FirewallHook: [FirewallRule]]
