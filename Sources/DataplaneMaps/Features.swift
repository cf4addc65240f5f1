// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI

/// What this kernel's BPF has for the data plane, found by trying. Each has a way to do without.
public struct DataplaneFeatures: Sendable {
    /// `bpf_ktime_get_coarse_ns` (5.11).
    public var hasCoarseClock: Bool
    /// The programs that ask conntrack by kfunc (`bpf_skb_ct_lookup`, 5.19) are loaded: the kernel has it
    /// and, where it is a module, nf_conntrack was there before.
    public var mayAskConntrack: Bool
    /// Programs are machine code; else the kernel interprets them.
    public var isCompiled: Bool
    /// Hash maps and tries are read in batches (`BPF_MAP_LOOKUP_BATCH`: 5.6, tries 5.14).
    public var readsHashesInBatches: Bool
    public var readsTriesInBatches: Bool
    /// A counter is read and removed in one step (`BPF_MAP_LOOKUP_AND_DELETE_ELEM` of hashes: 5.14).
    public var takesInOneStep: Bool

    /// Packets that are handed to the far end of a veth pair (`bpf_redirect_peer`) are in that device's counters, as
    /// pods' metrics want it. Came with the type that this looks for (Linux 6.7, 6.6.3), so the kernel's type
    /// information (`/sys/kernel/btf/vmlinux`) tells.
    public static let countsAtFarEnds = kernelHasType(named: "netdev_stat_type")

    /// Loads programs and makes maps in a pin folder, which must be an empty one.
    public static func probe(_ layout: PinLayout) throws(BPFError) -> (DataplaneFeatures, DataplanePrograms) {
        let programs = try DataplanePrograms(layout)
        let maps = try NodeMaps(layout)
        var isCompiled = true
        for entry in programs.all where try entry.program.information().machineSize == 0 { isCompiled = false }
        let features = DataplaneFeatures(
            hasCoarseClock: programs.useCoarseClock, mayAskConntrack: programs.mayAskConntrack,
            isCompiled: isCompiled,
            readsHashesInBatches: maps.flows.ipv4.readsInBatches,
            readsTriesInBatches: maps.routes.prefixes4.readsInBatches,
            takesInOneStep: maps.flows.ipv4.takesInOneStep(absent: wgp_flow_key4()))
        return (features, programs)
    }
}
