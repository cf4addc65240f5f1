// SPDX-License-Identifier: Apache-2.0

internal import CLibbpf
internal import Glibc
public import SystemDescriptors
internal import SystemPackage

/// A map's own description (`struct bpf_map_info`, `<linux/bpf.h>`).
public struct BPFMapInformation: Sendable, Hashable, Codable {
    /// `enum bpf_map_type`.
    public var type: UInt32
    public var identifier: UInt32
    public var keySize: Int
    public var valueSize: Int
    public var maximumEntries: Int
    public var flags: UInt32
    /// Bytes of kernel memory, as the kernel accounts for it; nil: it does not say.
    public var memory: Int?

    /// `hash`, `lpm_trie`, …; the number for types wgplane does not use.
    public var typeName: String {
        switch bpf_map_type(rawValue: type) {
        case BPF_MAP_TYPE_HASH: "hash"
        case BPF_MAP_TYPE_ARRAY: "array"
        case BPF_MAP_TYPE_PERCPU_ARRAY: "percpu_array"
        case BPF_MAP_TYPE_LPM_TRIE: "lpm_trie"
        case BPF_MAP_TYPE_LRU_HASH: "lru_hash"
        case BPF_MAP_TYPE_RINGBUF: "ringbuf"
        default: "type \(type)"
        }
    }

    init(_ map: SharedDescriptor, name: String) throws(BPFError) {
        var info = bpf_map_info()
        var length = UInt32(MemoryLayout<bpf_map_info>.size)
        try check(unsafe bpf_obj_get_info_by_fd(map.rawValue, &info, &length), "describe map", name)
        self.init(
            type: info.type, identifier: info.id, keySize: Int(info.key_size), valueSize: Int(info.value_size),
            maximumEntries: Int(info.max_entries), flags: info.map_flags)
        memory = Self.memory(map.rawValue)
    }

    /// `memlock` of the descriptor's `fdinfo`.
    private static func memory(_ descriptor: Int32) -> Int? {
        guard let bytes = try? readFile("/proc/self/fdinfo/\(descriptor)") else { return nil }
        let lines = String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        return lines.first { $0.hasPrefix("memlock:") }?.split(whereSeparator: \.isWhitespace).last.flatMap { Int($0) }
    }

    private init(
        type: UInt32, identifier: UInt32, keySize: Int, valueSize: Int, maximumEntries: Int, flags: UInt32
    ) {
        self.type = type
        self.identifier = identifier
        self.keySize = keySize
        self.valueSize = valueSize
        self.maximumEntries = maximumEntries
        self.flags = flags
    }

    var isPerCPU: Bool { type == BPF_MAP_TYPE_PERCPU_ARRAY.rawValue || type == BPF_MAP_TYPE_PERCPU_HASH.rawValue }
}

/// A map with the kernel's types for key and value, which must be of the map's sizes.
///
/// Values are the memory of C structs: host byte order except where the struct
/// says network order. Calls are system calls of microseconds.
public struct BPFMap<Key: BitwiseCopyable & Sendable, Value: BitwiseCopyable & Sendable>: Sendable {
    public let name: String
    public let information: BPFMapInformation
    private let content: Content

    /// The kernel's map, or what an archive has kept of one.
    private enum Content: Sendable {
        case kernel(SharedDescriptor)
        case image(ImageIndex)
    }

    /// Throws for a map of an archive, which nobody can change.
    var descriptor: SharedDescriptor {
        get throws(BPFError) {
            guard case .kernel(let descriptor) = content else { throw .archived(subject: "map \(name)") }
            return descriptor
        }
    }

    /// Takes a map of an archive; throws `.layout` when its sizes are not those of the types.
    public init(_ image: MapImage) throws(BPFError) {
        name = image.name
        information = image.information
        content = .image(ImageIndex(image))
        try checkSizes()
    }

