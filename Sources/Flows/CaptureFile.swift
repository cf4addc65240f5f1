// SPDX-License-Identifier: Apache-2.0

public import DataplaneMaps

/// Packets at hooks as a capture file (pcapng, draft-ietf-opsawg-pcapng), in little-endian byte order.
///
/// Each hook of each device is an interface of its own, named `from_pod@cali1`. A packet's verdict is its comment and its
/// `epb_verdict`, type Linux eBPF TC.
public struct CaptureFile: Sendable {
    private var interfaces: [Name: UInt32] = [:]

    private struct Name: Hashable {
        var hook: String
        var device: String
        var isEthernet: Bool
    }

    public init() {}

    /// What a file begins with: the section header block.
    public static var header: [UInt8] {
        block(0x0a0d_0d0a, word(0x1a2b_3c4d, 4) + word(1, 2) + word(0, 2) + [UInt8](repeating: 0xff, count: 8))
    }

    /// A packet, and its interface's description when that is new. `time`: nanoseconds since the epoch.
    public mutating func packet(_ trace: TraceEvent, device: String, time: UInt64, comment: String) -> [UInt8] {
        let name = Name(hook: trace.event.hook.name, device: device, isEthernet: trace.isEthernet)
        var bytes: [UInt8] = []
        if interfaces[name] == nil {
            interfaces[name] = UInt32(interfaces.count)
            // LINKTYPE_ETHERNET or LINKTYPE_RAW; the name; nanoseconds.
            bytes += Self.block(
                1,
                Self.word(trace.isEthernet ? 1 : 101, 2) + Self.word(0, 2) + Self.word(0, 4)
                    + Self.option(2, Array("\(name.hook)@\(device)".utf8)) + Self.option(9, [9]) + Self.word(0, 4))
        }
        // TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT.
        let verdict: UInt64 = trace.verdict == .drop ? 2 : trace.verdict == .redirect ? 7 : 0xffff_ffff
        return bytes
            + Self.block(
                6,
                Self.word(interfaces[name] ?? 0, 4) + Self.word(time >> 32, 4) + Self.word(time & 0xffff_ffff, 4)
                    + Self.word(trace.data.count, 4) + Self.word(trace.length, 4) + Self.padded(trace.data)
                    + Self.option(1, Array(comment.utf8)) + Self.option(7, [1] + Self.word(verdict, 8))
                    + Self.word(0, 4))
    }

    private static func word(_ value: some BinaryInteger, _ width: Int) -> [UInt8] {
        (0..<width).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
    }

    private static func padded(_ bytes: [UInt8]) -> [UInt8] {
        bytes + [UInt8](repeating: 0, count: (4 - bytes.count % 4) % 4)
    }

    private static func option(_ code: Int, _ bytes: [UInt8]) -> [UInt8] {
        word(code, 2) + word(bytes.count, 2) + padded(bytes)
    }

    private static func block(_ type: UInt32, _ body: [UInt8]) -> [UInt8] {
        let length = word(body.count + 12, 4)
        return word(type, 4) + length + body + length
    }
}
