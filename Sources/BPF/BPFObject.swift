// SPDX-License-Identifier: Apache-2.0

internal import CLibbpf
internal import Glibc
public import SystemDescriptors
internal import SystemPackage
internal import Synchronization

/// A program's description (`struct bpf_prog_info`).
public struct BPFProgramInformation: Sendable, Hashable {
    public var identifier: UInt32
    /// Instructions that the verifier walked; 0 before kernel 5.16.
    public var verifiedInstructions: UInt32
    /// Bytes after the verifier's rewriting, 8 an instruction.
    public var translatedSize: UInt32
    /// Bytes of machine code; 0 where the kernel interprets.
    public var machineSize: UInt32
}

/// A loaded program.
public struct BPFProgram: Sendable {
    public let name: String
    public let descriptor: SharedDescriptor

    public init(name: String, descriptor: SharedDescriptor) {
        self.name = name
        self.descriptor = descriptor
    }

    public func information() throws(BPFError) -> BPFProgramInformation {
        var info = bpf_prog_info()
        var length = UInt32(MemoryLayout<bpf_prog_info>.size)
        try check(unsafe bpf_obj_get_info_by_fd(descriptor.rawValue, &info, &length), "describe program", name)
        return BPFProgramInformation(
            identifier: info.id, verifiedInstructions: info.verified_insns, translatedSize: info.xlated_prog_len,
            machineSize: info.jited_prog_len)
    }

    /// Runs and time of a program in the kernel, while `kernel.bpf_stats_enabled` is 1 (5.1).
    public struct Use: Sendable, Hashable {
        public var runs: UInt64
        public var nanoseconds: UInt64

        public init(runs: UInt64, nanoseconds: UInt64) {
            self.runs = runs
            self.nanoseconds = nanoseconds
        }
    }

    /// By the program's identifier; nil: it is gone.
    public static func use(identifier: UInt32) throws(BPFError) -> Use? {
        let result = bpf_prog_get_fd_by_id(identifier)
        if result == -ENOENT { return nil }
        try check(result, "open program", "\(identifier)")
        let program = OwnedDescriptor(owning: result)
        var info = bpf_prog_info()
        var length = UInt32(MemoryLayout<bpf_prog_info>.size)
        try check(unsafe bpf_obj_get_info_by_fd(program.rawValue, &info, &length), "describe program", "\(identifier)")
        return Use(runs: info.run_cnt, nanoseconds: info.run_time_ns)
    }

    /// What a test run returned.
    public struct TestResult: Sendable {
        /// The program's verdict, `TC_ACT_…`; -1 unspecified.
        public var verdict: Int32
        public var packet: [UInt8]
        public var mark: UInt32
        /// Nanoseconds per run, average over the repetitions.
        public var duration: UInt32
    }

    /// Runs the program on a packet (`BPF_PROG_TEST_RUN`).
    ///
    /// `packet` begins at the link header. `ingressInterface` and `interface` are
    /// `skb->ingress_ifindex` and `skb->ifindex`.
    public func testRun(
        _ packet: [UInt8], mark: UInt32 = 0, interface: UInt32 = 0, ingressInterface: UInt32 = 0,
        segments: UInt32 = 0, segmentSize: UInt32 = 0, repetitions: Int32 = 1
    ) throws(BPFError) -> TestResult {
        var context = unsafe __sk_buff()
        unsafe context.mark = mark
        unsafe context.ifindex = interface
        unsafe context.ingress_ifindex = ingressInterface
        unsafe context.gso_segs = segments
        unsafe context.gso_size = segmentSize
        var contextOut = unsafe __sk_buff()
        var output = [UInt8](repeating: 0, count: packet.count + 512)
        var options = unsafe bpf_test_run_opts()
        unsafe options.sz = MemoryLayout<bpf_test_run_opts>.size
        unsafe options.repeat = repetitions
        unsafe options.data_size_in = UInt32(packet.count)
        unsafe options.data_size_out = UInt32(output.count)
        unsafe options.ctx_size_in = UInt32(MemoryLayout<__sk_buff>.size)
        unsafe options.ctx_size_out = UInt32(MemoryLayout<__sk_buff>.size)
        let result = unsafe packet.withUnsafeBytes { input in
            unsafe output.withUnsafeMutableBytes { output in
                unsafe withUnsafeMutablePointer(to: &context) { context in
                    unsafe withUnsafeMutablePointer(to: &contextOut) { contextOut in
                        unsafe options.data_in = input.baseAddress
                        unsafe options.data_out = output.baseAddress
                        unsafe options.ctx_in = UnsafeRawPointer(context)
                        unsafe options.ctx_out = UnsafeMutableRawPointer(contextOut)
                        return unsafe bpf_prog_test_run_opts(descriptor.rawValue, &options)
                    }
                }
            }
        }
        try check(result, "test run of program", name)
        return unsafe TestResult(
            verdict: Int32(bitPattern: unsafe options.retval),
            packet: Array(output.prefix(Int(unsafe options.data_size_out))),
            mark: contextOut.mark, duration: unsafe options.duration)
    }
}

/// An object file of one program and its maps, opened from memory.
///
/// Maps are pinned by name under a folder; those that are there already are
/// adopted when type, sizes and flags agree.
@safe
public struct BPFObject: ~Copyable {
    private let object: OpaquePointer
    private let image: [UInt8]
    public let name: String

