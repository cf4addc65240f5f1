// SPDX-License-Identifier: Apache-2.0

public import Addresses

/// A WireGuard device as it is.
public struct DeviceState: Sendable, Hashable {
    public var name: String
    /// 0 where the backend does not say.
    public var interface: UInt32
    /// Nil: it has no private key yet.
    public var publicKey: PublicKey?
    public var listeningPort: UInt16
    public var firewallMark: UInt32
    public var peers: [PublicKey: PeerState]

    public init(
        name: String, interface: UInt32, publicKey: PublicKey? = nil, listeningPort: UInt16, firewallMark: UInt32,
        peers: [PublicKey: PeerState]
    ) {
        self.name = name
        self.interface = interface
        self.publicKey = publicKey
        self.listeningPort = listeningPort
        self.firewallMark = firewallMark
        self.peers = peers
    }
}

extension DeviceState {
    /// A clock that is so many seconds behind harms nobody: a session lives for 180 seconds, and is renewed after 120
    /// (WireGuard, section 6.1). One of up to three minutes can be harmless too.
    public static let harmlessLead: Int64 = 60

    /// Seconds by which the newest handshake lies ahead of `now` (Unix time, seconds); 0: it does not.
    ///
    /// A peer keeps the time at which an initiator has begun its last handshake, and refuses one that has begun earlier
    /// (TAI64N, section 5.4.2): where this is more than `harmlessLead`, the device can answer handshakes, and for as long
    /// begin none.
    public func handshakeLead(_ now: Int64) -> Int64 {
        max(0, (peers.values.compactMap(\.lastHandshake).max() ?? now) - now)
    }
}

/// A peer as the device has it.
public struct PeerState: Sendable, Hashable {
    public var endpoint: Endpoint?
    public var allowedIPs: Set<CIDR>
    /// Seconds, 0: off.
    public var keepAlive: UInt16
    /// Unix time of the last handshake in seconds; nil: never.
    public var lastHandshake: Int64?
    public var receivedBytes: UInt64
    public var sentBytes: UInt64

    public init(
        endpoint: Endpoint? = nil, allowedIPs: Set<CIDR>, keepAlive: UInt16, lastHandshake: Int64? = nil,
        receivedBytes: UInt64, sentBytes: UInt64
    ) {
        self.endpoint = endpoint
        self.allowedIPs = allowedIPs
        self.keepAlive = keepAlive
        self.lastHandshake = lastHandshake
        self.receivedBytes = receivedBytes
        self.sentBytes = sentBytes
    }
}

/// A change of a device: nil leaves a property as it is.
public struct DeviceChange: Sendable {
    public var privateKey: PrivateKey?
    public var listeningPort: UInt16?
    public var firewallMark: UInt32?
    public var peers: [PeerChange]

    public init(
        privateKey: PrivateKey? = nil, listeningPort: UInt16? = nil, firewallMark: UInt32? = nil,
        peers: [PeerChange] = []
    ) {
        self.privateKey = privateKey
        self.listeningPort = listeningPort
        self.firewallMark = firewallMark
        self.peers = peers
    }
}

/// A change of one peer. An allowed IP that another peer has moves to this one.
public struct PeerChange: Sendable, Hashable {
    public var publicKey: PublicKey
    /// Removes the peer; all else is ignored.
    public var remove = false
    /// Only when the peer is there; never makes one.
    public var updateOnly = false
    public var endpoint: Endpoint?
    public var keepAlive: UInt16?
    /// The allowed IPs become exactly `allowedIPs`; otherwise those are added.
    public var replaceAllowedIPs = false
    public var allowedIPs: [CIDR] = []
    /// Taken from this peer; the others stay as they are all the while. Name only what the peer
    /// has: before Linux 6.16 and with wireguard-go it would be taken from another one that has it.
    /// What the same change adds to a peer stays.
    public var removedAllowedIPs: [CIDR] = []

    public init(_ publicKey: PublicKey) { self.publicKey = publicKey }
}

/// The two implementations, for people and status.
public enum BackendKind: String, Sendable, Hashable, Codable {
    case kernel
    case userspace
}

/// What went wrong with a WireGuard device.
public enum WireGuardError: Error, CustomStringConvertible, Sendable {
    /// The kernel has no WireGuard and no program that replaces it was found.
    case unsupported(String)
    /// A device of the name is there, and is of another kind.
    case wrongKind(device: String, kind: String)
    /// The program did not come up, or answered with an error (`errno=` of the UAPI).
    case userspace(device: String, String)
    case noDevice(String)

    public var description: String {
        switch self {
        case .unsupported(let reason):
            "no WireGuard: \(reason); load the module wireguard, or install wireguard-go"
        case .wrongKind(let device, let kind):
            "device \(device) is there and is no WireGuard device but \(kind.isEmpty ? "a plain one" : kind); "
                + "delete it, or give the device another name (wireguardInterfaceName)"
        case .userspace(let device, let text): "wireguard-go for \(device): \(text)"
        case .noDevice(let device): "there is no WireGuard device \(device)"
        }
    }
}

/// One way to have WireGuard devices. Calls block: use it on a `KernelQueue`.
public protocol WireGuardBackend {
    var kind: BackendKind { get }
    /// Makes the device, without key, address or peers, and not up; adopts one that is there.
    func create(device: String, mtu: UInt32) throws
    /// Nil when there is no such device.
    func state(device: String) throws -> DeviceState?
    /// The private key, to hand to another device; nil when the device has none, or there is no such device.
    func privateKey(device: String) throws -> PrivateKey?
    func apply(_ change: DeviceChange, to device: String) throws
    /// Deletes the device; what is not there is no error.
    func delete(device: String) throws
}
