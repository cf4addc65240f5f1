// SPDX-License-Identifier: Apache-2.0

import Agent
import CTestSupport
import DataplaneMaps
import Foundation
import Lab
import Model
import SystemDescriptors
import Testing
import WireGuard

/// What an agent keeps of root, and of secrets.
@Suite("Cluster: privileges", .serialized)
struct PrivilegeTests {
    private static func field(_ name: String, of status: String) -> String? {
        status.split(separator: "\n").first { $0.hasPrefix("\(name):") }?
            .split(whereSeparator: \.isWhitespace).dropFirst().first.map(String.init)
    }

    private static func read(_ path: String) -> String { (try? String(contentsOfFile: path, encoding: .utf8)) ?? "" }

    /// CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON.
    private static let kept: UInt64 = 1 << 12 | 1 << 39 | 1 << 38

    @Test("every thread keeps three capabilities, under a filter; no dumps; what it starts has no more")
    func agent() async throws {
        try await Cluster.run { lab in
            let agent = try #require(await lab.agent("node1"))
            let folder = "/proc/\(agent.identifier)"
            let threads = try FileManager.default.contentsOfDirectory(atPath: "\(folder)/task")
            #expect(threads.count > 3)
            for thread in threads {
                let status = Self.read("\(folder)/task/\(thread)/status")
                for set in ["CapEff", "CapPrm", "CapBnd"] {
                    let bits = Self.field(set, of: status).flatMap { UInt64($0, radix: 16) } ?? .max
                    // A kernel before 5.8 has fewer.
                    #expect(bits & ~Self.kept == 0, "\(thread) \(set) \(bits)")
                }
                #expect(Self.field("CapInh", of: status) == "0000000000000000")
                #expect(Self.field("NoNewPrivs", of: status) == "1" && Self.field("Seccomp", of: status) == "2")
            }
            #expect(Self.read("\(folder)/limits").contains(/Max core file size +0 +0/))
            // Files of a process that may not be dumped are root's, and its memory is for CAP_SYS_PTRACE alone.
            let others = try lab.place("node1").processes().filter { $0.identifier != agent.identifier }
            let allowed = Self.kept | 1 << 13
            for other in others {
                let status = Self.read("/proc/\(other.identifier)/status")
                let bits = Self.field("CapEff", of: status).flatMap { UInt64($0, radix: 16) } ?? 0
                #expect(bits & ~allowed == 0, "\(status)")
                #expect(Self.field("Seccomp", of: status) == "2", "\(status)")
            }
            #expect(others.contains { Self.read("/proc/\($0.identifier)/comm").hasPrefix("wgplane-start") })
        }
    }

    @Test("system calls that no agent makes fail")
    func calls() throws {
        func attempts(reduced: Bool) throws -> [(name: String, error: Int32)] {
            var attempts = [wgt_attempt](repeating: wgt_attempt(), count: 64)
            let count = wgt_forbidden_calls(&attempts, attempts.count, reduced ? 1 : 0)
            try #require(count > 20, "errno \(-count)")
            return attempts.prefix(Int(count)).map { (String(cString: $0.name), $0.error) }
        }
        for (name, error) in try attempts(reduced: true) { #expect(error == EPERM, "\(name)") }
        #expect(
            try attempts(reduced: false).filter { $0.error == EPERM }.count < 5,
            "the negative control: root's fail otherwise")
    }

    @Test("what starts programs for the agent starts these, and goes with it; they go on")
    func launcher() async throws {
        try await Cluster.run(nodes: 2, pods: 1) { lab in
            func starter() throws -> ProcessReference? {
                try lab.place("node1").processes().first {
                    Self.read("/proc/\($0.identifier)/comm").hasPrefix("wgplane-start")
                }
            }
            #expect(try starter() != nil)
            // Through it: a device that is gone is made again.
            if lab.status("node1")?.backend == "userspace" {
                _ = try await Cluster.execute(lab, "node1", ["ip", "link", "delete", "wireguard.cali"])
                try await lab.wait("the device is there again", within: .seconds(20)) {
                    try await Cluster.execute(lab, "node1", ["ip", "link", "show", "wireguard.cali"]).status == 0
                }
            }
            // Without it an agent could never start WireGuard again: it ends, and the next one has another.
            if let agent = await lab.agent("node1"), lab.status("node1")?.backend == "userspace" {
                try starter()?.signal(SIGKILL)
                _ = try await Cluster.execute(lab, "node1", ["ip", "link", "delete", "wireguard.cali"])
                try await lab.wait("the agent ends", within: .seconds(20)) { !agent.isRunning }
                _ = try await lab.startAgent("node1")
                try await lab.waitUntilSettled(enabled: true)
                #expect(try starter() != nil)
            }
            try await lab.stopAgent("node1", signal: SIGKILL)
            try await lab.wait("it has gone with the agent") { try starter() == nil }
            #expect(try await Cluster.execute(lab, "node1", ["ip", "link", "show", "wireguard.cali"]).status == 0)
        }
    }