    /// Opens the ELF image. `pinFolder` is where its maps are, or will be, pinned.
    public init(_ image: [UInt8], name: String, pinFolder: String) throws(BPFError) {
        LibbpfLog.install()
        LibbpfLog.reset()
        self.image = image
        self.name = name
        let opened: OpaquePointer? = unsafe image.withUnsafeBytes { bytes in
            unsafe pinFolder.withCString { folder in
                unsafe name.withCString { text in
                    var options = unsafe bpf_object_open_opts()
                    unsafe options.sz = MemoryLayout<bpf_object_open_opts>.size
                    unsafe options.object_name = text
                    unsafe options.pin_root_path = folder
                    return unsafe bpf_object__open_mem(bytes.baseAddress, bytes.count, &options)
                }
            }
        }
        guard let pointer = unsafe opened else { throw .call("open object", subject: name, .current) }
        unsafe object = pointer
    }

    deinit { unsafe bpf_object__close(object) }

    /// Sets the program's constants (its `.rodata` section) before loading.
    public mutating func setConstants<Constants: BitwiseCopyable>(_ constants: Constants) throws(BPFError) {
        var map = unsafe bpf_object__next_map(object, nil)
        while let current = unsafe map {
            if unsafe String(cString: bpf_map__name(current)).hasSuffix(".rodata") {
                let result = unsafe withUnsafeBytes(of: constants) {
                    unsafe bpf_map__set_initial_value(current, $0.baseAddress, $0.count)
                }
                return try check(result, "set constants of", name)
            }
            unsafe map = unsafe bpf_object__next_map(object, current)
        }
        throw .layout(subject: "program \(name)", expected: "a section .rodata", found: "none")
    }

    /// Leaves maps out that the program does not use. Before loading.
    public mutating func leaveOut(_ isLeftOut: (_ map: String) -> Bool) throws(BPFError) {
        var map = unsafe bpf_object__next_map(object, nil)
        while let current = unsafe map {
            if unsafe isLeftOut(String(cString: bpf_map__name(current))) {
                try check(unsafe bpf_map__set_autocreate(current, false), "leave out a map of", name)
            }
            unsafe map = unsafe bpf_object__next_map(object, current)
        }
    }

    private static let spoilt = Mutex(false)

    /// Whether this process can load no program any more. libbpf looks once in a process what the kernel can, and takes
    /// what it could not look at, for want of memory for example, for missing: global data, on all kernels since 5.2.
    public static var isSpoilt: Bool { spoilt.withLock { $0 } }

    /// Loads maps and program into the kernel.
    public mutating func load() throws(BPFError) -> BPFProgram {
        guard let program = unsafe bpf_object__next_program(object, nil) else {
            throw .layout(subject: "object \(name)", expected: "one program", found: "none")
        }
        var log = [CChar](repeating: 0, count: 1 << 20)
        let result = unsafe log.withUnsafeMutableBufferPointer { buffer in
            unsafe bpf_program__set_log_buf(program, buffer.baseAddress, buffer.count)
            return unsafe bpf_object__load(object)
        }
        if result < 0 {
            let said = LibbpfLog.text()
            let text = String(decoding: log.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            if text.contains("is referenced but wasn't created") || said.contains("is referenced but wasn't created") {
                Self.spoilt.withLock { $0 = true }
                throw .call("look what the kernel can, to load program", subject: name, .noMemory)
            }
            if !text.isEmpty {
                throw .verifier(program: name, summary: BPFError.summary(ofLog: text), log: text)
            }
            if said.contains("parameter mismatch") || said.contains("couldn't reuse pinned map") {
                throw .layout(
                    subject: "a map pinned for program \(name)", expected: "this version's maps",
                    found: BPFError.summary(ofLog: said.replacing("libbpf: ", with: "")))
            }
            throw .call("load program", subject: name, Errno(rawValue: -result))
        }
        let number = fcntl(unsafe bpf_program__fd(program), F_DUPFD_CLOEXEC, 3)
        try check(number < 0 ? -errno : 0, "keep program", name)
        return BPFProgram(name: name, descriptor: SharedDescriptor(OwnedDescriptor(owning: number)))
    }
}

extension BPFProgram {
    /// Whether this kernel's programs of TC have `bpf_ktime_get_coarse_ns` (5.11), found by trying; true where
    /// that cannot be told.
    public static let hasCoarseClock: Bool =
        libbpf_probe_bpf_helper(BPF_PROG_TYPE_SCHED_CLS, BPF_FUNC_ktime_get_coarse_ns, nil) != 0
}

/// libbpf's own words, kept for error messages instead of being printed.
enum LibbpfLog {
    private static let kept = Mutex<String>("")

    static func install() { _ = installed }
    static func reset() { kept.withLock { $0 = "" } }
    static func text() -> String { kept.withLock { $0 } }

    private static let installed: Void = {
        unsafe libbpf_set_print { level, format, arguments in
            guard level != LIBBPF_DEBUG, let format = unsafe format, let arguments = unsafe arguments else { return 0 }
            var line = [CChar](repeating: 0, count: 512)
            let count = unsafe vsnprintf(&line, line.count, format, arguments)
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            kept.withLock { if $0.utf8.count < 16384 { $0 += text } }
            return count
        }
    }()
}
