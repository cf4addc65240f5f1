// SPDX-License-Identifier: Apache-2.0

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

    /// The device with key, port, mark, MTU and up. A device that is there keeps its key.
    func ensure(_ settings: DeviceSettings, mtu: UInt32, mark: UInt32) throws -> DeviceState {
        let name = settings.interfaceName
        try backend.create(device: name, mtu: mtu)
        guard var state = try backend.state(device: name) else { throw WireGuardError.noDevice(name) }
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
        let path = "/proc/sys/net/\(family)/conf/\(device)/\(name)"
        guard fileExists(path) else { return }
        try writeExistingFile(path, value)
    }
}
