// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Foundation
import SystemPackage
import Testing

/// What a caller of `BPF_PROG_TEST_RUN` can set, by trying: older kernels answer EINVAL.
enum TestRun {
    /// `skb->ingress_ifindex`: since Linux 5.12.
    static let setsIngressInterface = works { try $0.run(.toUplink, packet, ingressInterface: Harness.interface) }
    /// `skb->gso_size`: since Linux 5.14.
    static let setsSegmentSize = works { try $0.run(.fromPod, packet, segments: 2, segmentSize: 500) }

    private static let packet = PacketBuilder(Addresses.both[0].pod, Addresses.both[0].remotePod)
        .udp(1, 2, payload: [UInt8](repeating: 0, count: 900))

    private static func works(_ run: (Harness) throws -> BPFProgram.TestResult) -> Bool {
        guard let harness = try? Harness() else { return true }  // the tests themselves say why not
        do {
            _ = try run(harness)
            return true
        } catch {
            // Any other error is the tests' own to tell.
            guard case .call(_, _, .invalidArgument) = error as? BPFError else { return true }
            return false
        }
    }
}

@Suite("Programs: test runs")
struct TestRunTests {
    @Test("only old kernels' test runs lack something")
    func abilities() throws {
        let release = try String(contentsOfFile: "/proc/sys/kernel/osrelease", encoding: .utf8)
        let isOld = release.hasPrefix("5.")
        #expect(isOld || TestRun.setsIngressInterface && TestRun.setsSegmentSize, "\(release)")
    }
}

extension Trait where Self == ConditionTrait {
    static var setsIngressInterface: Self {
        .enabled(if: TestRun.setsIngressInterface, "kernel: its test runs take no ingress_ifindex")
    }
    static var setsSegmentSize: Self {
        .enabled(if: TestRun.setsSegmentSize, "kernel: its test runs take no gso_size")
    }
}
