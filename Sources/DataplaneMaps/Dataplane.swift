// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import BPFObjects
internal import CDataplaneABI
internal import FoundationEssentials
internal import Model
internal import Synchronization
internal import SystemDescriptors

/// The programs of the hooks.
public struct DataplanePrograms: Sendable {
    private var programs: [Key: BPFProgram] = [:]
    private let layout: PinLayout
    /// False where the kernel has no `bpf_ktime_get_coarse_ns`, and the programs ask the exact clock.
    public private(set) var useCoarseClock: Bool
    /// False where the programs that ask conntrack are not to be loaded: the kernel refuses them, or
    /// has no `bpf_skb_ct_lookup`, which a module nf_conntrack brings.
    public private(set) var mayAskConntrack = true
    /// They are to be attached by clsact, and work while the configuration says so.
    private let isClsact: Bool
    private let countsFlows: Bool
    /// UDP ports of overlays, for guards that are loaded from now on.
    public var vxlanPorts: [UInt16] = [4789, 8472]

    private struct Key: Hashable {
        var hook: Hook
        var isEthernet: Bool
    }

    /// Loads the programs for Ethernet and WireGuard devices, which makes and pins the maps
    /// that are missing. Those for uplinks without an Ethernet header are loaded when asked for.
    /// `countsFlows`: false for measurements alone, of what the counting costs.
    public init(
        _ layout: PinLayout, useCoarseClock: Bool = true, mechanism: AttachmentMechanism = .tcx,
        countsFlows: Bool = true
    ) throws(BPFError) {
        self.layout = layout
        self.countsFlows = countsFlows
        isClsact = mechanism == .clsact
        self.useCoarseClock = useCoarseClock && BPFProgram.hasCoarseClock
        if !fileExists(layout.map("peers")) { Self.makeMaps(layout) }
        // Those that verifiers take longest for come first.
        let all: [(hook: Hook, isEthernet: Bool)] = [
            (.toWireGuard, false), (.toUplink, true), (.fromPod, true), (.fromUplink, true), (.fromWireGuard, false),
        ]
        loadBeside(all)
        for next in all { _ = try program(next.hook, isEthernet: next.isEthernet) }
    }

    /// Makes the maps on two threads, for the kernel takes tens of milliseconds to lay out the large ones. What
    /// cannot be made here is tried again, and told, by the program that needs it.
    private static func makeMaps(_ layout: PinLayout) {
        let workers = [true, false].map { ofIPv6 in
            BackgroundThread {
                let isOurs = { (name: String) in name.hasSuffix("6") == ofIPv6 }
                func make() throws(BPFError) {
                    var object = try BPFObject(decoded(.maps), name: "maps", pinFolder: layout.folder)
                    try object.leaveOut { !isOurs($0) }
                    _ = try object.load()
                }
                func isMade() -> Bool { (try? make()) != nil }
                // The second time without another version's, which may be of other sizes.
                if isMade() || isMade() { return }
                try? layout.removeMaps(PinLayout.sharedMaps.filter(isOurs))
                _ = isMade()
            }
        }
        for worker in workers { worker.join() }
    }

    /// Loads programs on two threads, for verifying one takes tens of milliseconds. One that fails is loaded again,
    /// and its error told, when it is asked for.
    private mutating func loadBeside(_ all: [(hook: Hook, isEthernet: Bool)]) {
        let start = self
        let queue = Mutex(all[...])
        let loaded = Mutex<[Key: (program: BPFProgram, isPlain: Bool)]>([:])
        let workers = (0..<2).map { _ in
            BackgroundThread {
                while let next = queue.withLock({ $0.popFirst() }) {
                    let program = try? Self.load(next.hook, start.layout, start.constants(isEthernet: next.isEthernet))
                    guard let program else { continue }
                    loaded.withLock { $0[Key(hook: next.hook, isEthernet: next.isEthernet)] = program }
                }
            }
        }
        for worker in workers { worker.join() }
        for (key, value) in loaded.withLock({ $0 }) {
            programs[key] = value.program
            if value.isPlain { mayAskConntrack = false }
        }
    }

