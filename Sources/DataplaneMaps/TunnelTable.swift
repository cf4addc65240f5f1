// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model

/// What went into WireGuard's devices, or came out, of one family.
public struct TunnelCount: Sendable, Hashable, Codable {
    /// Segments.
    public var packets: UInt64 = 0
    /// Of IP.
    public var bytes: UInt64 = 0
    /// Of the data messages that carry them, as WireGuard's transfer counters have them.
    public var messageBytes: UInt64 = 0
    /// Bytes of padding and of repeated headers that there may be beside.
    public var slack: UInt64 = 0
}

/// Which way a packet goes through a WireGuard device.
public enum TunnelDirection: String, Sendable, Hashable, Codable, CaseIterable {
    /// To be encrypted.
    case out
    /// Decrypted.
    case `in`
}

/// Per-CPU counters of what is held against WireGuard's own (map `tunnel`).
public struct TunnelTable: Sendable {
    let map: BPFMap<UInt32, wgp_tunnel_count>

    init(_ source: some MapSource) throws(BPFError) { map = try source.open("tunnel") }

    /// The sum over all CPUs.
    public func read(_ direction: TunnelDirection, _ family: AddressFamily) throws(BPFError) -> TunnelCount {
        let index =
            switch (direction, family) {
            case (.out, .ipv4): WGP_TUNNEL_OUT4
            case (.out, .ipv6): WGP_TUNNEL_OUT6
            case (.in, .ipv4): WGP_TUNNEL_IN4
            case (.in, .ipv6): WGP_TUNNEL_IN6
            }
        var sum = TunnelCount()
        for value in try map.lookupPerCPU(index.rawValue) ?? [] {
            sum.packets += value.packets
            sum.bytes += value.bytes
            sum.messageBytes += value.message_bytes
            sum.slack += value.slack
        }
        return sum
    }

    public func readAll() throws(BPFError) -> [(
        direction: TunnelDirection, family: AddressFamily, count: TunnelCount
    )] {
        var result: [(direction: TunnelDirection, family: AddressFamily, count: TunnelCount)] = []
        for direction in TunnelDirection.allCases {
            for family in AddressFamily.allCases {
                result.append((direction, family, try read(direction, family)))
            }
        }
        return result
    }
}
