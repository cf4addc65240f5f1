// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
internal import Foundation
internal import Model
internal import Netlink
internal import SystemDescriptors
internal import WireGuard

/// What this machine can do for wgplane, found by trying.
public struct Doctor: Sendable {
    /// One thing that was looked at.
    public struct Finding: Sendable, Codable {
        public enum Verdict: String, Sendable, Codable {
            case ok
            /// Works, with less.
            case reduced
            /// The agent cannot work without.
            case missing
        }

        public var check: String
        public var verdict: Verdict
        public var found: String
        /// What to do; empty when nothing.
        public var remedy: String
    }

    /// What the verifier says of one program.
    public struct ProgramStatistics: Sendable, Codable {
        public var program: String
        /// The device's packets begin with an Ethernet header.
        public var ethernet: Bool
        /// After the verifier's rewriting.
        public var instructions: UInt32
        /// That the verifier walked; 0 before kernel 5.16.
        public var verified: UInt32
        /// Bytes of machine code; 0 where the kernel interprets.
        public var machineBytes: UInt32
        /// Opening, making missing maps, verifying.
        public var loadMilliseconds: Double
    }

    public init() {}

    /// Loads every program of every kind of device, in a pin folder that goes again.
    public func programStatistics() throws -> [ProgramStatistics] {
        let layout = PinLayout(root: PinLayout.defaultRoot + "-doctor-\(processIdentifier())")
        defer { try? layout.remove() }
        try layout.create()
        var programs = DataplanePrograms(empty: layout)
        // Maps are made with the first ones, and not counted.
        for hook in Hook.allCases { _ = try programs.program(hook, isEthernet: true) }
        return try Hook.allCases.flatMap { hook in
            let kinds =
                [.fromPod].contains(hook)
                ? [true] : [.toWireGuard, .fromWireGuard].contains(hook) ? [false] : [true, false]
            return try kinds.map { isEthernet in
                var again = DataplanePrograms(empty: layout)
                let started = monotonicNanoseconds()
                let program = try again.program(hook, isEthernet: isEthernet)
                let time = Double(monotonicNanoseconds() - started) / 1e6
                let told = try program.information()
                return ProgramStatistics(
                    program: hook.name, ethernet: isEthernet, instructions: told.translatedSize / 8,
                    verified: told.verifiedInstructions, machineBytes: told.machineSize,
                    loadMilliseconds: (time * 10).rounded() / 10)
            }
        }
    }

    /// Blocks; makes and removes a device and a pin folder of its own.
    public func examine() -> [Finding] {
        let (programs, features) = programs()
        return [root(), bpfFileSystem(), programs, attachment()] + features + [
            kernelWireGuard(), userspaceWireGuard(), allowedIPRemoval(), forwarding(), netfilter(), hostFirewall(),
        ]
    }

    private func root() -> Finding {
        Finding(
            check: "privileges", verdict: isRoot() ? .ok : .missing, found: isRoot() ? "root" : "no root",
            remedy: isRoot() ? "" : "run as root (CAP_NET_ADMIN, CAP_BPF, CAP_SYS_ADMIN)")
    }

    private func bpfFileSystem() -> Finding {
        let mounted = isBPFFileSystem("/sys/fs/bpf")
        return Finding(
            check: "bpffs", verdict: mounted ? .ok : .reduced,
            found: mounted ? "/sys/fs/bpf" : "/sys/fs/bpf is no BPF file system",
            remedy: mounted ? "" : "the agent mounts it; or: mount -t bpf bpf /sys/fs/bpf")
    }

    /// Loads every program, in a pin folder that goes again.
    private func programs() -> (Finding, features: [Finding]) {
        let layout = PinLayout(root: PinLayout.defaultRoot + "-doctor-\(processIdentifier())")
        defer { try? layout.remove() }
        do {
            try layout.create()
            var (features, loaded) = try DataplaneFeatures.probe(layout)
            for hook in [Hook.toUplink, .fromUplink] { _ = try loaded.program(hook, isEthernet: false) }
            let instructions = loaded.all.compactMap { try? $0.program.information().verifiedInstructions }.max() ?? 0
            let found = Finding(
                check: "BPF programs", verdict: .ok,
                found: "\(loaded.all.count) programs verified"
                    + (instructions > 0 ? ", at most \(instructions) instructions walked" : ""),
                remedy: "")
            return (found, Self.findings(features))
        } catch {
            let found = Finding(
                check: "BPF programs", verdict: .missing, found: "\(error)",
                remedy:
                    "use a kernel of 5.10 or later with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF, CONFIG_NET_SCH_INGRESS and CONFIG_DEBUG_INFO_BTF"
            )
            return (found, [])
        }
    }

