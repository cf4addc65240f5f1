// SPDX-License-Identifier: Apache-2.0

internal import Model

/// What records have told, kept from one agent to the next, so that no packet is told of twice or never.
extension FlowCache {
    private static let magic: [UInt8] = Array("wgplane flows 1\n".utf8)

    /// For a file; numbers are big-endian. Flows that no record has told of are left out.
    public var memory: [UInt8] {
        var bytes = Self.magic
        bytes.reserveCapacity(told.count * 110)
        for (name, entry) in told where entry.packets + entry.reversePackets > 0 {
            let device = Array(name.device.utf8.prefix(255))
            bytes += [name.source.address.family.rawValue] + name.source.address.bytes + name.destination.address.bytes
            bytes += IPFIX.word(name.source.port) + IPFIX.word(name.destination.port)
            bytes += [name.protocolNumber, UInt8(device.count)] + device
            for number in [
                entry.packets, entry.bytes, entry.reversePackets, entry.reverseBytes, entry.at, entry.last,
            ] { bytes += IPFIX.bytes(number) }
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
        var found: [Biflow.Name: Told] = [:]
        while !rest.isEmpty {
            guard let family = number(1).flatMap({ AddressFamily(rawValue: UInt8($0)) }),
                let source = take(family == .ipv4 ? 4 : 16).flatMap({ IPAddress(bytes: $0) }),
                let destination = take(family == .ipv4 ? 4 : 16).flatMap({ IPAddress(bytes: $0) }),
                let ports = number(4), let transport = number(1), let length = number(1),
                let device = take(Int(length)), let packets = number(8), let bytes = number(8),
                let reversePackets = number(8), let reverseBytes = number(8), let at = number(8), let last = number(8)
            else { return false }
            let name = Biflow.Name(
                source: Endpoint(address: source, port: UInt16(ports >> 16)),
                destination: Endpoint(address: destination, port: UInt16(ports & 0xffff)),
                protocolNumber: UInt8(transport), device: String(decoding: device, as: UTF8.self))
            found[name] = Told(
                packets: packets, bytes: bytes, reversePackets: reversePackets, reverseBytes: reverseBytes, at: at,
                last: last)
        }
        told = found
        return true
    }
}
