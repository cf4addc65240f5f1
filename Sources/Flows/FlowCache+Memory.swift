// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Model

/// What records have told, kept from one agent to the next, so that no packet is told of twice or never.
extension FlowCache {
    private static let magic: [UInt8] = Array("wgplane flows 2\n".utf8)

    /// For a file; numbers are big-endian. Flows that no record has told of are left out.
    public var memory: [UInt8] {
        var bytes = Self.magic
        bytes.reserveCapacity(told.count * 110)
        for (name, entry) in told where entry.packets + entry.reversePackets > 0 {
            bytes.append(name.source.family.rawValue)
            name.source.append(to: &bytes)
            name.destination.append(to: &bytes)
            IPFIX.append(name.sourcePort, to: &bytes)
            IPFIX.append(name.destinationPort, to: &bytes)
            bytes.append(name.transport)
            IPFIX.append(name.interface, to: &bytes)
            IPFIX.append(entry.packets, to: &bytes)
            IPFIX.append(entry.bytes, to: &bytes)
            IPFIX.append(entry.reversePackets, to: &bytes)
            IPFIX.append(entry.reverseBytes, to: &bytes)
            IPFIX.append(entry.at, to: &bytes)
            IPFIX.append(entry.last, to: &bytes)
        }
        return bytes
    }

    /// Takes over what an earlier one has told; false: these bytes are none of it, or cut off.
    @discardableResult public mutating func remember(_ memory: [UInt8]) -> Bool {
        guard memory.starts(with: Self.magic) else { return false }
        var rest = memory[Self.magic.count...]
        func take(_ count: Int) -> [UInt8]? {
            guard rest.count >= count else { return nil }
            defer { rest = rest.dropFirst(count) }
            return Array(rest.prefix(count))
        }
        func number(_ width: Int) -> UInt64? { take(width).map { $0.reduce(0) { $0 << 8 | UInt64($1) } } }
        var found: [FlowKey: Told] = [:]
        while !rest.isEmpty {
            guard let family = number(1).flatMap({ AddressFamily(rawValue: UInt8($0)) }),
                let source = take(family == .ipv4 ? 4 : 16).flatMap({ IPAddress(bytes: $0) }),
                let destination = take(family == .ipv4 ? 4 : 16).flatMap({ IPAddress(bytes: $0) }),
                let ports = number(4), let transport = number(1), let interface = number(4), let packets = number(8),
                let bytes = number(8),
                let reversePackets = number(8), let reverseBytes = number(8), let at = number(8), let last = number(8)
            else { return false }
            let name = FlowKey(
                source: source, destination: destination, sourcePort: UInt16(ports >> 16),
                destinationPort: UInt16(ports & 0xffff), transport: UInt8(transport), interface: UInt32(interface))
            found[name] = Told(
                packets: packets, bytes: bytes, reversePackets: reversePackets, reverseBytes: reverseBytes, at: at,
                last: last)
        }
        told = found
        return true
    }
}
