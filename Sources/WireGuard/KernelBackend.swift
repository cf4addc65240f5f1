// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
internal import Model
internal import Netlink

/// The kernel's WireGuard: generic netlink family `wireguard` (`<linux/wireguard.h>`).
public final class KernelBackend: WireGuardBackend {
    public let kind = BackendKind.kernel
    private let generic: GenericSession
    private let route: RouteSession

    /// In the calling thread's network namespace; throws `.noFamily` where the kernel has none.
    public init() throws {
        generic = try GenericSession(WG_GENL_NAME, version: UInt8(WG_GENL_VERSION))
        route = try RouteSession()
    }

    /// Whether a device can be made: with its own kind of link, which loads the module.
    public static func isAvailable() -> Bool {
        if (try? GenericSession(WG_GENL_NAME, version: UInt8(WG_GENL_VERSION))) != nil { return true }
        guard let route = try? RouteSession() else { return false }
        let probe = "wgplane-probe"
        guard (try? route.createLink(named: probe, kind: "wireguard")) != nil else { return false }
        try? route.deleteLink(named: probe)
        return true
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

    public func state(device: String) throws -> DeviceState? {
        let messages: [NetlinkAttributes]
        do {
            messages = try generic.dump("read device \(device)", command: WG_CMD_GET_DEVICE.rawValue) {
                $0.attribute(WGDEVICE_A_IFNAME.rawValue, text: device)
            }
        } catch {
            if error.errno == ENODEV || error.errno == EOPNOTSUPP { return nil }
            throw error
        }
        var state = DeviceState(name: device, interface: 0, listeningPort: 0, firewallMark: 0, peers: [:])
        for message in messages { WireGuardMessages.merge(message, into: &state) }
        return state
    }

    public func apply(_ change: DeviceChange, to device: String) throws {
        for part in WireGuardMessages.parts(of: change) {
            try generic.acknowledge("configure device \(device)", command: WG_CMD_SET_DEVICE.rawValue) {
                WireGuardMessages.encode(part, device: device, into: &$0)
            }
        }
    }
}
