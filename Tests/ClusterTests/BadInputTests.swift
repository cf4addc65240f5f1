// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing
import WireGuard

/// Bad input gets an error that names resource, field, value and remedy, in the log and in
/// `status`; everything else goes on working.
@Suite("Cluster: bad input", .serialized)
struct BadInputTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var testDescription: String
        /// File in the datastore, and its text.
        var file: String
        var text: String
        /// What the problem must name.
        var resource: String
        var field: String
        var value: String
    }

    static let key = "fpmFbBX4lMh7hH9vT4zgGnLypBcHz1XA81YFB7ZNAX8="

    static let cases = [
        Case(
            testDescription: "malformed YAML", file: "nodes/bad.yaml", text: "kind: Node\nmetadata: {name: [}\n",
            resource: "nodes/bad.yaml", field: "", value: ""),
        Case(
            testDescription: "unknown kind", file: "nodes/bad.yaml", text: "kind: Noode\nmetadata: {name: x}\n",
            resource: "nodes/bad.yaml", field: "kind", value: "Noode"),
        Case(
            testDescription: "unknown field", file: "dataplaneconfigurations/bad.yaml",
            text: "kind: DataplaneConfiguration\nmetadata: {name: node.node1}\nspec: {wireguardBackendd: Auto}\n",
            resource: "DataplaneConfiguration/node.node1", field: "spec.wireguardBackendd", value: "Auto"),
        Case(
            testDescription: "bad CIDR", file: "ipamblocks/bad.yaml",
            text: "kind: IPAMBlock\nmetadata: {name: bad}\nspec: {cidr: 10.48.9.1/26, affinity: 'host:node2'}\n",
            resource: "IPAMBlock/bad", field: "spec.cidr", value: "10.48.9.1/26"),
        Case(
            testDescription: "bad key", file: "nodes/bad.yaml",
            text: "kind: Node\nmetadata: {name: x, annotations: {projectcalico.org/WireguardPublicKey: short}}\n",
            resource: "Node/x", field: "metadata.annotations[projectcalico.org/WireguardPublicKey]", value: "short"),
        Case(
            testDescription: "overlapping blocks", file: "ipamblocks/bad.yaml",
            text: "kind: IPAMBlock\nmetadata: {name: bad}\nspec: {cidr: 10.48.2.0/25, affinity: 'host:node9'}\n",
            resource: "IPAMBlock/bad", field: "spec.affinity", value: "10.48.2.0/25"),
        Case(
            testDescription: "missing endpoint", file: "nodes/bad.yaml",
            text: "kind: Node\nmetadata: {name: x, annotations: {projectcalico.org/WireguardPublicKey: \(key)}}\n",
            resource: "Node/x", field: "status.addresses", value: ""),
        Case(
            testDescription: "device name too long", file: "felixconfigurations/bad.yaml",
            text:
                "kind: FelixConfiguration\nmetadata: {name: node.node1}\nspec: {wireguardInterfaceName: wireguard-is-too-long}\n",
            resource: "FelixConfiguration/node.node1", field: "spec.wireguardInterfaceName",
            value: "wireguard-is-too-long"),
    ]

    @Test("resources that are wrong are named and harm nothing else")
    func resources() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            let server = try EchoServer(in: lab.place("node2-pod1"), port: Prober.port, isIPv6: [false])
            defer { server.stop() }
            let target = try await Cluster.pod(lab, "node2-pod1")
            let probe = try LossProbe(in: lab.place("node1-pod1"), to: target.addresses[0].bytes)
            for bad in Self.cases {
                let path = "\(lab.paths.datastore)/\(bad.file)"
                try bad.text.write(toFile: path, atomically: true, encoding: .utf8)
                try await lab.wait("\(bad.testDescription) is in node1's status", within: .seconds(2)) {
                    lab.status("node1")?.problems.contains {
                        $0.resource == bad.resource && $0.field == bad.field && $0.value == bad.value
                            && !$0.remedy.isEmpty
                    } == true
                }
                let problem = try #require(lab.status("node1")?.problems.first { $0.resource == bad.resource })
                try await lab.wait("it is in the log") {
                    try String(contentsOfFile: lab.paths.log("node1"), encoding: .utf8).contains(problem.message)
                }
                let shown = try await Cluster.wgplane(lab, "node1", "status")
                #expect(shown.status == 0 && shown.output.contains(problem.description), "\(shown.output)")
                try FileManager.default.removeItem(atPath: path)
                try await lab.wait("\(bad.testDescription) is gone", within: .seconds(2)) {
                    lab.status("node1")?.problems.isEmpty == true
                }
            }
            let report = try await Task.detachedThread { probe.stop() }
            #expect(report.lost == 0, "\(report)")
            #expect(try lab.maps("node1").counters.total(.clear).packets == 0)
        }
    }

    @Test("a key that a second node claims stays with the first")
    func duplicateKey() async throws {
        try await Cluster.run(nodes: 3, families: [.ipv4]) { lab in
            let stolen = try #require(lab.status("node2")?.ipv4?.publicKey)
            // The thief's agent would heal it.
            try await lab.stopAgent("node3", signal: SIGKILL)
            try await Cluster.patch(
                lab, .node, "node3",
                .object([
                    "metadata": .object([
                        "annotations": .object([NodeAnnotation.publicKey(.ipv4): .string(stolen.description)])
                    ])
                ]))
            try await lab.wait("node1 has named node3", within: .seconds(2)) {
                lab.status("node1")?.problems.contains { $0.resource == "Node/node3" && $0.value == stolen.description }
                    == true
            }
            let peers = try #require(lab.status("node1")?.ipv4?.peers).filter { $0.state != "retiring" }
            #expect(peers.map(\.node) == ["node2"] && peers[0].action == "tunnel")
            // A new agent knows from the maps who had the key first.
            try await lab.stopAgent("node1", signal: SIGKILL)
            _ = try await lab.startAgent("node1")
            try await lab.wait("the next agent says the same") {
                let status = lab.status("node1")
                return status?.process == (await lab.agent("node1"))?.identifier
                    && status?.ipv4?.peers.map(\.node) == ["node2"]
                    && status?.ipv4?.peers.first?.action == "tunnel"
            }
        }
    }

    @Test("a full disk under the datastore: writes fail in words, traffic and agents go on")
    func fullDisk() async throws {
        try await Cluster.run(families: [.ipv4]) { lab in
            // The lab's datastore is on a tmpfs: fill it.
            let filler = "\(lab.paths.root)/filler"
            let disk = try openFile(filler, flags: O_WRONLY | O_CREAT, mode: 0o600)
            let block = [UInt8](repeating: 1, count: 1 << 20)
            _ = try await Cluster.execute(lab, "underlay", ["mount", "-o", "remount,size=64m", lab.paths.root])
            while (try? writeAll(disk, block)) != nil {}
            while (try? writeAll(disk, [1])) != nil {}
            let before = try await lab.datastore.read().manifests
            let patch = try await Cluster.wgplane(
                lab, "node1", "patch", "felixconfiguration", "default", "-p", "{spec: {wireguardKeepAlive: 25s}}")
            #expect(patch.status == 1)
            #expect(patch.output.contains("free space on the disk"), "\(patch.output)")
            #expect(try await lab.datastore.read().manifests == before, "nothing is torn")
            try FileManager.default.removeItem(atPath: filler)
            try disk.close()
            let again = try await Cluster.wgplane(
                lab, "node1", "patch", "felixconfiguration", "default", "-p", "{spec: {wireguardKeepAlive: 25s}}")
            #expect(again.status == 0, "\(again.output)")
            try await lab.wait("the setting is in force", within: .seconds(2)) {
                let peers = try await Cluster.onNode(lab, "node1") {
                    try BackendSelection.state(device: "wireguard.cali")?.1.peers.values.map(\.keepAlive) ?? []
                }
                return peers == [25]
            }
        }
    }

    @Test("the command line names what is wrong, and how it ends")
    func commandLine() async throws {
        try await Cluster.run(nodes: 1, pods: 0, families: [.ipv4]) { lab in
            let wrongUse: [[String]] = [
                ["nonsense"], ["maps", "dump", "nothing"], ["get", "nothing"], ["status", "-o", "xml"],
                ["patch", "node"],
                ["--datastore"], ["agent", "--datastore", "nothing:here"], ["patch", "node", "node1", "-p", "text"],
            ]
            for arguments in wrongUse {
                let result = try await Cluster.execute(lab, "node1", [Cluster.binary] + arguments)
                #expect(result.status == 2, "\(arguments): \(result)")
                #expect(!result.output.isEmpty)
            }
            let failures: [([String], String)] = [
                (["get", "node", "nobody"], "Node/nobody: is not in the datastore"),
                (["patch", "node", "nobody", "-p", "{a: b}"], "Node/nobody: is not in the datastore"),
                (["delete", "ippool", "nothing"], "IPPool/nothing: is not in the datastore"),
                (["apply", "-f", "/nowhere.yaml"], "/nowhere.yaml"),
                (
                    ["patch", "felixconfiguration", "default", "-p", "{spec: {wireguardMTU: 7}}"],
                    "FelixConfiguration/default: spec.wireguardMTU: \"7\""
                ),
                (["get", "node", "--datastore", "directory:/nowhere"], "directory:/nowhere: cannot be read"),
                (["status", "--run-directory", "/nowhere"], "no agent has written its status there"),
                (
                    ["agent", "--datastore", "kubernetes:/nowhere", "--run-directory", "/run/other"],
                    "/nowhere cannot be read"
                ),
            ]
            for (arguments, words) in failures {
                let result = try await Cluster.execute(lab, "node1", [Cluster.binary] + arguments)
                #expect(result.status == 1 && result.output.contains(words), "\(arguments): \(result)")
            }
            for command in [
                "", "agent", "status", "flows", "maps", "doctor", "get", "apply", "patch", "delete", "cleanup", "lab",
                "datastore",
            ] {
                let arguments = command.isEmpty ? ["--help"] : [command, "--help"]
                let result = try await Cluster.execute(lab, "node1", [Cluster.binary] + arguments)
                #expect(result.status == 0 && result.output.contains("OVERVIEW"), "\(arguments)")
                #expect(result.output.split(separator: "\n").allSatisfy { $0.count <= 100 }, "\(arguments)")
            }
        }
    }

    @Test("without root, and without BPF or WireGuard, an agent says so")
    func missingRights() async throws {
        try await Cluster.run(nodes: 1, pods: 0, families: [.ipv4], enabled: false) { lab in
            try await lab.stopAgent("node1", signal: SIGTERM)
            // setpriv (util-linux) takes away the identity, then the capabilities.
            let user = try await Cluster.execute(
                lab, "node1", ["setpriv", "--reuid", "65534", "--clear-groups", Cluster.binary, "agent"])
            #expect(user.status == 1 && user.output.contains("needs root"), "\(user)")
            let asked = try await Cluster.execute(
                lab, "node1", ["setpriv", "--reuid", "65534", "--clear-groups", Cluster.binary, "doctor"])
            #expect(asked.status == 1 && asked.output.contains("no root"), "\(asked)")

            try await Cluster.configure(lab, ["wireguardBackend": "Userspace"])
            try await Cluster.switchWireGuard(lab, on: true)
            // Each way of starting an agent that lacks something, and what it must say in its status.
            let lacking: [(String, [String], String)] = [
                ("BPF", ["setpriv", "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin"], "BPF"),
                ("WireGuard", ["env", "PATH=/nowhere"], "wireguard-go"),
            ]
            for (what, prefix, words) in lacking {
                try? FileManager.default.removeItem(
                    atPath: StatusReport.path(runDirectory: lab.paths.runDirectory("node1")))
                let launch = ProgramLaunch(
                    [Cluster.binary, "lab", "exec", "--name", lab.spec.name, "node1", "--"] + prefix + [
                        Cluster.binary, "agent",
                    ],
                    environment: currentEnvironment(), log: lab.paths.log("node1"))
                _ = try launch.start()
                try await lab.wait("an agent without \(what) says so", within: .seconds(5)) {
                    lab.status("node1")?.problems.contains { "\($0)".contains(words) && !$0.remedy.isEmpty } == true
                }
                try await lab.stopAgent("node1", signal: SIGTERM)
            }
            // With all it needs, the next one mends it.
            _ = try await lab.startAgent("node1")
            try await lab.waitUntilSettled(enabled: true)
        }
    }
}
