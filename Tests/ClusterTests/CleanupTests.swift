// SPDX-License-Identifier: Apache-2.0

import Agent
import Datastore
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing

/// Switched off, or cleaned up, a node is as it was before the first agent started.
@Suite("Cluster: cleanup", .serialized)
struct CleanupTests {
    /// What an operator would look at.
    static let looks = [
        "ip -d link", "ip -6 rule", "ip rule", "ip route show table all", "ip -6 route show table all", "ip address",
        "nft list ruleset", "sysctl -a --pattern '^net\\.'", "find /sys/fs/bpf", "bpftool net", "tc qdisc show",
        "iptables-nft-save; ip6tables-nft-save",
        "find /run/wireguard /var/lib/wgplane-agent 2>/dev/null; true",
    ]

    /// The answer to each look.
    private func snapshot(_ lab: Lab, _ node: String) async throws -> [String: String] {
        var result: [String: String] = [:]
        for look in Self.looks {
            let output = try await Cluster.execute(lab, node, ["bash", "-c", look]).output
            // Counters and dates say nothing of what is there.
            result[look] = output.split(separator: "\n").filter { !$0.hasPrefix("#") && !Self.isRestless($0) }
                .map { $0.replacing(/\[\d+:\d+\]/, with: "").replacing(/packets \d+ bytes \d+/, with: "") }
                .joined(separator: "\n")
        }
        return result
    }

    /// Settings that the kernel changes by itself.
    private static func isRestless(_ line: Substring) -> Bool {
        ["nf_conntrack_count", "neigh.", "random", "stable_secret", "fastopen_key"].contains {
            line.contains($0)
        }
    }

    private func expectSame(_ before: [String: String], _ after: [String: String], _ when: String) {
        for look in Self.looks {
            let (a, b) = (before[look] ?? "", after[look] ?? "")
            guard a != b else { continue }
            let lines = (Set(a.split(separator: "\n")), Set(b.split(separator: "\n")))
            Issue.record(
                "\(when): \(look)\n  gone: \(lines.0.subtracting(lines.1).sorted())\n  left: \(lines.1.subtracting(lines.0).sorted())"
            )
        }
    }

    /// What a node is made to do before it is cleaned.
    struct Arrangement: CustomTestStringConvertible, Sendable {
        var mode: ModeChoice
        var attachment = AttachmentChoice.auto
        /// Rules that were there before.
        var firewall: [String] = []
        var testDescription: String {
            "\(mode.rawValue)\(attachment == .auto ? "" : " by \(attachment.rawValue)")"
                + (firewall.first.map { " beside \($0.split(separator: " ")[0])" } ?? "")
        }

        static let all: [Arrangement] = [
            Arrangement(mode: .ebpf), Arrangement(mode: .ebpf, attachment: .tc), Arrangement(mode: .route),
            Arrangement(
                mode: .route,
                firewall: [
                    "iptables-nft -A INPUT -m conntrack --ctstate INVALID -j DROP",
                    "iptables-nft -t nat -A POSTROUTING -s 192.0.2.1 -j MASQUERADE",
                    "ip6tables-nft -A INPUT -p udp -j DROP",
                ]),
            Arrangement(
                mode: .route,
                firewall: [
                    "nft add table inet host",
                    "nft add chain inet host in '{ type filter hook input priority 0; policy accept; }'",
                    "nft add rule inet host in tcp dport 12345 drop",
                ]),
        ]
    }

    @Test(
        "after modes with strict mode and host encryption: switched off, and cleaned up after a kill",
        arguments: Arrangement.all)
    func asBefore(_ arrangement: Arrangement) async throws {
        try await Cluster.run(attachment: arrangement.attachment, mode: arrangement.mode, agents: false) { lab in
            for rule in arrangement.firewall {
                let done = try await Cluster.execute(lab, "node1", ["bash", "-c", rule])
                #expect(done.status == 0, "\(rule): \(done.output)")
            }
            try await Cluster.patch(
                lab, .felixConfiguration, "default",
                .object(["spec": .object(["wireguardHostEncryptionEnabled": true])]))
            try await Cluster.configure(lab, ["wireguardStrictMode": "Enabled", "wireguardInputRule": "Auto"])
            // Loading modules and the like is done once for all.
            let before = try await snapshot(lab, "node1")
            for node in lab.nodeNames() { _ = try await lab.startAgent(node) }
            try await lab.waitUntilSettled(enabled: true)
            let during = try await snapshot(lab, "node1")
            #expect(during["ip -d link"] != before["ip -d link"], "the negative control: there is something to see")
            try await Cluster.switchWireGuard(lab, on: false)
            try await lab.waitUntilSettled(enabled: false)
            // Its words in the datastore are written beside its passes.
            try await lab.wait("the Node says nothing of WireGuard any more") {
                let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
                return node?.annotations.isEmpty != false && node?.content[["status", "conditions"]] == nil
            }
            expectSame(before, try await snapshot(lab, "node1"), "switched off")
            // Names that nobody knows afterwards, and no word to switch off.
            try await Cluster.patch(
                lab, .felixConfiguration, "default",
                .object([
                    "spec": .object([
                        "wireguardInterfaceName": "renamed0", "wireguardEnabled": true, "wireguardEnabledV6": true,
                    ])
                ]))
            try await lab.waitUntilSettled(enabled: true)
            try await Cluster.patch(
                lab, .felixConfiguration, "default", .object(["spec": .object(["wireguardInterfaceName": .null])]))
            try await lab.stopAgent("node1", signal: 9)
            let cleaned = try await Cluster.wgplane(lab, "node1", "cleanup")
            #expect(cleaned.status == 0, "\(cleaned.output)")
            expectSame(before, try await snapshot(lab, "node1"), "cleaned up")
            let left = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
            #expect(left?.annotations.isEmpty != false && left?.content[["status", "conditions"]] == nil)
        }
    }
}
