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
