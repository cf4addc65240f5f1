// SPDX-License-Identifier: Apache-2.0

import BPF
import CDataplaneABI
import DataplaneMaps
import Testing

@Suite("Layout: what the kernel and Swift share")
struct LayoutTests {
    @Test("hooks and reasons have names, each once, in the order of the header")
    func names() {
        #expect(
            Hook.allCases.map(\.name) == [
                "from_pod", "to_uplink", "from_uplink", "to_wireguard", "from_wireguard", "guard_out", "guard_in",
            ])
        let names = Reason.allCases.map(\.name)
        #expect(Set(names).count == names.count && names.allSatisfy { !$0.isEmpty })
        for reason in Reason.allCases { #expect(reason.isDrop == reason.name.hasPrefix("drop_"), "\(reason.name)") }
    }

    @Test("structs have the sizes that the header asserts")
    func sizes() {
        #expect(MemoryLayout<wgp_flow>.size == 64)
        #expect(MemoryLayout<wgp_flow_key4>.size == 20)
        #expect(MemoryLayout<wgp_flow_key6>.size == 44)
        #expect(MemoryLayout<wgp_destination>.size == 80)
        #expect(MemoryLayout<wgp_peer>.size == 296)
        #expect(MemoryLayout<wgp_config>.size == 200)
        #expect(MemoryLayout<wgp_event>.size == 64)
        #expect(MemoryLayout<wgp_local>.size == 20)
        #expect(MemoryLayout<wgp_masquerade>.size == 32)
    }

    @Test("Swift's enumerations have the header's values")
    func values() {
        let actions: [(DestinationAction, wgp_action)] = [
            (.clear, WGP_ACTION_CLEAR), (.tunnel, WGP_ACTION_TUNNEL), (.drop, WGP_ACTION_DROP),
            (.stack, WGP_ACTION_STACK),
            (.draining, WGP_ACTION_DRAINING), (.exempt, WGP_ACTION_EXEMPT),
        ]
        for (ours, theirs) in actions { #expect(UInt32(ours.rawValue) == theirs.rawValue) }
        let kinds: [(LocalKind, wgp_local_kind)] = [
            (.pod, WGP_LOCAL_POD), (.host, WGP_LOCAL_HOST), (.tunnel, WGP_LOCAL_TUNNEL),
        ]
        for (ours, theirs) in kinds { #expect(UInt32(ours.rawValue) == theirs.rawValue) }
        let slots: [(Int, wgp_slot)] = [
            (DestinationSlot.outside, WGP_SLOT_OUTSIDE), (DestinationSlot.pool, WGP_SLOT_POOL),
            (DestinationSlot.local, WGP_SLOT_LOCAL), (DestinationSlot.firstPeer, WGP_SLOT_FIRST_PEER),
        ]
        for (ours, theirs) in slots { #expect(ours == Int(theirs.rawValue)) }
    }

    @Test("marks are disjoint")
    func marks() {
        #expect(PacketMark.counted & PacketMark.host == 0)
        #expect((PacketMark.counted | PacketMark.host) & (0xffff_0000 | 0xc000 | 0x0f00 | 0x80) == 0)
    }
}
