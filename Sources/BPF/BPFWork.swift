// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// How many entries of BPF maps this process has written or removed: what shows that a small change costs
/// little.
public enum BPFWork {
    private static let total = Atomic<Int>(0)

    public static var changes: Int { total.load(ordering: .relaxed) }

    /// Notes one that was made by other means than `BPFMap`'s.
    public static func note() { total.add(1, ordering: .relaxed) }
}