    private func checkSizes() throws(BPFError) {
        guard information.keySize == MemoryLayout<Key>.size, information.valueSize == MemoryLayout<Value>.size else {
            throw .layout(
                subject: "map \(name)",
                expected: "key \(MemoryLayout<Key>.size), value \(MemoryLayout<Value>.size) bytes",
                found: "key \(information.keySize), value \(information.valueSize) bytes")
        }
    }

    /// What an archive keeps of it.
    public func image() throws(BPFError) -> MapImage {
        if case .image(let index) = content { return index.image }
        var result: [MapImage.Entry] = []
        let skipsZero = information.typeName.hasSuffix("array")
        func add(_ key: Key, _ value: [UInt8]) {
            if skipsZero, value.allSatisfy({ $0 == 0 }) { return }
            result.append(
                .init(key: HexBytes(unsafe withUnsafeBytes(of: key) { unsafe Array($0) }), value: HexBytes(value)))
        }
        if information.isPerCPU {
            for key in try keys() { if let value = try raw(key) { add(key, value) } }
        } else {
            for (key, value) in try entries() { add(key, unsafe withUnsafeBytes(of: value) { unsafe Array($0) }) }
        }
        return MapImage(name: name, information: information, entries: result)
    }

    /// Takes an open map; throws `.layout` when its sizes are not those of the types.
    public init(_ descriptor: consuming OwnedDescriptor, name: String) throws(BPFError) {
        let shared = SharedDescriptor(descriptor)
        information = try BPFMapInformation(shared, name: name)
        self.name = name
        content = .kernel(shared)
        try checkSizes()
    }

    /// Opens a pinned map.
    public init(pinned path: String, name: String) throws(BPFError) {
        try self.init(try openPinned(path), name: name)
    }

    /// The value of a key; nil when there is none. For per-CPU maps use `lookupPerCPU`.
    public func lookup(_ key: Key) throws(BPFError) -> Value? {
        let values = try lookupPerCPU(key)
        return values?.first
    }

    /// One value per possible CPU; a single one for maps that are not per CPU.
    public func lookupPerCPU(_ key: Key) throws(BPFError) -> [Value]? { try raw(key).map { values($0[...]) } }

    /// The bytes of a value, of per-CPU maps of all values.
    private func raw(_ key: Key) throws(BPFError) -> [UInt8]? {
        if case .image(let index) = content {
            return index.lookup(unsafe withUnsafeBytes(of: key) { unsafe Array($0) })
        }
        let map = try descriptor.rawValue
        var buffer = [UInt8](repeating: 0, count: valueBytes)
        let result = unsafe withUnsafeBytes(of: key) {
            unsafe bpf_map_lookup_elem(map, $0.baseAddress, &buffer)
        }
        if result == -ENOENT { return nil }
        try check(result, "look up in map", name)
        return buffer
    }

    /// Sets a key's value; `flags`: BPF_ANY 0, BPF_NOEXIST 1, BPF_EXIST 2.
    public func update(_ key: Key, _ value: Value, flags: UInt64 = 0) throws(BPFError) {
        let map = try descriptor.rawValue
        var result = ENOMEM
        // A map that is not preallocated takes entries from a small stock, which the kernel fills
        // up a moment later: many updates at once can find it empty.
        for attempt in 0..<20 where attempt == 0 || result == -ENOMEM {
            if attempt > 0 { usleep(1000) }
            result = unsafe withUnsafeBytes(of: key) { key in
                unsafe withUnsafeBytes(of: value) { value in
                    unsafe bpf_map_update_elem(map, key.baseAddress, value.baseAddress, flags)
                }
            }
        }
        try check(result, "update map", name)
        BPFWork.note()
    }

    /// Removes a key; false when it was not there.
    @discardableResult
    public func delete(_ key: Key) throws(BPFError) -> Bool {
        let map = try descriptor.rawValue
        let result = unsafe withUnsafeBytes(of: key) { unsafe bpf_map_delete_elem(map, $0.baseAddress) }
        if result == -ENOENT { return false }
        try check(result, "delete from map", name)
        BPFWork.note()
        return true
    }

