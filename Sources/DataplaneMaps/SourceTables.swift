// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
internal import SystemDescriptors
public import Model

/// Pods' devices whose sources are checked (map `interfaces`).
public struct InterfaceTable: Sendable {
    let map: BPFMap<UInt32, wgp_interface>

    init(_ source: some MapSource) throws(BPFError) {
        map = try source.open("interfaces")
    }

    /// All addresses of this device's pod are known: no others may send.
    public func update(checked interface: UInt32) throws(BPFError) {
        try map.update(interface, wgp_interface(flags: WGP_INTERFACE_CHECKED.rawValue))
    }

    public func delete(_ interface: UInt32) throws(BPFError) { try map.delete(interface) }

    public func entries() throws(BPFError) -> Set<UInt32> {
        Set(try map.entries().filter { $0.value.flags & WGP_INTERFACE_CHECKED.rawValue != 0 }.map(\.key))
    }
}

/// A prefix that a pod may send from beside its own addresses.
public struct AllowedSource: Sendable, Hashable, Comparable {
    public var interface: UInt32
    public var prefix: CIDR

    public init(interface: UInt32, prefix: CIDR) {
        self.interface = interface
        self.prefix = prefix
    }

    public static func < (a: Self, b: Self) -> Bool { (a.interface, a.prefix) < (b.interface, b.prefix) }
}

/// Those prefixes (maps `allowed_sources4/6`: tries by device and prefix).
public struct AllowedSourceTable: Sendable {
    let ipv4: BPFMap<wgp_source4, UInt32>
    let ipv6: BPFMap<wgp_source6, UInt32>

    init(_ source: some MapSource) throws(BPFError) {
        ipv4 = try source.open("allowed_sources4")
        ipv6 = try source.open("allowed_sources6")
    }

    public func update(_ source: AllowedSource) throws(BPFError) {
        if source.prefix.family == .ipv4 {
            try ipv4.update(.init(source), 1)
        } else {
            try ipv6.update(.init(source), 1)
        }
    }

    public func delete(_ source: AllowedSource) throws(BPFError) {
        if source.prefix.family == .ipv4 {
            try ipv4.delete(.init(source))
        } else {
            try ipv6.delete(.init(source))
        }
    }

    public func entries() throws(BPFError) -> Set<AllowedSource> {
        Set(try ipv4.keys().compactMap(\.model) + ipv6.keys().compactMap(\.model))
    }
}

extension wgp_source4 {
    init(_ source: AllowedSource) {
        self.init(
            prefix_length: 32 + UInt32(source.prefix.prefixLength), ifindex: source.interface,
            address: source.prefix.address.networkOrder32)
    }
    var model: AllowedSource? {
        guard prefix_length >= 32 else { return nil }
        return CIDR(masking: IPAddress(networkOrder32: address), prefixLength: Int(prefix_length) - 32)
            .map { AllowedSource(interface: ifindex, prefix: $0) }
    }
}

extension wgp_source6 {
    init(_ source: AllowedSource) {
        self = value(
            memory(of: 32 + UInt32(source.prefix.prefixLength)) + memory(of: source.interface)
                + source.prefix.address.bytes)
    }
    var model: AllowedSource? {
        guard prefix_length >= 32 else { return nil }
        return CIDR(masking: IPAddress(.ipv6, field: address), prefixLength: Int(prefix_length) - 32)
            .map { AllowedSource(interface: ifindex, prefix: $0) }
    }
}

/// How the second lock takes a prefix (`enum wgp_guard`).
public enum GuardKind: UInt32, Sendable, Hashable, Codable {
    case pool = 1
    case exempt = 2
}

/// Prefixes of strict mode's second lock (maps `guard_prefixes4/6`).
public struct GuardTable: Sendable {
    let ipv4: BPFMap<wgp_prefix4, wgp_guard_prefix>
    let ipv6: BPFMap<wgp_prefix6, wgp_guard_prefix>

    /// The maps are there once a guard program has been loaded.
    public init(_ source: some MapSource) throws(BPFError) {
        ipv4 = try source.open("guard_prefixes4")
        ipv6 = try source.open("guard_prefixes6")
    }

    /// Pins the maps again where somebody has unpinned them.
    public func restorePins(_ layout: PinLayout) throws {
        for map in [ipv4, ipv6] as [any AnyMap] where !fileExists(layout.map(map.name)) {
            try layout.create()
            try map.pin(at: layout.map(map.name))
        }
    }

    public func update(_ prefix: CIDR, _ kind: GuardKind) throws(BPFError) {
        if prefix.family == .ipv4 {
            try ipv4.update(.init(prefix), wgp_guard_prefix(kind: kind.rawValue))
        } else {
            try ipv6.update(.init(prefix), wgp_guard_prefix(kind: kind.rawValue))
        }
    }

    public func delete(_ prefix: CIDR) throws(BPFError) {
        if prefix.family == .ipv4 {
            try ipv4.delete(.init(prefix))
        } else {
            try ipv6.delete(.init(prefix))
        }
    }

    public func entries() throws(BPFError) -> [CIDR: GuardKind] {
        var result: [CIDR: GuardKind] = [:]
        for (key, value) in try ipv4.entries() {
            if let cidr = key.model { result[cidr] = .init(rawValue: value.kind) }
        }
        for (key, value) in try ipv6.entries() {
            if let cidr = key.model { result[cidr] = .init(rawValue: value.kind) }
        }
        return result
    }
}
