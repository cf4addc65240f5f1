// SPDX-License-Identifier: Apache-2.0

internal import Synchronization

/// How many changes this process has asked the kernel for by netlink, dumps and questions not counted:
/// what shows that a small change costs little.
public enum NetlinkWork {
    private static let total = Atomic<Int>(0)

    public static var changes: Int { total.load(ordering: .relaxed) }

    static func note(changes: Int) { total.add(changes, ordering: .relaxed) }
}