    /// Removes a key and returns its last value, as one step where the kernel can (hash maps:
    /// 5.14); before, counts that arrive between the two steps are lost.
    public func lookupAndDelete(_ key: Key) throws(BPFError) -> Value? {
        let map = try descriptor.rawValue
        var buffer = [UInt8](repeating: 0, count: valueBytes)
        let result = unsafe withUnsafeBytes(of: key) {
            unsafe bpf_map_lookup_and_delete_elem(map, $0.baseAddress, &buffer)
        }
        if result == -ENOENT { return nil }
        if result == -ENOTSUP || result == -EINVAL || result == -524 {
            let value = try lookup(key)
            return try delete(key) ? value : nil
        }
        try check(result, "take from map", name)
        return values(buffer[...]).first
    }

    /// Whether `lookupAndDelete` is one step here. The key must be one that is not there.
    public func takesInOneStep(absent key: Key) -> Bool {
        guard let map = try? descriptor.rawValue else { return false }
        var buffer = [UInt8](repeating: 0, count: valueBytes)
        return unsafe withUnsafeBytes(of: key) {
            unsafe bpf_map_lookup_and_delete_elem(map, $0.baseAddress, &buffer)
        } == -ENOENT
    }

    /// Whether `entries` reads in batches here.
    public var readsInBatches: Bool { ((try? entriesInBatches()) ?? nil) != nil }

    /// Every entry. Entries that come or go meanwhile may be missed; none that stays
    /// is missed or told twice.
    public func entries() throws(BPFError) -> [(key: Key, value: Value)] {
        if case .image(let index) = content, !information.isPerCPU {
            return index.image.entries.map { (Self.key($0.key.bytes), values($0.value.bytes[...])[0]) }
        }
        if !information.isPerCPU, let batched = try entriesInBatches() { return batched }
        var result: [(key: Key, value: Value)] = []
        for key in try keys() {
            if let value = try lookup(key) { result.append((key, value)) }
        }
        return result
    }

    /// Every key. When the entry under the cursor goes, the kernel starts from the
    /// first one; what was told already is passed over.
    public func keys() throws(BPFError) -> [Key] {
        if case .image(let index) = content { return index.keys.map(Self.key) }
        let map = try descriptor.rawValue
        var result: [Key] = []
        var seen: Set<[UInt8]> = []
        var current: [UInt8]?
        var next = [UInt8](repeating: 0, count: MemoryLayout<Key>.size)
        for _ in 0..<(information.maximumEntries * 2 + 16) {
            let status =
                if let cursor = current {
                    unsafe bpf_map_get_next_key(map, cursor, &next)
                } else {
                    unsafe bpf_map_get_next_key(map, nil, &next)
                }
            if status == -ENOENT { break }
            try check(status, "iterate map", name)
            current = next
            if seen.insert(next).inserted {
                result.append(Self.key(next))
            }
        }
        return result
    }

    /// Bytes that a lookup writes: per CPU each value is padded to 8 bytes.
    var valueBytes: Int {
        let size = MemoryLayout<Value>.size
        return information.isPerCPU ? (size + 7) & ~7 * possibleCPUs : size
    }

    private static func key(_ bytes: [UInt8]) -> Key {
        precondition(bytes.count == MemoryLayout<Key>.size)
        return unsafe bytes.withUnsafeBytes { unsafe $0.loadUnaligned(as: Key.self) }
    }

    private func values(_ buffer: ArraySlice<UInt8>) -> [Value] {
        let stride = information.isPerCPU ? (MemoryLayout<Value>.size + 7) & ~7 : MemoryLayout<Value>.size
        return unsafe buffer.withUnsafeBytes { bytes in
            (0..<bytes.count / stride).map {
                unsafe bytes.loadUnaligned(fromByteOffset: $0 * stride, as: Value.self)
            }
        }
    }
}

