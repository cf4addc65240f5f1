// SPDX-License-Identifier: Apache-2.0

internal import CLibbpf
internal import Glibc
internal import SystemDescriptors

/// What the whole kernel holds of BPF, whoever made it. Needs CAP_SYS_ADMIN.
public struct BPFKernelObjects: Sendable, Hashable, Codable {
    public var programs = 0
    public var maps = 0
    public var links = 0

    public init() {}

    public static func counted() -> BPFKernelObjects {
        func number(_ next: (UInt32, UnsafeMutablePointer<UInt32>) -> Int32) -> Int {
            var (last, count): (UInt32, Int) = (0, 0)
            while unsafe next(last, &last) == 0 { count += 1 }
            return count
        }
        var found = BPFKernelObjects()
        found.programs = unsafe number { unsafe bpf_prog_get_next_id($0, $1) }
        found.maps = unsafe number { unsafe bpf_map_get_next_id($0, $1) }
        found.links = unsafe number { unsafe bpf_link_get_next_id($0, $1) }
        return found
    }
}

/// Takes away what others rely on, as a hand that errs would: for tests of what happens then.
public enum BPFTampering {
    /// Detaches a pinned link from its device, and leaves the pin (BPF_LINK_DETACH).
    public static func detach(link pin: String) throws(BPFError) {
        let link = try openPinned(pin)
        try check(bpf_link_detach(link.rawValue), "detach link", pin)
    }

    /// Removes all entries of a pinned map; those of an array are zeroed. Returns how many there were.
    public static func empty(map pin: String) throws(BPFError) -> Int {
        let map = try openPinned(pin)
        var info = bpf_map_info()
        var length = UInt32(MemoryLayout<bpf_map_info>.size)
        try check(unsafe bpf_obj_get_info_by_fd(map.rawValue, &info, &length), "describe map", pin)
        var key = [UInt8](repeating: 0, count: Int(info.key_size))
        var next = key
        if info.type == BPF_MAP_TYPE_ARRAY.rawValue {
            let zeros = [UInt8](repeating: 0, count: Int(info.value_size))
            for index in 0..<info.max_entries {
                unsafe withUnsafeBytes(of: index) { unsafe key = Array($0) }
                try check(unsafe bpf_map_update_elem(map.rawValue, key, zeros, 0), "write map", pin)
            }
            return Int(info.max_entries)
        }
        var count = 0
        // The first again and again, until there is none.
        while unsafe bpf_map_get_next_key(map.rawValue, nil, &next) == 0 {
            let result = unsafe bpf_map_delete_elem(map.rawValue, next)
            if result == -ENOENT { continue }
            try check(result, "delete from map", pin)
            count += 1
        }
        return count
    }
}
