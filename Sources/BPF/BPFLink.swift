// SPDX-License-Identifier: Apache-2.0

internal import CLibbpf
internal import CLinuxUAPI
internal import Glibc
internal import SystemDescriptors
internal import SystemPackage

/// Which way packets go through a device where a program is attached.
public enum AttachmentDirection: String, Sendable, Hashable, Codable {
    case ingress
    case egress
}

/// How programs are attached to devices.
public enum AttachmentMechanism: String, Sendable, Hashable, Codable {
    /// tcx links (kernel 6.6): pinned, replaced in one step.
    case tcx
    /// Filters on a clsact qdisc: held by the device itself. While the qdisc is made or removed the kernel
    /// takes the device's queues away for some milliseconds (`qdisc_graft`), and drops what is sent then.
    case clsact

    /// tcx where the kernel has it. The kernel answers a link to a device that cannot
    /// be (`ENODEV`), or does not know the attach type (`EINVAL`).
    public static func probe() -> AttachmentMechanism {
        var options = unsafe bpf_link_create_opts()
        unsafe options.sz = MemoryLayout<bpf_link_create_opts>.size
        guard let program = try? minimalProgram() else { return .clsact }
        let result = unsafe bpf_link_create(
            program.descriptor.rawValue, Int32.max, bpf_attach_type(TCXAttachType.ingress), &options)
        return result == -ENODEV ? .tcx : .clsact
    }

    private static func minimalProgram() throws(BPFError) -> BPFProgram {
        // r0 = -1; exit
        let instructions = [
            bpf_insn(code: 0xb7, dst_reg: 0, src_reg: 0, off: 0, imm: -1),
            bpf_insn(code: 0x95, dst_reg: 0, src_reg: 0, off: 0, imm: 0),
        ]
        let result = unsafe bpf_prog_load(
            BPF_PROG_TYPE_SCHED_CLS, "wgplane_probe", "Dual BSD/GPL", instructions, instructions.count, nil)
        try check(result, "load program", "wgplane_probe")
        return BPFProgram(name: "wgplane_probe", descriptor: SharedDescriptor(OwnedDescriptor(owning: result)))
    }
}

/// `enum bpf_attach_type` values that older UAPI headers lack (kernel 6.6).
enum TCXAttachType {
    static let ingress: UInt32 = 46
    static let egress: UInt32 = 47

    static func value(_ direction: AttachmentDirection) -> bpf_attach_type {
        bpf_attach_type(direction == .ingress ? ingress : egress)
    }
}

/// Which of our programs at a device and direction: each has its own clsact handle.
public enum AttachmentRole: UInt32, Sendable, Hashable, Codable {
    case hook = 0
    /// Strict mode's second lock, behind the hook.
    case guardian = 1
}

/// A program at a device, by either mechanism.
public struct Attachment: Sendable, Hashable {
    public var interface: UInt32
    public var direction: AttachmentDirection
    public var mechanism: AttachmentMechanism
    public var role: AttachmentRole

    public init(
        interface: UInt32, direction: AttachmentDirection, mechanism: AttachmentMechanism,
        role: AttachmentRole = .hook
    ) {
        self.interface = interface
        self.direction = direction
        self.mechanism = mechanism
        self.role = role
    }

    /// Handle and priority of our clsact filters: ours alone by convention.
    private var handle: UInt32 { 1 + role.rawValue }
    private var priority: UInt32 { Self.firstPriority + role.rawValue }

    /// Attaches a program, or replaces ours in one step when it is there. `pin` is where a
    /// tcx link is kept; a pin of a link whose device is gone is replaced.
    public func attach(_ program: BPFProgram, pin: String) throws(BPFError) {
        switch mechanism {
        case .tcx: try attachLink(program, pin: pin)
        case .clsact: try attachFilter(program)
        }
    }

    /// Detaches what `attach` made; what is not there is no error.
    public func detach(pin: String) throws(BPFError) {
        switch mechanism {
        case .tcx: try Self.removePin(pin)
        case .clsact: try detachFilter()
        }
    }

    /// The identifier of our program there now; nil: none.
    public func attachedProgram(pin: String) throws(BPFError) -> UInt32? {
        switch mechanism {
        case .tcx:
            guard let link = try Self.link(pin: pin), link.interface == interface else { return nil }
            return link.program
        case .clsact: return try filterProgram()
        }
    }

    /// Of the hooks' filters; the second lock's is the next.
    public static let firstPriority: UInt32 = 0x7767
    /// Priorities of our clsact filters.
    public static let priorities: Set<UInt32> = [firstPriority, firstPriority + 1]

    /// Identifiers of the programs attached by tcx at a device, in the order in which they run; none where the
    /// kernel has no tcx (6.6).
    public static func tcxPrograms(interface: UInt32, direction: AttachmentDirection) -> [UInt32] {
        var options = unsafe bpf_prog_query_opts()
        unsafe options.sz = MemoryLayout<bpf_prog_query_opts>.size
        var identifiers = [UInt32](repeating: 0, count: 64)
        return unsafe identifiers.withUnsafeMutableBufferPointer { buffer in
            unsafe options.prog_ids = buffer.baseAddress
            unsafe options.prog_cnt = UInt32(buffer.count)
            let result = unsafe bpf_prog_query_opts(
                Int32(interface), bpf_attach_type(TCXAttachType.value(direction).rawValue), &options)
            return unsafe result == 0 ? Array(buffer.prefix(Int(options.prog_cnt))) : []
        }
    }

