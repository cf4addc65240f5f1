// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI
public import Model

/// One of two maps by family, keyed by address.
struct AddressTable<Value: BitwiseCopyable & Sendable>: Sendable {
    let ipv4: BPFMap<wgp_address4, Value>
    let ipv6: BPFMap<wgp_address6, Value>

    init(_ source: some MapSource, _ name: String) throws(BPFError) {
        ipv4 = try source.open(name + "4")
        ipv6 = try source.open(name + "6")
    }

    func lookup(_ address: IPAddress) throws(BPFError) -> Value? {
        address.family == .ipv4 ? try ipv4.lookup(.init(address)) : try ipv6.lookup(.init(address))
    }

    func update(_ address: IPAddress, _ value: Value) throws(BPFError) {
        if address.family == .ipv4 {
            try ipv4.update(.init(address), value)
        } else {
            try ipv6.update(.init(address), value)
        }
    }

    func update(_ entries: [(IPAddress, Value)]) throws(BPFError) {
        try ipv4.update(entries.filter { $0.0.family == .ipv4 }.map { (key: .init($0.0), value: $0.1) })
        try ipv6.update(entries.filter { $0.0.family == .ipv6 }.map { (key: .init($0.0), value: $0.1) })
    }

    func delete(_ address: IPAddress) throws(BPFError) {
        if address.family == .ipv4 {
            try ipv4.delete(.init(address))
        } else {
            try ipv6.delete(.init(address))
        }
    }

    func entries() throws(BPFError) -> [(IPAddress, Value)] {
        try ipv4.decoded { ($0.model, $1) } + ipv6.decoded { ($0.model, $1) }
    }
}

extension BPFMap {
    /// All entries as `decode` makes them. Where the types are known, several times as fast as `entries`.
    /// Those of which it makes nil are left out; `decode` may be called once more for each.
    @inline(__always) func decoded<Entry>(_ decode: (Key, Value) -> Entry?) throws(BPFError) -> [Entry] {
        var result: [Entry] = []
        let isWhole = try unsafe withBatches { keys, values, count in
            for index in 0..<count {
                let key = unsafe keys.loadUnaligned(fromByteOffset: index * MemoryLayout<Key>.size, as: Key.self)
                let value = unsafe values.loadUnaligned(
                    fromByteOffset: index * MemoryLayout<Value>.size, as: Value.self)
                if let entry = decode(key, value) { result.append(entry) }
            }
        }
        return isWhole ? result : try entries().compactMap { decode($0.key, $0.value) }
    }
}

/// What an address of this node is, and by which device it is reached.
public struct LocalAddress: Sendable, Hashable, Codable {
    public var kind: LocalKind
    /// Host-side device of a pod; 0: unknown.
    public var interface: UInt32
    /// Of that device; 0: unknown.
    public var mtu: UInt16
    /// Nil: packets go by the pod's device. Else they are handed to the far end of its veth pair at once.
    public var farEnd: FrameAddresses?

    public init(kind: LocalKind, interface: UInt32 = 0, mtu: UInt16 = 0, farEnd: FrameAddresses? = nil) {
        self.kind = kind
        self.interface = interface
        self.mtu = mtu
        self.farEnd = farEnd
    }
}

/// What an Ethernet frame begins with.
public struct FrameAddresses: Sendable, Hashable, Codable {
    /// Destination and source, six bytes each.
    public let bytes: [UInt8]

    /// Nil: one of them is none of Ethernet's.
    public init?(destination: [UInt8], source: [UInt8]) {
        guard destination.count == 6, source.count == 6 else { return nil }
        bytes = destination + source
    }

    public var destination: [UInt8] { Array(bytes.prefix(6)) }

    /// `02:00:00:00:00:01`, of the destination.
    public var destinationText: String {
        destination.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
    }
}

/// Addresses of this node: its pods', its own, the WireGuard devices'.
public struct LocalTable: Sendable {
    let table: AddressTable<wgp_local>

    init(_ source: some MapSource) throws(BPFError) { table = try AddressTable(source, "locals") }

    public func update(_ address: IPAddress, _ local: LocalAddress) throws(BPFError) {
        var entry = wgp_local()
        (entry.ifindex, entry.kind, entry.mtu) = (local.interface, local.kind.rawValue, local.mtu)
        if let frame = local.farEnd {
            entry.flags = UInt8(WGP_LOCAL_FAR_END.rawValue)
            entry = value(memory(of: entry).prefix(8) + frame.bytes)
        }
        try table.update(address, entry)
    }

    public func delete(_ address: IPAddress) throws(BPFError) { try table.delete(address) }

    public func entries() throws(BPFError) -> [IPAddress: LocalAddress] {
        var result: [IPAddress: LocalAddress] = [:]
        for (address, value) in try table.entries() {
            guard let kind = LocalKind(rawValue: value.kind) else { continue }
            var local = LocalAddress(kind: kind, interface: value.ifindex, mtu: value.mtu)
            if value.flags & UInt8(WGP_LOCAL_FAR_END.rawValue) != 0 {
                let link = memory(of: value.link)
                local.farEnd = FrameAddresses(destination: Array(link[..<6]), source: Array(link[6...]))
            }
            result[address] = local
        }
        return result
    }
}

/// Outer addresses that may speak WireGuard to this node, and whose they are.
public struct EndpointTable: Sendable {
    let table: AddressTable<wgp_endpoint>

    init(_ source: some MapSource) throws(BPFError) { table = try AddressTable(source, "endpoints") }

    public func update(_ endpoint: Endpoint, slot: Int) throws(BPFError) {
        try table.update(endpoint.address, wgp_endpoint(slot: UInt32(slot), port: endpoint.port.bigEndian, pad: 0))
    }

    public func delete(_ address: IPAddress) throws(BPFError) { try table.delete(address) }

    public func entries() throws(BPFError) -> [IPAddress: (endpoint: Endpoint, slot: Int)] {
        var result: [IPAddress: (endpoint: Endpoint, slot: Int)] = [:]
        for (address, value) in try table.entries() {
            result[address] = (Endpoint(address: address, port: UInt16(bigEndian: value.port)), Int(value.slot))
        }
        return result
    }
}
