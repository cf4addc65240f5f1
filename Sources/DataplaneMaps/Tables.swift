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

    func delete(_ address: IPAddress) throws(BPFError) {
        if address.family == .ipv4 {
            try ipv4.delete(.init(address))
        } else {
            try ipv6.delete(.init(address))
        }
    }

    func entries() throws(BPFError) -> [(IPAddress, Value)] {
        try ipv4.entries().map { ($0.key.model, $0.value) } + ipv6.entries().map { ($0.key.model, $0.value) }
    }
}

/// What an address of this node is, and by which device it is reached.
public struct LocalAddress: Sendable, Hashable, Codable {
    public var kind: LocalKind
    /// Host-side device of a pod; 0: unknown.
    public var interface: UInt32
    /// Of that device; 0: unknown.
    public var mtu: UInt16

    public init(kind: LocalKind, interface: UInt32 = 0, mtu: UInt16 = 0) {
        self.kind = kind
        self.interface = interface
        self.mtu = mtu
    }
}

/// Addresses of this node: its pods', its own, the WireGuard devices'.
public struct LocalTable: Sendable {
    let table: AddressTable<wgp_local>

    init(_ source: some MapSource) throws(BPFError) { table = try AddressTable(source, "locals") }

    public func update(_ address: IPAddress, _ local: LocalAddress) throws(BPFError) {
        try table.update(
            address, wgp_local(ifindex: local.interface, kind: local.kind.rawValue, pad: 0, mtu: local.mtu))
    }

    public func delete(_ address: IPAddress) throws(BPFError) { try table.delete(address) }

    public func entries() throws(BPFError) -> [IPAddress: LocalAddress] {
        var result: [IPAddress: LocalAddress] = [:]
        for (address, value) in try table.entries() {
            guard let kind = LocalKind(rawValue: value.kind) else { continue }
            result[address] = LocalAddress(kind: kind, interface: value.ifindex, mtu: value.mtu)
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