    // MARK: tcx

    private func attachLink(_ program: BPFProgram, pin: String) throws(BPFError) {
        if let link = try Self.link(pin: pin) {
            if link.interface == interface {
                let descriptor = try openPinned(pin)
                return try check(
                    bpf_link_update(descriptor.rawValue, program.descriptor.rawValue, nil), "replace program at", pin)
            }
            try Self.removePin(pin)
        }
        try pinNewLink(program, pin: pin)
    }

    private func pinNewLink(_ program: BPFProgram, pin: String) throws(BPFError) {
        let result = bpf_link_create(
            program.descriptor.rawValue, Int32(interface), TCXAttachType.value(direction), nil)
        try check(result, "attach program \(program.name) to", "device \(interface)")
        let link = OwnedDescriptor(owning: result)
        try check(unsafe bpf_obj_pin(link.rawValue, pin), "pin link", pin)
    }

    /// Makes our tcx program the last of its chain. It is away for a moment: no chain takes a program twice.
    public func moveToEnd(_ program: BPFProgram, pin: String) throws(BPFError) {
        try Self.removePin(pin)
        try pinNewLink(program, pin: pin)
    }

    /// Device and program of a pinned link; nil without a pin. A dead link has device 0.
    public static func link(pin: String) throws(BPFError) -> (interface: UInt32, program: UInt32)? {
        guard fileExists(pin) else { return nil }
        let descriptor = try openPinned(pin)
        // struct bpf_link_info: type, id, prog_id, pad, then { ifindex, attach_type } for tcx;
        // spelled out because older headers have no tcx member.
        var words = [UInt32](repeating: 0, count: 64)
        var length = UInt32(words.count * 4)
        let result = unsafe words.withUnsafeMutableBytes {
            unsafe bpf_obj_get_info_by_fd(descriptor.rawValue, $0.baseAddress, &length)
        }
        try check(result, "describe link", pin)
        return (words[4], words[2])
    }

    /// Detaches a pinned link and removes the pin; what is not there is no error.
    ///
    /// A link whose last pin goes is detached by the kernel too, but some time later.
    public static func removePin(_ pin: String) throws(BPFError) {
        if fileExists(pin), let descriptor = try? openPinned(pin) { _ = bpf_link_detach(descriptor.rawValue) }
        do {
            try removeFile(pin)
        } catch {
            throw .call("remove pin", subject: pin, error)
        }
    }

    // MARK: clsact

    // libbpf wants every byte of `sz` past the last field it knows to be zero, and padding
    // is not copied as zero: so `sz` ends at the last field.

    private static let hookSize = (MemoryLayout<bpf_tc_hook>.offset(of: \.parent) ?? 16) + 4
    private static let optionsSize = (MemoryLayout<bpf_tc_opts>.offset(of: \.priority) ?? 24) + 4

    private var hook: bpf_tc_hook {
        var hook = bpf_tc_hook()
        hook.sz = Self.hookSize
        hook.ifindex = Int32(interface)
        hook.attach_point = direction == .ingress ? BPF_TC_INGRESS : BPF_TC_EGRESS
        return hook
    }

    private var options: bpf_tc_opts {
        var options = bpf_tc_opts()
        options.sz = Self.optionsSize
        options.handle = handle
        options.priority = priority
        return options
    }

    private func attachFilter(_ program: BPFProgram) throws(BPFError) {
        var hook = hook
        let created = unsafe bpf_tc_hook_create(&hook)
        if created != -EEXIST { try check(created, "make clsact qdisc at", "device \(interface)") }
        var options = options
        options.prog_fd = program.descriptor.rawValue
        options.flags = BPF_TC_F_REPLACE.rawValue
        try check(
            unsafe bpf_tc_attach(&hook, &options), "attach program \(program.name) to", "device \(interface)")
    }

    private func filterProgram() throws(BPFError) -> UInt32? {
        // Where there is no qdisc libbpf would print the kernel's words.
        LibbpfLog.install()
        var hook = hook
        var options = options
        let result = unsafe bpf_tc_query(&hook, &options)
        if result == -ENOENT || result == -EINVAL || result == -ENODEV { return nil }
        try check(result, "query filter at", "device \(interface)")
        return options.prog_id
    }

    private func detachFilter() throws(BPFError) {
        var hook = hook
        var options = options
        let result = unsafe bpf_tc_detach(&hook, &options)
        if result == -ENOENT || result == -EINVAL || result == -ENODEV { return }
        try check(result, "detach filter from", "device \(interface)")
    }

    /// Removes the clsact qdisc of a device, for whoever knows that nobody else uses it.
    public static func removeQdisc(interface: UInt32) throws(BPFError) {
        var hook = bpf_tc_hook()
        hook.sz = hookSize
        hook.ifindex = Int32(interface)
        hook.attach_point = bpf_tc_attach_point(BPF_TC_INGRESS.rawValue | BPF_TC_EGRESS.rawValue)
        let result = unsafe bpf_tc_hook_destroy(&hook)
        if result == -ENOENT || result == -EINVAL || result == -ENODEV { return }
        try check(result, "remove clsact qdisc of", "device \(interface)")
    }
}