    /// What this kernel lacks, and what takes its place.
    private static func findings(_ features: DataplaneFeatures) -> [Finding] {
        func finding(_ check: String, _ isThere: Bool, _ found: String, else instead: String, _ remedy: String)
            -> Finding
        {
            Finding(
                check: check, verdict: isThere ? .ok : .reduced, found: isThere ? found : instead,
                remedy: isThere ? "" : remedy)
        }
        // Its types are in a file of its own then.
        let isModule = fileExists("/sys/kernel/btf/nf_conntrack")
        let batches = [(features.readsHashesInBatches, "hashes"), (features.readsTriesInBatches, "tries")]
        let single = batches.filter { !$0.0 }.map(\.1).joined(separator: " and ")
        return [
            finding(
                "BPF compiler", features.isCompiled, "programs are machine code", else: "programs are interpreted",
                "sysctl -w net.core.bpf_jit_enable=1; interpreted, each packet costs several times as much"),
            finding(
                "BPF clock", features.hasCoarseClock, "bpf_ktime_get_coarse_ns",
                else: "bpf_ktime_get_ns, some nanoseconds more a packet", "kernel 5.11 has the coarse clock"),
            finding(
                "conntrack from BPF", features.mayAskConntrack && !isModule, "bpf_skb_ct_lookup",
                else: (isModule
                    ? "in a module, whose functions take CAP_SYS_ADMIN, which an agent gives up" : "not there")
                    + "; where netfilter rewrites services, the steering path is Stack",
                "kernel 5.19 or later with CONFIG_NF_CONNTRACK=y"),
            finding(
                "BPF hand-over to pods", DataplaneFeatures.countsAtFarEnds, "at the far end of a pod's device",
                else: "by the pod's device, which costs a queue more: pods' own counters would miss the packets",
                "kernel 6.7 counts them"),
            finding(
                "BPF map batches", features.readsHashesInBatches && features.readsTriesInBatches, "hashes and tries",
                else: "\(single) are read entry by entry", "kernel 5.14 has batches for all maps"),
            finding(
                "BPF map take", features.takesInOneStep, "entries are read and removed in one step",
                else: "two steps, between which a packet's count can be lost", "kernel 5.14 takes in one step"),
        ]
    }

    private func allowedIPRemoval() -> Finding {
        let removes = KernelBackend.canRemoveAllowedIPs()
        return Finding(
            check: "allowed-IP removal", verdict: removes == true ? .ok : .reduced,
            found: removes == true
                ? "WGALLOWEDIP_F_REMOVE_ME" : "by moving to a peer that goes with it, in one change",
            remedy: "")
    }

    private func attachment() -> Finding {
        let mechanism = AttachmentMechanism.probe()
        return Finding(
            check: "attachment", verdict: .ok, found: mechanism.rawValue,
            remedy: mechanism == .tcx ? "" : "kernel 6.6 has tcx, whose links are replaced in one step")
    }

    private func kernelWireGuard() -> Finding {
        let available = KernelBackend.isAvailable()
        return Finding(
            check: "WireGuard (kernel)", verdict: available ? .ok : .reduced,
            found: available ? "available" : "this kernel has none",
            remedy: available ? "" : "modprobe wireguard, or a kernel of 5.6 or later; else wireguard-go is used")
    }

    private func userspaceWireGuard() -> Finding {
        let available = UserspaceBackend.isAvailable()
        let needed = !KernelBackend.isAvailable()
        return Finding(
            check: "WireGuard (userspace)", verdict: available ? .ok : needed ? .missing : .reduced,
            found: available ? "wireguard-go" : "wireguard-go or /dev/net/tun is missing",
            remedy: available || !needed ? "" : "apt-get install wireguard-go")
    }

    private func forwarding() -> Finding {
        let values = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map { name -> String in
            let bytes = (try? readFile("/proc/sys/net/\(name)")) ?? []
            return String(decoding: bytes, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
        }
        let on = values[0] == "1"
        return Finding(
            check: "forwarding", verdict: on ? .ok : .reduced,
            found: "IPv4 \(values[0] == "1" ? "on" : "off"), IPv6 \(values[1] == "1" ? "on" : "off")",
            remedy: on ? "" : "sysctl -w net.ipv4.ip_forward=1 (a CNI does)")
    }

    /// What may keep WireGuard's packets out: TC programs cannot let past netfilter what that drops.
    private func hostFirewall() -> Finding {
        do {
            let kind = try FirewallKind.inUse()
            let chains = try FirewallExceptions.dropping(.input)
            guard !chains.isEmpty else {
                return Finding(
                    check: "host firewall", verdict: .ok, found: "\(kind.rawValue); no chain drops what comes in",
                    remedy: "")
            }
            return Finding(
                check: "host firewall", verdict: .reduced,
                found: "\(kind.rawValue); may drop what comes in: \(chains.map(\.description).joined(separator: ", "))",
                remedy:
                    "accept WireGuard's UDP port there (51820, and 51821 for IPv6), or set wireguardInputRule to Auto")
        } catch {
            return Finding(
                check: "host firewall", verdict: .reduced, found: "cannot be inspected: \(error)",
                remedy: "accept WireGuard's UDP port (51820, and 51821 for IPv6)")
        }
    }

    private func netfilter() -> Finding {
        do {
            let tables = try FirewallInspection.inspect(devices: nil).filters
            return Finding(
                check: "netfilter", verdict: .ok,
                found: tables.isEmpty
                    ? "nothing filters forwarded packets: steering path Direct"
                    : "\(tables.count) chains may filter pods' packets: steering path Stack",
                remedy: "")
        } catch {
            return Finding(
                check: "netfilter", verdict: .reduced, found: "cannot be inspected: \(error)",
                remedy: "the steering path is Stack; set wireguardSteeringPath to choose")
        }
    }
}
