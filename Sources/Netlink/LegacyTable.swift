// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// Legacy iptables' tables, as far as this asks: `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES` of
/// `<linux/netfilter_ipv4/ip_tables.h>`, and the same of IPv6.
enum LegacyTable {
    /// Of `struct ipt_getinfo`: the table's name, valid hooks, five entry points, five underflows,
    /// entries, bytes.
    private static let informationSize = 32 + 4 + 20 + 20 + 8
    /// `NF_INET_PRE_ROUTING`, `NF_INET_FORWARD`, `NF_INET_POST_ROUTING`.
    private static let hooks = [0, 2, 4]

    /// How many of the chains that forwarded packets pass have rules, or the policy DROP; nil
    /// when the kernel does not say.
    static func forwardRules(_ table: String, isIPv6: Bool) -> Int? {
        let socket = Glibc.socket(
            isIPv6 ? AF_INET6 : AF_INET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 255)
        guard socket >= 0 else { return nil }
        defer { close(socket) }
        let level = isIPv6 ? Int32(IPPROTO_IPV6) : Int32(IPPROTO_IP)
        let name = Array(table.utf8.prefix(31))
        var information = [UInt8](repeating: 0, count: informationSize)
        information.replaceSubrange(0..<name.count, with: name)
        var length = socklen_t(information.count)
        guard unsafe getsockopt(socket, level, 64, &information, &length) == 0 else { return nil }
        func word(_ bytes: [UInt8], _ offset: Int) -> UInt32 { ArraySlice(bytes[offset...]).value() ?? 0 }
        let size = Int(word(information, informationSize - 4))
        // struct ipt_get_entries: name, size, entries.
        var entries = [UInt8](repeating: 0, count: 32 + 8 + size)
        entries.replaceSubrange(0..<name.count, with: name)
        unsafe withUnsafeBytes(of: UInt32(size)) { unsafe entries.replaceSubrange(32..<36, with: $0) }
        length = socklen_t(entries.count)
        guard unsafe getsockopt(socket, level, 65, &entries, &length) == 0 else { return nil }
        let valid = word(information, 32)
        var count = 0
        for hook in hooks where valid & 1 << UInt32(hook) != 0 {
            let first = Int(word(information, 36 + 4 * hook))
            let policy = Int(word(information, 56 + 4 * hook))
            if first != policy {
                count += 1
                continue
            }
            // An entry begins with the addresses; its target stands at an offset that follows them.
            let entry = 40 + policy
            let offsetAt = entry + (isIPv6 ? 140 : 88)
            guard offsetAt + 2 <= entries.count else { return nil }
            let target = entry + Int(ArraySlice(entries[offsetAt...]).value(UInt16.self) ?? 0)
            guard target + 36 <= entries.count else { return nil }
            // -NF_DROP - 1.
            if Int32(bitPattern: word(entries, target + 32)) == -1 { count += 1 }
        }
        return count
    }
}