extension SharedDescriptor {
    /// Pins an object where there is no pin (`BPF_OBJ_PIN`).
    func pin(at path: String) throws(BPFError) {
        let result = unsafe bpf_obj_pin(rawValue, path)
        if result != -EEXIST { try check(result, "pin", path) }
    }
}

/// CPUs that the kernel may ever have: as many values has an entry of a per-CPU map.
public let possibleCPUs = max(1, Int(libbpf_num_possible_cpus()))

/// Pins what is pinned at another place too; what is there already stays.
public func sharePin(_ path: String, at other: String) throws(BPFError) {
    let descriptor = try openPinned(path)
    let result = unsafe bpf_obj_pin(descriptor.rawValue, other)
    if result != -EEXIST { try check(result, "pin", other) }
}

/// Opens a pinned object (`BPF_OBJ_GET`); refuses one that is a link to another place, or another user's.
public func openPinned(_ path: String) throws(BPFError) -> OwnedDescriptor {
    do { try requireOwn(path) } catch { throw .foreign(error) }
    let result = unsafe bpf_obj_get(path)
    try check(result, "open pin", path)
    return OwnedDescriptor(owning: result)
}

/// The memory of an array map made with `BPF_F_MMAPABLE`, shared with the programs.
@safe
public final class BPFArrayMapping<Value: BitwiseCopyable & Sendable>: @unchecked Sendable {
    // Reads and writes go through single machine words; whoever writes is one actor.
    private let base: UnsafeMutableRawPointer
    private let length: Int
    private let stride: Int
    public let count: Int

    public init<Key>(_ map: BPFMap<Key, Value>) throws(BPFError) {
        count = map.information.maximumEntries
        stride = (MemoryLayout<Value>.size + 7) & ~7
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        length = (count * stride + page - 1) / page * page
        let descriptor = try? map.descriptor.rawValue
        // Of an archive it is memory of our own.
        let flags = descriptor == nil ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED
        guard let pointer = unsafe mmap(nil, length, PROT_READ | PROT_WRITE, flags, descriptor ?? -1, 0),
            unsafe pointer != UnsafeMutableRawPointer(bitPattern: -1)
        else { throw .call("map into memory", subject: map.name, .current) }
        unsafe base = pointer
        guard descriptor == nil else { return }
        for entry in try map.image().entries {
            let index = unsafe Int(entry.key.bytes.withUnsafeBytes { unsafe $0.loadUnaligned(as: UInt32.self) })
            guard index < count, entry.value.bytes.count <= stride else { continue }
            unsafe (base + index * stride).copyMemory(from: entry.value.bytes, byteCount: entry.value.bytes.count)
        }
    }

    deinit { unsafe munmap(base, length) }

    /// The element as it stands now.
    public subscript(index: Int) -> Value {
        precondition((0..<count).contains(index))
        return unsafe base.loadUnaligned(fromByteOffset: index * stride, as: Value.self)
    }

    /// Whether the first eight bytes of an element are zero.
    public func isZero(wordOf index: Int) -> Bool {
        precondition((0..<count).contains(index))
        return unsafe (base + index * stride).load(as: UInt64.self) == 0
    }

    /// Hands the address of a 64-bit word of an element to `body`.
    public func withWord<Result>(
        of index: Int, offset: Int, _ body: (UnsafeMutablePointer<UInt64>) -> Result
    ) -> Result {
        precondition((0..<count).contains(index) && offset % 8 == 0 && offset + 8 <= stride)
        return unsafe body((base + index * stride + offset).assumingMemoryBound(to: UInt64.self))
    }

    /// Writes bytes of an element from an offset on, which is not one atomic step.
    public func write<Part: BitwiseCopyable>(_ part: Part, to index: Int, offset: Int) {
        precondition((0..<count).contains(index) && offset + MemoryLayout<Part>.size <= stride)
        unsafe (base + index * stride + offset).copyMemory(
            from: unsafe [part].withUnsafeBytes { unsafe Array($0) }, byteCount: MemoryLayout<Part>.size)
    }
}
