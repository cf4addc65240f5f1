// SPDX-License-Identifier: Apache-2.0

public import BPF
internal import CDataplaneABI

/// Packets and bytes that went one way at one hook.
public struct CounterValue: Sendable, Hashable, Codable {
    public var packets: UInt64 = 0
    public var bytes: UInt64 = 0
}

/// The per-CPU counters.
public struct CounterTable: Sendable {
    let map: BPFMap<UInt32, wgp_counter>

    init(_ source: some MapSource) throws(BPFError) {
        map = try source.open("counters")
    }

    /// The sum over all CPUs.
    public func read(_ hook: Hook, _ reason: Reason) throws(BPFError) -> CounterValue {
        let index = reason.rawValue * WGP_HOOK_COUNT.rawValue + hook.rawValue
        var sum = CounterValue()
        for value in try map.lookupPerCPU(index) ?? [] {
            sum.packets += value.packets
            sum.bytes += value.bytes
        }
        return sum
    }

    /// All that are not zero, by reason and hook.
    public func readAll() throws(BPFError) -> [(hook: Hook, reason: Reason, value: CounterValue)] {
        var result: [(hook: Hook, reason: Reason, value: CounterValue)] = []
        for reason in Reason.allCases {
            for hook in Hook.allCases {
                let value = try read(hook, reason)
                if value.packets != 0 { result.append((hook, reason, value)) }
            }
        }
        return result
    }

    /// Over all hooks.
    public func total(_ reason: Reason) throws(BPFError) -> CounterValue {
        var sum = CounterValue()
        for hook in Hook.allCases {
            let value = try read(hook, reason)
            sum.packets += value.packets
            sum.bytes += value.bytes
        }
        return sum
    }
}
