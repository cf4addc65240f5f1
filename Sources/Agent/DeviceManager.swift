// SPDX-License-Identifier: Apache-2.0

internal import Glibc
internal import Logging
import Model
import Netlink
import SystemDescriptors
import WireGuard

/// One family's WireGuard device: makes it, adopts it, keeps its properties.
struct DeviceManager {
    let family: AddressFamily
    let backend: any WireGuardBackend
    private let route: RouteSession
    private let logger: Logger

    init(family: AddressFamily, backend: any WireGuardBackend, route: RouteSession, logger: Logger) {
        self.family = family
        self.backend = backend
        self.route = route
        self.logger = logger
    }

    /// Told by its alias, a device is ours, whatever its name.
    static let alias = "wgplane"

    /// Names of the devices that are ours, and of those of the given names that are there.
    static func ownDevices(_ session: RouteSession, named names: [String]) throws -> [String] {
        try session.links().filter { $0.alias == alias || names.contains($0.name) }.map(\.name).sorted()
    }

    /// Renames a device that is up; false where the kernel (before 6.2) wants it down for that.
    func rename(_ name: String, to new: String) throws -> Bool {
        guard let link = try route.link(named: name) else { return false }
        do {
            try route.setLink(link.index, name: new)
            return true
        } catch {
            if error.errno == EBUSY { return false }
            throw error
        }
    }

    /// Another device takes a device's place, with its key and peers: as much as can be is made before the
    /// old one goes. What is steered into the new one waits there until its peers have shaken hands; route
    /// mode's routes go with the old one, and are made anew in the same pass.
    func replace(
        _ old: String, madeBy maker: any WireGuardBackend, with new: String, mtu: UInt32, mark: UInt32
    ) throws {
        guard let before = try maker.state(device: old), let key = try maker.privateKey(device: old) else {
            throw WireGuardError.noDevice(old)
        }
        var change = DeviceChange(privateKey: key, firewallMark: mark)
        for (key, peer) in before.peers.sorted(by: { $0.key < $1.key }) {
            var copy = PeerChange(key)
            copy.endpoint = peer.endpoint
            copy.allowedIPs = peer.allowedIPs.sorted()
            copy.keepAlive = peer.keepAlive
            change.peers.append(copy)
        }
        guard backend.kind == .kernel else {
            // A program of its own: the port and the name must be free before it starts.
            try maker.delete(device: old)
            try backend.create(device: new, mtu: mtu)
            return try backend.apply(change, to: new)
        }
        let temporary = old == new ? "wgplane\(family == .ipv4 ? 4 : 6)new" : new
        if let there = try route.link(named: temporary) {
            // One that was not finished; never somebody else's.
            guard there.alias == Self.alias else {
                throw WireGuardError.wrongKind(device: temporary, kind: "\(there.kind) of somebody else")
            }
            try backend.delete(device: temporary)
        }
        try backend.create(device: temporary, mtu: mtu)
        if let made = try route.link(named: temporary) { try route.setLink(made.index, alias: Self.alias) }
        try backend.apply(change, to: temporary)
        try maker.delete(device: old)
        guard temporary != new, let link = try route.link(named: temporary) else { return }
        try route.setLink(link.index, name: new)
    }

    /// Writes `threaded` of a device; returns why not.
    static func setThreading(_ device: String, _ isOn: Bool) -> String? {
        let path = "/sys/class/net/\(device)/threaded"
        guard let bytes = try? readFile(path) else { return isOn ? "this kernel has no threads for it" : nil }
        let wanted = isOn ? "1" : "0"
        if String(decoding: bytes, as: UTF8.self).hasPrefix(wanted) { return nil }
        do {
            try writeExistingFile(path, wanted)
            return nil
        } catch {
            return "\(error)"
        }
    }

    /// The device with key, port, mark, MTU and up. A device that is there keeps its key. `seen`: as it was a moment
    /// ago.
    func ensure(_ settings: DeviceSettings, mtu: UInt32, mark: UInt32, seen: DeviceState? = nil) throws -> DeviceState {
        let name = settings.interfaceName
        try backend.create(device: name, mtu: mtu)
        let isSame = try seen != nil && route.link(named: name)?.index == seen?.interface
        guard var state = isSame ? seen : try backend.state(device: name) else { throw WireGuardError.noDevice(name) }
        var change = DeviceChange()
        if state.publicKey == nil {
            let key = PrivateKey.generate()
            change.privateKey = key
            state.publicKey = key.publicKey
            logger.info("new WireGuard key", metadata: ["device": "\(name)"])
        }
        if state.listeningPort != settings.listeningPort { change.listeningPort = settings.listeningPort }
        if state.firewallMark != mark { change.firewallMark = mark }
        if change.privateKey != nil || change.listeningPort != nil || change.firewallMark != nil {
            try backend.apply(change, to: name)
            state.listeningPort = settings.listeningPort
            state.firewallMark = mark
        }
        guard let link = try route.link(named: name) else { throw WireGuardError.noDevice(name) }
        state.interface = link.index
        if link.alias != Self.alias { try route.setLink(link.index, alias: Self.alias) }
        if !link.isUp {
            // Decrypted packets come from addresses that no route here leads back to.
            try setting("ipv4", name, "rp_filter", "2")
            if family == .ipv4 {
                try setting("ipv6", name, "disable_ipv6", "1")
            } else {
                try setting("ipv6", name, "addr_gen_mode", "1")
            }
        }
        if !link.isUp || link.mtu != mtu {
            try route.setLink(link.index, up: link.isUp ? nil : true, mtu: link.mtu == mtu ? nil : mtu)
        }
        return state
    }

    /// Gives the device this address alone.
    func setAddress(_ address: IPAddress, interface: UInt32, present: [LinkAddress]) throws {
        let own = present.filter { $0.index == interface && !$0.address.isLinkLocal }
        if !own.contains(where: { $0.address == address }) {
            try route.addAddress(address, prefixLength: family.bitWidth, index: interface)
        }
        for other in own where other.address != address {
            try route.deleteAddress(other.address, prefixLength: other.prefixLength, index: interface)
        }
    }

    private func setting(_ family: String, _ device: String, _ name: String, _ value: String) throws {
        let path = "\(kernelSettings)/net/\(family)/conf/\(device)/\(name)"
        guard fileExists(path) else { return }
        try writeExistingFile(path, value)
    }
}