    @Test("a private key is nowhere in the agent's memory, at rest and after it has looked and changed")
    func memory() async throws {
        try await Cluster.run(nodes: 2, pods: 1) { lab in
            func secret() async throws -> (text: String, bytes: [UInt8]) {
                let shown = try await Cluster.execute(lab, "node1", ["wg", "show", "wireguard.cali", "private-key"])
                let text = shown.output.trimmingCharacters(in: .whitespacesAndNewlines)
                return (text, try #require(Base64.decode(text)))
            }
            func look(_ when: String) async throws {
                let (text, bytes) = try await secret()
                #expect(bytes.count == 32)
                let hex = bytes.map { String($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
                let agent = try #require(await lab.agent("node1"))
                for form in [bytes, Array(text.utf8), Array(hex.utf8)] {
                    #expect(wgt_memory_contains(agent.identifier, form, form.count) == 0, "\(when)")
                }
                // The negative control: what it surely knows is found.
                let known = Array("WGPLANE_NODE=node1".utf8)
                #expect(wgt_memory_contains(agent.identifier, known, known.count) > 0)
            }
            try await look("at rest")
            _ = try await Cluster.execute(lab, "node1", ["ip", "link", "delete", "wireguard.cali"])
            try await lab.waitUntilSettled(enabled: true)
            try await look("after another key was made")
            _ = try await Cluster.execute(lab, "node1", ["wg", "set", "wireguard.cali", "listen-port", "4711"])
            try await lab.wait("the port is mended", within: .seconds(20)) {
                try await Cluster.execute(lab, "node1", ["wg", "show", "wireguard.cali", "listen-port"]).output
                    .hasPrefix("51820")
            }
            try await look("after it has mended the device")
        }
    }

    @Test("pins and folders are root's alone; a link, or another user's, is refused")
    func foreign() async throws {
        try await Cluster.run(nodes: 1, pods: 0, families: [.ipv4]) { lab in
            let layout = PinLayout(root: lab.paths.pins("node1"))
            func mode(_ path: String) throws -> Int {
                try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int ?? -1
            }
            for folder in [layout.root, layout.folder, layout.links, lab.paths.runDirectory("node1")] {
                #expect(try mode(folder) == 0o700, "\(folder)")
            }
            for entry in try listFolder(layout.folder) where !entry.isFolder {
                #expect(try mode("\(layout.folder)/\(entry.name)") == 0o600, "\(entry.name)")
            }
            try await lab.stopAgent("node1", signal: SIGTERM)
            let config = "\(layout.folder)/config"
            let real = "\(layout.root)/elsewhere"
            try renameFile(config, real)
            try FileManager.default.createSymbolicLink(atPath: config, withDestinationPath: real)
            _ = try await lab.startAgent("node1")
            try await lab.wait("the agent names it") {
                lab.status("node1")?.problems.contains { $0.message.contains("is a symbolic link") } == true
            }
            try await lab.stopAgent("node1", signal: SIGTERM)
            try removeFile(config)
            try renameFile(real, config)
            try FileManager.default.setAttributes([.ownerAccountID: 65534], ofItemAtPath: config)
            _ = try await lab.startAgent("node1")
            try await lab.wait("the agent names whose it is") {
                lab.status("node1")?.problems.contains { $0.message.contains("belongs to user 65534") } == true
            }
            try await lab.stopAgent("node1", signal: SIGTERM)
            try FileManager.default.setAttributes([.ownerAccountID: 0], ofItemAtPath: config)
            _ = try await lab.startAgent("node1")
            try await lab.waitUntilSettled(enabled: true)
        }
    }
}
