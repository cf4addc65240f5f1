// SPDX-License-Identifier: Apache-2.0

import Agent
import Foundation
import Lab
import Model
import SystemDescriptors
import Testing

/// What the programs counted into the tunnel, held against WireGuard's own counters.
@Suite("Cluster: audit", .serialized)
struct AuditTests {
    /// Of the audited load: `$WGPLANE_AUDIT_SECONDS`.
    static let seconds =
        ProcessInfo.processInfo.environment["WGPLANE_AUDIT_SECONDS"].flatMap { Int($0) } ?? 8 * min(Lab.patience, 2)

    /// Bytes of a family: a hundredth of them is several times what may be on its way.
    private static let enough: UInt64 = 8_000_000

    struct Answer: Decodable {
        struct Finding: Decodable {
            var direction: String
            var family: String
            var expectedLow: UInt64
            var allowance: UInt64
            var difference: Double
            var verdict: String
        }

        var findings: [Finding]
        var lostBeforeDevice: Int64
        var isClosed: Bool
    }

    /// Packets of one size: of those, one of a hundred is one percent of the bytes.
    private func floodEvenly(_ lab: Lab) throws {
        for family in lab.spec.families {
            for _ in 1...2 {
                _ = try Collectors.start(
                    lab, "node1-pod1", ["ping", "-q", "-f", "-s", "1200", "\(LabAddresses.pod(2, 1, family))"],
                    log: "/dev/null")
            }
        }
    }

    /// Bulk, small datagrams, streams of both families, from pods and from the node.
    private func loadMixed(_ lab: Lab) throws {
        for family in lab.spec.families {
            let target = LabAddresses.pod(2, 1, family)
            let port = family == .ipv4 ? "5555" : "5556"
            let wide = family == .ipv4 ? [] : ["-6"]
            _ = try Collectors.start(
                lab, "node2-pod1", ["sh", "-c", "exec nc \(wide.joined()) -k -l -p \(port) >/dev/null"],
                log: "/dev/null")
            for place in ["node1-pod1", "node1"] {
                _ = try Collectors.start(
                    lab, place,
                    [
                        "sh", "-c",
                        "while ! nc -z \(target) \(port); do :; done; timeout \(Self.seconds * 3) nc \(target) \(port) < /dev/zero",
                    ], log: "/dev/null")
            }
        }
    }

    private func audit(_ lab: Lab, seconds: Int = Self.seconds) async throws -> Answer {
        let answer = try await Cluster.wgplane(lab, "node1", "audit", "--seconds", "\(seconds)", "-o", "json")
        let found = try JSONDecoder().decode(Answer.self, from: Data(answer.output.utf8))
        #expect(answer.status == (found.isClosed ? 0 : 1))
        for finding in found.findings {
            print(
                "audit: \(finding.direction) \(finding.family) \(finding.expectedLow) bytes, difference \(finding.difference * 100) %, \(finding.verdict)"
            )
        }
        return found
    }

    @Test("a mixed load closes within 0.1 %")
    func closes() async throws {
        try await Cluster.run { lab in
            let traffic = try await Traffic.start(lab, interval: 4000)
            try loadMixed(lab)
            try await traffic.goesOn(lab)
            let found = try await audit(lab)
            _ = await traffic.stop()
            #expect(found.findings.count == 4 && found.isClosed && found.lostBeforeDevice < 64)
            for finding in found.findings {
                #expect(finding.expectedLow > 100_000, "there is a load")
                let limit = 0.001 + Double(finding.allowance) / Double(finding.expectedLow)
                #expect(finding.verdict == "closed" && abs(finding.difference) <= limit, "\(finding)")
            }
        }
    }

    @Test(
        "a tap that takes one packet of a hundred is told of, by the command, status and metrics",
        .enabled(if: KernelTraits.hasTap, "kernel: has no cls_matchall with act_gact to make a tap of"))
    func tap() async throws {
        try await Cluster.run { lab in
            for device in ["wireguard.cali", "wg-v6.cali"] {
                _ = try await Cluster.execute(lab, "node1", ["tc", "qdisc", "add", "dev", device, "clsact"])
                let filter = try await Cluster.execute(
                    lab, "node1",
                    [
                        "tc", "filter", "add", "dev", device, "egress", "pref", "50000", "matchall", "action", "gact",
                        "pass", "random", "determ", "drop", "100",
                    ])
                #expect(filter.status == 0, "\(filter.output)")
            }
            try floodEvenly(lab)
            var found = try await audit(lab)
            // What is on its way at the looks is allowed for; one of a hundred must be clearly more than that.
            let load = found.findings.filter { $0.direction == "out" }.map(\.expectedLow).min() ?? 0
            if load < Self.enough {
                let factor = min(10, 1.5 * Double(Self.enough) / Double(max(load, 1)))
                found = try await audit(lab, seconds: Int(Double(Self.seconds) * factor))
            }
            #expect(!found.isClosed)
            for finding in found.findings where finding.direction == "out" {
                #expect(finding.expectedLow > 100_000, "there is a load")
                #expect(finding.verdict == "missing", "\(finding)")
                #expect(
                    (-0.013 ... -0.003).contains(finding.difference),
                    "one of a hundred, less what passed during the looks: \(finding)")
            }
            for finding in found.findings where finding.direction == "in" { #expect(finding.verdict == "closed") }
            try await lab.wait("status tells of it", within: .seconds(60)) {
                lab.status("node1")?.problems.contains { $0.resource == "Audit" } ?? false
            }
            let metrics = try await Cluster.execute(
                lab, "node1", ["curl", "-s", "--unix-socket", "/run/wgplane/http.sock", "http://node/metrics"]
            ).output
            #expect(metrics.contains("wgplane_audit_alarm{direction=\"out\",family=\"IPv4\"} 1"))
        }
    }
}
