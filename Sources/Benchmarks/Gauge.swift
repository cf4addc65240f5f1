// SPDX-License-Identifier: Apache-2.0

import CBenchmark
import Foundation
import SystemDescriptors

/// The same work again and again, by which it is known whether the machine is as quick as it can be.
///
/// Neighbours on the same hardware slow a virtual machine's packets down by half for seconds, and no counter tells. What
/// is measured is left out while the gauge is slow: by the gauge's word alone, whatever the value.
final class Gauge {
    /// A packet's way through the kernel to a socket that drops it, in the namespace it was made in.
    private let sender: Int32
    private let drain: Int32
    private var least = Double.infinity
    /// Waiting that is left, for all that is measured.
    private var waiting = Duration.seconds(900)
    /// How much slower than its least the gauge may be.
    private static let tolerance = 1.15
    /// How long one value may be waited for.
    private static let patience = Duration.seconds(60)

    /// - Parameter place: a namespace whose loopback device is up.
    init(in place: NamespaceFiles) throws {
        (sender, drain) = try place.run { (wgb_udp_socket(0, 0), wgb_udp_drain()) }
        guard drain >= 0, sender >= 0 else { throw BenchmarkError("no sockets: errno \(-min(drain, sender))") }
        for _ in 0..<20 { _ = try isQuiet() }
    }

    deinit {
        close(drain)
        close(sender)
    }

    private func isQuiet() throws -> Bool {
        let result = wgb_udp_send(sender, 0, [127, 0, 0, 1], 1, 64, 2000, 0)
        guard result.error == 0 else { throw BenchmarkError("gauge: errno \(result.error)") }
        let value = Double(result.nanoseconds) / 2000
        least = min(least, value)
        return value <= least * Self.tolerance
    }

    /// The least of `count` values between two quick looks at the gauge; where the machine does not get quiet in time,
    /// of those that there are. To be called on the processor that is measured.
    func least(of count: Int, _ measure: () throws -> Double) throws -> Double {
        let begun = ContinuousClock.now
        var quiet = (least: Double.infinity, count: 0)
        var loud = (least: Double.infinity, count: 0)
        var wasQuiet = try isQuiet()
        while quiet.count < count {
            if loud.count >= count, .now - begun > min(Self.patience, waiting) { break }
            let value = try measure()
            let isQuiet = try isQuiet()
            if wasQuiet && isQuiet {
                quiet = (min(quiet.least, value), quiet.count + 1)
            } else {
                loud = (min(loud.least, value), loud.count + 1)
            }
            wasQuiet = isQuiet
        }
        if loud.count > 0 { waiting -= .now - begun }
        return quiet.count > 0 ? quiet.least : loud.least
    }
}