    /// Loads nothing yet: each program, and the maps that it names, when it is asked for.
    public init(empty layout: PinLayout) {
        self.layout = layout
        countsFlows = true
        isClsact = false
        useCoarseClock = true
    }

    /// The program of a hook for a device with or without an Ethernet header.
    public mutating func program(_ hook: Hook, isEthernet: Bool) throws(BPFError) -> BPFProgram {
        let key = Key(hook: hook, isEthernet: isEthernet)
        if let program = programs[key] { return program }
        while true {
            do {
                let program = try Self.load(
                    hook, layout, constants(isEthernet: isEthernet))
                programs[key] = program.program
                if program.isPlain { mayAskConntrack = false }
                return program.program
            } catch {
                // Before 5.11 there is no bpf_ktime_get_coarse_ns, which verifiers refuse in
                // different words.
                if case .layout = error { throw error }
                guard useCoarseClock else { throw error }
                useCoarseClock = false
            }
        }
    }

    private func constants(isEthernet: Bool) -> wgp_constants {
        wgp_constants(
            link_header_length: isEthernet ? 14 : 0, coarse_clock: useCoarseClock ? 1 : 0, clsact: isClsact ? 1 : 0,
            uncounted: countsFlows ? 0 : 1,
            vxlan_ports: (vxlanPorts.first ?? 0, vxlanPorts.dropFirst().first ?? 0))
    }

    /// All programs that are loaded, with what tells them apart.
    public var all: [(hook: Hook, isEthernet: Bool, program: BPFProgram)] {
        programs.map { ($0.key.hook, $0.key.isEthernet, $0.value) }
            .sorted { ($0.hook.rawValue, $0.isEthernet ? 0 : 1) < ($1.hook.rawValue, $1.isEthernet ? 0 : 1) }
    }

    /// Loads a program that is none of a hook's, from its ELF image.
    public static func load(_ image: [UInt8], name: String, isEthernet: Bool, _ layout: PinLayout) throws(BPFError)
        -> BPFProgram
    {
        var object = try BPFObject(image, name: name, pinFolder: layout.folder)
        var constants = wgp_constants()
        constants.link_header_length = isEthernet ? 14 : 0
        try object.setConstants(constants)
        return try object.load()
    }

    /// Loads a hook's program; where the kernel refuses one that may ask conntrack, the plain one.
    private static func load(
        _ hook: Hook, _ layout: PinLayout, _ constants: wgp_constants
    ) throws(BPFError) -> (program: BPFProgram, isPlain: Bool) {
        let images = Self.images.filter { $0.name == hook.name || $0.name == "\(hook.name)_plain" }
            .sorted { $0.name.count < $1.name.count }
        var failure: BPFError?
        for image in images {
            do {
                return (try load(image, hook, layout, constants), image.name != hook.name)
            } catch {
                // The last one's error is the one to tell: the first may lack conntrack only.
                failure = error
                if case .layout = error { throw error }
            }
        }
        guard let failure else { preconditionFailure("the program of \(hook.name) is not embedded") }
        throw failure
    }

    private static let images: [BPFImage] = [
        .from_pod, .from_pod_plain, .to_uplink, .from_uplink, .to_wireguard, .from_wireguard, .from_wireguard_plain,
        .guard_out, .guard_in,
    ]

    /// A hook's program as it is loaded: its ELF image, and the constants that it is given. For who walks through it.
    public func source(_ hook: Hook, isEthernet: Bool) -> (image: [UInt8], constants: [UInt8])? {
        Self.images.first { $0.name == hook.name }.map {
            (Self.decoded($0), memory(of: constants(isEthernet: isEthernet)))
        }
    }

    private static func decoded(_ image: BPFImage) -> [UInt8] {
        guard let data = Data(base64Encoded: "\(image.base64)") else {
            preconditionFailure("the program of \(image.name) is embedded as base64")
        }
        return Array(data)
    }

    private static func load(
        _ image: BPFImage, _ hook: Hook, _ layout: PinLayout, _ constants: wgp_constants
    ) throws(BPFError) -> BPFProgram {
        var object = try BPFObject(decoded(image), name: hook.name, pinFolder: layout.folder)
        try object.setConstants(constants)
        return try object.load()
    }
}
