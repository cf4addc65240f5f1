// SPDX-License-Identifier: Apache-2.0

internal import CLibbpf
internal import CLinuxUAPI
internal import Glibc
internal import SystemDescriptors

extension BPFMap {
    /// Sets many keys in as few calls as the kernel takes (`BPF_MAP_UPDATE_BATCH`; hashes 5.6), one by one where it
    /// takes none. A key that stands there twice gets its last value. Throws at the first that cannot be set; those
    /// before it are.
    public func update(_ entries: [(key: Key, value: Value)]) throws(BPFError) {
        guard !information.isPerCPU, MemoryLayout<Key>.size == MemoryLayout<Key>.stride,
            MemoryLayout<Value>.size == MemoryLayout<Value>.stride
        else { return try updateSingly(entries[...]) }
        let map = try descriptor.rawValue
        var done = 0
        let chunk = 8192
        while done < entries.count {
            let part = entries[done..<min(entries.count, done + chunk)]
            let (keys, values) = (part.map(\.key), part.map(\.value))
            var count = UInt32(part.count)
            let result = unsafe keys.withUnsafeBytes { keys in
                unsafe values.withUnsafeBytes { values in
                    unsafe bpf_map_update_batch(map, keys.baseAddress, values.baseAddress, &count, nil)
                }
            }
            if result == 0 {
                done += part.count
                for _ in part { BPFWork.note() }
                continue
            }
            // Where the kernel has no batches it says so before the first; else it has set as many as it says.
            let isRefused = result != -ENOMEM && result != -EAGAIN && result != -E2BIG
            // Before 6.8 it says all where it had no memory to begin with.
            done += isRefused || count >= UInt32(part.count) ? 0 : Int(count)
            // The stock of a map that is not preallocated was empty for a moment: one of them waits for it.
            let next = isRefused ? part.endIndex : min(part.endIndex, done + 1)
            try updateSingly(entries[done..<next])
            done = next
        }
    }

    /// Hands over all entries, some thousands at a time, as bytes: keys and values one after the other
    /// (`BPF_MAP_LOOKUP_BATCH`, 5.6). False where the map type or kernel has none; what was handed over then is not all.
    ///
    /// For maps with very many entries: whoever knows their types reads them several times faster than `entries`.
    public func withBatches(
        _ body: (_ keys: UnsafeRawBufferPointer, _ values: UnsafeRawBufferPointer, _ count: Int) -> Void
    ) throws(BPFError) -> Bool {
        guard let map = try? descriptor.rawValue else { return false }
        let chunk = min(information.maximumEntries, 4096)
        var keys = [UInt8](repeating: 0, count: chunk * MemoryLayout<Key>.size)
        var values = [UInt8](repeating: 0, count: chunk * valueBytes)
        // The cursor is opaque: a bucket number for hashes, a key for tries.
        var cursor = [UInt8](repeating: 0, count: max(8, MemoryLayout<Key>.size))
        var first = true
        while true {
            var count = UInt32(chunk)
            var out = cursor
            let status =
                if first {
                    unsafe bpf_map_lookup_batch(map, nil, &out, &keys, &values, &count, nil)
                } else {
                    unsafe bpf_map_lookup_batch(map, &cursor, &out, &keys, &values, &count, nil)
                }
            // Not for this type, or a bucket larger than the chunk.
            if status < 0 && status != -ENOENT { return false }
            unsafe keys.withUnsafeBytes { keys in
                unsafe values.withUnsafeBytes { values in unsafe body(keys, values, Int(count)) }
            }
            if status == -ENOENT { return true }
            cursor = out
            first = false
        }
    }

    /// Nil where the map type or kernel has no batches.
    func entriesInBatches() throws(BPFError) -> [(key: Key, value: Value)]? {
        var result: [(key: Key, value: Value)] = []
        let stride = valueBytes
        let isWhole = try unsafe withBatches { keys, values, count in
            for index in 0..<count {
                let key = unsafe keys.loadUnaligned(fromByteOffset: index * MemoryLayout<Key>.size, as: Key.self)
                result.append((key, unsafe values.loadUnaligned(fromByteOffset: index * stride, as: Value.self)))
            }
        }
        return isWhole ? result : nil
    }

    private func updateSingly(_ entries: ArraySlice<(key: Key, value: Value)>) throws(BPFError) {
        for entry in entries { try update(entry.key, entry.value) }
    }
}

/// Whether the kernel's own type information (BTF) has a name; false where there is none.
public func kernelHasType(named name: String) -> Bool {
    // Names stand one after the other, each with a zero at its end.
    let wanted: [UInt8] = [0] + Array(name.utf8) + [0]
    return unsafe wgp_file_contains("/sys/kernel/btf/vmlinux", 64 << 20, wanted, wanted.count) != 0
}
