// SPDX-License-Identifier: Apache-2.0

import BPF
import BPFObjects
import CBenchmark
import DataplaneMaps
import Foundation

/// The benchmark's own programs, with pins of their own.
struct YardstickPrograms {
    /// Where their maps are pinned.
    let layout: PinLayout

    /// Pins in a folder that must not be there yet.
    init(_ name: String) throws {
        layout = PinLayout(root: "/sys/fs/bpf/wgplane-bench-\(ProcessInfo.processInfo.processIdentifier)-\(name)")
        try layout.create()
    }

    func remove() { try? layout.remove() }

    private func load(_ image: BPFImage, isEthernet: Bool) throws -> BPFProgram {
        guard let data = Data(base64Encoded: "\(image.base64)") else {
            throw BenchmarkError("\(image.name) is not embedded as base64")
        }
        return try DataplanePrograms.load(Array(data), name: image.name, isEthernet: isEthernet, layout)
    }

    /// Lets every packet pass.
    func empty() throws -> BPFProgram { try load(.bench_empty, isEthernet: true) }
    /// Looks a packet's destination up in the tries of routes that are pinned in `layout`.
    func lookup() throws -> BPFProgram { try load(.bench_lookup, isEthernet: true) }
    /// Counts the measurement's packets and drops them.
    func sink(isEthernet: Bool) throws -> BPFProgram { try load(.bench_sink, isEthernet: isEthernet) }

    /// What the sinks have counted so far.
    func counted() throws -> (packets: UInt64, bytes: UInt64) {
        let map = try BPFMap<UInt32, wgp_bench_count>(pinned: layout.map("sink"), name: "sink")
        let values = try map.lookupPerCPU(0) ?? []
        return (values.reduce(0) { $0 + $1.packets }, values.reduce(0) { $0 + $1.bytes })
    }
}
