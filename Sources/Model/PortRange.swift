// SPDX-License-Identifier: Apache-2.0

/// Ports of one transport protocol, both ends included.
public struct PortRange: Sendable, Hashable, Codable, CustomStringConvertible, LosslessStringConvertible {
    /// IP protocol number.
    public var transport: UInt8
    public var ports: ClosedRange<UInt16>

    public init(transport: UInt8, ports: ClosedRange<UInt16>) {
        self.transport = transport
        self.ports = ports
    }

    /// Reads `tcp:6443` or `udp:8000:8100`.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", maxSplits: 1).map(String.init)
        guard parts.count == 2, let transport: UInt8 = ["tcp": 6, "udp": 17][parts[0].lowercased()],
            let ports = Self.ports(parts[1])
        else { return nil }
        self.init(transport: transport, ports: ports)
    }

    /// Reads `6443` or `8000:8100`; nil for 0, a foreign character, or a range that ends before it begins.
    public static func ports(_ text: String) -> ClosedRange<UInt16>? {
        let ends = text.split(separator: ":", omittingEmptySubsequences: false).map { UInt16($0) }
        guard (1...2).contains(ends.count), let first = ends[0], let last = ends[ends.count - 1], first > 0,
            first <= last
        else { return nil }
        return first...last
    }

    /// `tcp:6443`, `udp:8000:8100`.
    public var description: String {
        let name = transport == 6 ? "tcp" : transport == 17 ? "udp" : "\(transport)"
        return ports.count == 1 ? "\(name):\(ports.lowerBound)" : "\(name):\(ports.lowerBound):\(ports.upperBound)"
    }
}
