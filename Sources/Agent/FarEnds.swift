// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Model
import Netlink
import SystemDescriptors

/// The far ends of pods' devices, to which decrypted packets may be handed at once (`bpf_redirect_peer`): past the
/// host's end of the veth pair, and past a queue.
///
/// Not where something at the host's end would be passed over that way: a queueing discipline that shapes what a
/// pod gets (CNI's bandwidth plugin), somebody's program; nor where the pod's end has an XDP program, is part of a bridge
/// (a virtual machine's, whose hardware address is another), or answers for its address with another hardware address.
struct FarEnds: Sendable {
    private var known: [UInt32: (link: Link, addresses: FrameAddresses?)] = [:]
    /// Hardware addresses that neighbours at a device have told.
    private var answers: [UInt32: Set<[UInt8]>] = [:]

    /// Finds out what the kernel counts, which takes milliseconds, while other things are done.
    static func prepare() { _ = BackgroundThread { _ = DataplaneFeatures.countsAtFarEnds } }

    /// Looks again at all of them the next time: what changes at the far end nobody tells, nor who answers for an address.
    mutating func forget() { known = [:] }

    /// By index of the host's end. What cannot be looked at is none; what is not up yet is looked at again: the
    /// host's end gets a carrier then, of which the kernel tells.
    mutating func look(_ pods: [Link], _ session: RouteSession) -> [UInt32: FrameAddresses] {
        // Where the kernel leaves what is handed over so out of the pods' own counters, it is left be.
        guard DataplaneFeatures.countsAtFarEnds else { return [:] }
        if known.isEmpty, let known = try? session.neighbours(.ipv4) + session.neighbours(.ipv6) {
            let pods = known.filter { !$0.address.isMulticast && !$0.address.isLinkLocal }
            answers = Dictionary(grouping: pods, by: \.index).mapValues { Set($0.map(\.hardwareAddress)) }
        }
        var result: [UInt32: (link: Link, addresses: FrameAddresses?)] = [:]
        for link in pods {
            if let old = known[link.index], old.link == link {
                result[link.index] = old
            } else if let end = try? session.farEnd(of: link), end.isUp {
                result[link.index] = (link, Self.addresses(link, end, session))
            }
        }
        known = result
        return result.compactMapValues(\.addresses).filter { index, addresses in
            (answers[index] ?? []).allSatisfy { $0.isEmpty || $0 == addresses.destination }
        }
    }

    private static func addresses(_ link: Link, _ end: Link, _ session: RouteSession) -> FrameAddresses? {
        guard link.queue == "noqueue", link.master == 0, end.master == 0, !end.hasXDP,
            Attachment.tcxPrograms(interface: link.index, direction: .egress).isEmpty,
            let filters = try? session.foreignFilters(interface: link.index, isEgress: true, own: []), filters == 0
        else { return nil }
        return FrameAddresses(destination: end.hardwareAddress, source: link.hardwareAddress)
    }
}
