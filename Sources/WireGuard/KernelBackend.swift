// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
internal import Addresses
internal import Netlink
internal import SystemDescriptors

/// The kernel's WireGuard: generic netlink family `wireguard` (`<linux/wireguard.h>`).
public final class KernelBackend: WireGuardBackend {
    public let kind = BackendKind.kernel
    private let generic: GenericSession
    private let route: RouteSession
    /// Whether this kernel removes single allowed IPs (`WGALLOWEDIP_F_REMOVE_ME`, Linux 6.16):
    /// nil until it was asked to. One that does not know the flag refuses it with EINVAL.
    public private(set) var removesAllowedIPs: Bool?

    /// In the calling thread's network namespace; throws `.noFamily` where the kernel has none.
    public init() throws {
        generic = try GenericSession(WG_GENL_NAME, version: UInt8(WG_GENL_VERSION))
        route = try RouteSession()
    }

    /// Whether a device can be made: by making one in a network namespace of its own, which loads
    /// the module.
    public static func isAvailable() -> Bool {
        if (try? GenericSession(WG_GENL_NAME, version: UInt8(WG_GENL_VERSION))) != nil { return true }
        let made: Void? = try? inNewNetworkNamespace {
            try RouteSession().createLink(named: "probe", kind: "wireguard")
        }
        return made != nil
    }

    /// Whether this kernel removes single allowed IPs, by trying on a device in a network
    /// namespace of its own. Nil: it has no WireGuard.
    public static func canRemoveAllowedIPs() -> Bool? {
        guard let peer = PrivateKey.generate().publicKey, let host = IPAddress("192.0.2.1") else { return nil }
        let answer = try? inNewNetworkNamespace { () -> Bool? in
            let backend = try KernelBackend()
            try backend.create(device: "probe", mtu: 1420)
            var change = PeerChange(peer)
            change.allowedIPs = [CIDR(host: host)]
            try backend.apply(DeviceChange(peers: [change]), to: "probe")
            change.removedAllowedIPs = change.allowedIPs
            change.allowedIPs = []
            try backend.apply(DeviceChange(peers: [change]), to: "probe")
            return backend.removesAllowedIPs
        }
        return answer ?? nil
    }

    public func create(device: String, mtu: UInt32) throws {
        if let link = try route.link(named: device) {
            guard link.kind == "wireguard" else { throw WireGuardError.wrongKind(device: device, kind: link.kind) }
            return
        }
        try route.createLink(named: device, kind: "wireguard", mtu: mtu)
    }

    public func delete(device: String) throws {
        guard let link = try route.link(named: device), link.kind == "wireguard" else { return }
        try route.deleteLink(named: device)
    }

    /// All that the kernel tells of a device, and its private key, which it tells each time; nil when there is none of
    /// WireGuard's.
    private func read(
        _ device: String
    ) throws(NetlinkError) -> (messages: [NetlinkAttributes], key: GuardedBytes?)? {
        let key = GenericSession.hidden(WGDEVICE_A_PRIVATE_KEY.rawValue)
        do {
            let messages = try generic.dump(
                "read device \(device)", command: WG_CMD_GET_DEVICE.rawValue, hiding: key
            ) {
                $0.attribute(WGDEVICE_A_IFNAME.rawValue, text: device)
            }
            return (messages, key.secret)
        } catch {
            if error.errno == ENODEV || error.errno == EOPNOTSUPP { return nil }
            throw error
        }
    }

    public func state(device: String) throws -> DeviceState? {
        guard let (messages, _) = try read(device) else { return nil }
        var state = DeviceState(name: device, interface: 0, listeningPort: 0, firewallMark: 0, peers: [:])
        for message in messages { WireGuardMessages.merge(message, into: &state) }
        return state
    }

    public func privateKey(device: String) throws -> PrivateKey? {
        try read(device)?.key.flatMap { PrivateKey($0) }
    }

    public func apply(_ change: DeviceChange, to device: String) throws {
        guard change.removesAllowedIPs else { return try send(change, to: device) }
        if removesAllowedIPs != false {
            do {
                try send(change, to: device)
                removesAllowedIPs = true
                return
            } catch {
                // The flag, or something else in the change, which will be refused again. What the
                // kernel had taken of the change before is not harmed by being sent twice.
                guard removesAllowedIPs == nil, error.errno == EINVAL else { throw error }
            }
        }
        try send(change.movingRemovals(), to: device)
        removesAllowedIPs = false
    }

    private func send(_ change: DeviceChange, to device: String) throws(NetlinkError) {
        for part in WireGuardMessages.parts(of: change) {
            try generic.acknowledge("configure device \(device)", command: WG_CMD_SET_DEVICE.rawValue) {
                WireGuardMessages.encode(part, device: device, into: &$0)
            }
        }
    }
}
