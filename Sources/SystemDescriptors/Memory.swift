// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI

/// How this process keeps memory: for one that runs for months beside the pods of a node.
public enum ProcessMemory {
    /// Has all threads share one heap, where each would keep what it has freed for itself, and has large tables mapped
    /// by themselves, so that they go when they are freed (mallopt(3)). Threads that have a heap of their own already keep it, so call
    /// it early.
    public static func economize() {
        _ = mallopt(M_ARENA_MAX, 1)
        _ = mallopt(M_MMAP_THRESHOLD, 256 << 10)
        _ = mallopt(M_TRIM_THRESHOLD, 512 << 10)
    }

    /// Gives freed memory back to the kernel (malloc_trim(3)).
    public static func release() { _ = malloc_trim(0) }
}
