// SPDX-License-Identifier: Apache-2.0

internal import DesiredState
internal import Logging
internal import Model
internal import SystemDescriptors
internal import WireGuard

/// What a clock that went back does to WireGuard.
extension NodeController {
    /// At the least between two renewals: where two hands set the clock, it goes forward and back.
    private static let renewalPause = Duration.seconds(600)

    /// Peers refuse a key's handshakes that begin before its last one. So where this node's clock was wrong, and was set
    /// right, its key can begin none until that time has come again, and only answer: it gets another, which its peers
    /// learn as after a reboot.
    func renewBurntKeys(_ plan: NodePlan, _ backend: any WireGuardBackend, _ problems: inout [Problem]) {
        let now = wallSeconds()
        for (family, known) in families.sorted(by: { $0.key < $1.key }) where known.drainingUntil == nil {
            let name = known.deviceName
            guard let state = sight?.devices[name], state.publicKey != nil else { continue }
            let lead = state.handshakeLead(now)
            guard lead > DeviceState.harmlessLead else { continue }
            if let hindrance = renewalHindrance(known, plan) {
                problems.append(
                    Problem(
                        .warning, resource: "Clock", field: name,
                        value: "\(AuditKeeper.Result.coarse(lead)) back or more",
                        message:
                            "handshakes of this node's key lie in the future, and peers refuse those that it begins "
                            + "until then; it is not renewed, for \(hindrance)",
                        remedy: "set the clock right; if it is, delete the device, which gives it another key, once "
                            + "the other nodes can learn that"))
                continue
            }
            renewKey(family, state, backend, lead, &problems)
        }
    }

    /// Why another key would be worse than this one; nil: it would not.
    private func renewalHindrance(_ known: FamilyState, _ plan: NodePlan) -> String? {
        if plan.keyPins.choice ?? .disabled != .disabled { return "nodes pin keys (`wgplane trust`)" }
        if datastoreState != "ready" || inventory.ownNode == nil || !publisher.problems.isEmpty {
            return "it cannot be published now"
        }
        if let last = known.keyRenewed, .now - last < Self.renewalPause { return "it was a moment ago" }
        return nil
    }

    private func renewKey(
        _ family: AddressFamily, _ state: DeviceState, _ backend: any WireGuardBackend, _ lead: Int64,
        _ problems: inout [Problem]
    ) {
        var (next, change) = (state, DeviceChange(privateKey: .generate()))
        // Peers made anew have shaken hands with nobody; what is sent to them waits.
        for (key, peer) in state.peers.sorted(by: { $0.key < $1.key }) {
            var (old, new) = (PeerChange(key), PeerChange(key))
            old.remove = true
            (new.endpoint, new.allowedIPs, new.keepAlive) = (peer.endpoint, peer.allowedIPs.sorted(), peer.keepAlive)
            change.peers += [old, new]
            next.peers[key] = PeerState(
                endpoint: peer.endpoint, allowedIPs: peer.allowedIPs, keepAlive: peer.keepAlive, receivedBytes: 0,
                sentBytes: 0)
        }
        do {
            try backend.apply(change, to: state.name)
        } catch {
            // It may have the key, or not: looked at again.
            sight?.devices[state.name] = nil
            problems.append(Self.deviceProblem(error, state.name))
            return
        }
        next.publicKey = change.privateKey?.publicKey
        sight?.devices[state.name] = next
        families[family]?.peers.keyWasRenewed(now: .now)
        families[family]?.keyRenewed = .now
        logger.warning(
            "the clock went back behind handshakes, which peers refuse until then: new WireGuard key",
            metadata: ["device": "\(state.name)", "seconds": "\(lead)"])
    }
}
