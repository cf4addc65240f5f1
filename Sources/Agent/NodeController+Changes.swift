// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import DesiredState
internal import Logging
internal import Model
internal import Netlink
internal import Steering
internal import WireGuard

/// Changes of a device in use: its port, its mark, its name, what makes it.
extension NodeController {
    /// How long packets with the port or mark before are taken for WireGuard's.
    static let changeTime = Duration.seconds(5)

    /// Notes which devices are about to change their port or mark. Returns whether one is.
    func beginChanges(_ plan: NodePlan, _ now: ContinuousClock.Instant) -> Bool {
        var begins = false
        if let former = formerMark, former.until <= now { formerMark = nil }
        for (family, state) in families {
            if let former = state.formerPort, former.until <= now { families[family]?.formerPort = nil }
            guard let device = state.device else {
                noteEarlier(family, state, plan, now)
                continue
            }
            if state.deviceName != state.settings.interfaceName { begins = true }
            if device.listeningPort != 0, device.listeningPort != state.settings.listeningPort {
                families[family]?.formerPort = (device.listeningPort, now + Self.changeTime)
                begins = true
            }
            if device.firewallMark != 0, device.firewallMark != plan.settings.firewallMark {
                formerMark = (device.firewallMark, now + Self.changeTime)
                begins = true
            }
        }
        return begins
    }

    /// A device that an earlier agent has made, which is about to be looked at: what it has now is the former.
    private func noteEarlier(
        _ family: AddressFamily, _ state: FamilyState, _ plan: NodePlan, _ now: ContinuousClock.Instant
    ) {
        guard let (_, found) = try? BackendSelection.state(device: state.deviceName) else { return }
        if found.listeningPort != 0, found.listeningPort != state.settings.listeningPort {
            families[family]?.formerPort = (found.listeningPort, now + Self.changeTime)
        }
        if found.firewallMark != 0, found.firewallMark != plan.settings.firewallMark {
            formerMark = (found.firewallMark, now + Self.changeTime)
        }
    }

    /// The port that a device has, and beside it the one that it had or will have.
    func ports(_ state: FamilyState) -> (now: UInt16, other: UInt16) {
        guard let device = state.device, device.listeningPort != 0 else { return (state.settings.listeningPort, 0) }
        if device.listeningPort != state.settings.listeningPort {
            return (device.listeningPort, state.settings.listeningPort)
        }
        return (device.listeningPort, state.formerPort?.port ?? 0)
    }

    /// Gives a device the name that the settings say, and has it made by the backend that they say: by
    /// renaming where the kernel lets that be, else by another device with its key and peers.
    func moveDevice(
        _ state: inout FamilyState, _ backend: any WireGuardBackend, _ manager: DeviceManager, mtu: UInt32, mark: UInt32
    ) throws {
        let name = state.settings.interfaceName
        guard let kind = try BackendSelection.kind(device: state.deviceName) else {
            // There is nothing to move.
            state.deviceName = name
            return
        }
        if state.deviceName == name, kind == backend.kind { return }
        if kind == backend.kind, kind == .kernel, try manager.rename(state.deviceName, to: name) {
            logger.notice("device is renamed", metadata: ["from": "\(state.deviceName)", "to": "\(name)"])
        } else {
            logger.notice(
                "device is replaced",
                metadata: ["from": "\(state.deviceName)", "to": "\(name)", "backend": "\(backend.kind.rawValue)"])
            try manager.replace(
                state.deviceName, madeBy: try BackendSelection.backend(kind), with: name, mtu: mtu, mark: mark)
            state.peers.deviceWasReplaced(now: .now)
        }
        state.deviceName = name
    }

    /// Has the devices' packets taken by kernel threads of their own, or not. What the kernel refuses is told
    /// until it is otherwise, and tried again only when peers or the setting change.
    func setThreading(_ plan: NodePlan, _ problems: inout [Problem]) {
        for (_, state) in families.sorted(by: { $0.key < $1.key }) {
            guard let device = state.device, state.drainingUntil == nil else { continue }
            // Without a peer there is nothing that a thread could take.
            guard !device.peers.isEmpty else { continue }
            let attempt = "\(device.interface) \(plan.settings.isThreaded) \(device.peers.count)"
            var refusal: String?
            if threadingRefused.contains(attempt) {
                refusal = "as before"
            } else {
                refusal = DeviceManager.setThreading(device.name, plan.settings.isThreaded)
                if refusal != nil { threadingRefused = [attempt] }
            }
            guard refusal != nil, plan.settings.isThreaded else { continue }
            problems.append(
                Problem(
                    .warning, resource: "Device/\(device.name)", field: "threaded", value: "1",
                    message: "is refused by the kernel, and packets are taken as before",
                    remedy: "kernel 5.12 has threads for a device's packets, and the kernel's WireGuard takes them; "
                        + "else set wireguardThreadingEnabled to false"))
        }
    }
}
