// SPDX-License-Identifier: Apache-2.0

internal import BPF
public import DataplaneMaps
internal import Netlink
internal import Reconciler
internal import SystemDescriptors

/// Taking the programs away.
extension EBPFSteering {
    public mutating func remove() throws {
        try Self.removeAll(layout: layout)
        hooks.adopt([:])
    }

    /// Takes away whatever an agent of any time has left: links, filters, maps. `keepsLock`: strict mode's
    /// second lock is still needed.
    ///
    /// What marks packets for the uplinks goes before what steers them there: a packet that is marked is left to
    /// the programs, and no rule takes it.
    public static func removeAll(layout: PinLayout, keepsLock: Bool = false) throws {
        let links = layout.pinnedLinks()
        for link in links where link.hook == .fromPod { try Attachment.removePin(link.pin) }
        let session = try RouteSession()
        let filtered = try detachFilters(.ingress, session)
        if filtered || links.contains(where: { $0.hook == .fromPod }) { sleepMicroseconds(underWay) }
        for link in links { try Attachment.removePin(link.pin) }
        _ = try detachFilters(.egress, session)
        if keepsLock {
            try layout.remove(except: SecondLock.maps + ["counters"])
        } else {
            try SecondLock.disarm(layout: layout)
            try layout.remove()
        }
    }

    /// What a packet may take from one device to another through the stack, in microseconds.
    private static let underWay: UInt32 = 10_000

    /// Whether there was one.
    private static func detachFilters(_ direction: AttachmentDirection, _ session: RouteSession) throws -> Bool {
        var wasThere = false
        for device in try session.links() {
            let filter = Attachment(interface: device.index, direction: direction, mechanism: .clsact)
            guard try filter.attachedProgram(pin: "") != nil else { continue }
            wasThere = true
            try filter.detach(pin: "")
            try removeIdleQdisc(device.index, session)
        }
        return wasThere
    }

    /// The clsact qdisc goes when nobody, we included, has a filter on it any more.
    static func removeIdleQdisc(_ interface: UInt32, _ session: RouteSession) throws {
        if try session.filterCount(interface: interface) == 0 { try Attachment.removeQdisc(interface: interface) }
    }
}
