// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// One of legacy iptables' tables, as far as this asks: `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES` of
/// `<linux/netfilter_ipv4/ip_tables.h>`, and the same of IPv6.
struct LegacyTable: ~Copyable {
    /// Of `struct ipt_getinfo`: the table's name, valid hooks, five entry points, five underflows,
    /// entries, bytes.
    private static let informationSize = 32 + 4 + 20 + 20 + 8
    /// `NF_INET_PRE_ROUTING`, `NF_INET_FORWARD`, `NF_INET_POST_ROUTING`.
    private static let hooks = [0, 2, 4]

    private let socket: Int32
    private let isIPv6: Bool
    private let name: [UInt8]
    private var information = [UInt8](repeating: 0, count: informationSize)

    /// Nil when the kernel has no such table, or does not say.
    init?(_ table: String, isIPv6: Bool) {
        self.isIPv6 = isIPv6
        name = Array(table.utf8.prefix(31))
        // Any Internet socket does; a raw one needs a privilege more.
        socket = Glibc.socket(
            isIPv6 ? AF_INET6 : AF_INET, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard socket >= 0 else { return nil }
        information.replaceSubrange(0..<name.count, with: name)
        guard let answer = ask(64, information) else { return nil }
        information = answer
    }

    deinit { close(socket) }

    /// A question whose answer is written over it.
    private func ask(_ option: Int32, _ question: [UInt8]) -> [UInt8]? {
        var bytes = question
        var length = socklen_t(bytes.count)
        let level = isIPv6 ? Int32(IPPROTO_IPV6) : Int32(IPPROTO_IP)
        return unsafe getsockopt(socket, level, option, &bytes, &length) == 0 ? bytes : nil
    }

    private static func word(_ bytes: [UInt8], _ offset: Int) -> UInt32 { ArraySlice(bytes[offset...]).value() ?? 0 }

    private var validHooks: UInt32 { Self.word(information, 32) }

    /// Whether it has more than its chains' policies: one entry for each, and one that ends the table.
    var hasRules: Bool {
        Int(Self.word(information, Self.informationSize - 8)) > validHooks.nonzeroBitCount + 1
    }

    /// How many of the chains that forwarded packets pass have rules, or the policy DROP; nil
    /// when the kernel does not say.
    func forwardRules() -> Int? {
        let size = Int(Self.word(information, Self.informationSize - 4))
        // struct ipt_get_entries: name, size, entries.
        var question = [UInt8](repeating: 0, count: 32 + 8 + size)
        question.replaceSubrange(0..<name.count, with: name)
        unsafe withUnsafeBytes(of: UInt32(size)) { unsafe question.replaceSubrange(32..<36, with: $0) }
        guard let entries = ask(65, question) else { return nil }
        var count = 0
        for hook in Self.hooks where validHooks & 1 << UInt32(hook) != 0 {
            let first = Int(Self.word(information, 36 + 4 * hook))
            let policy = Int(Self.word(information, 56 + 4 * hook))
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
            if Int32(bitPattern: Self.word(entries, target + 32)) == -1 { count += 1 }
        }
        return count
    }
}
