// SPDX-License-Identifier: Apache-2.0

import Datastore
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing

/// The command line on the three datastores.
@Suite("Datastores: command line", .serialized)
struct CommandTests {
    /// `$WGPLANE_BINARY`, else beside the tests.
    private static let binary: String = {
        if let named = ProcessInfo.processInfo.environment["WGPLANE_BINARY"] { return named }
        let bundle = CommandLine.arguments.first { $0.hasSuffix(".xctest") } ?? ""
        return URL(fileURLWithPath: bundle).deletingLastPathComponent().appendingPathComponent("wgplane").path
    }()

    @discardableResult
    private func wgplane(
        _ environment: [String: String], _ words: String..., status expected: Int32 = 0
    ) async throws -> String {
        let (status, output) = try await Task.detachedThread {
            try ProgramLaunch(
                [Self.binary] + words,
                environment: currentEnvironment() + environment.map { "\($0.key)=\($0.value)" }, ownSession: false
            ).capture()
        }
        #expect(status == expected, "\(words.joined(separator: " ")): \(output)")
        return output
    }

    @Test("get, apply, patch, delete and mode on each", arguments: [StoreKind.etcd, .kubernetes])
    func resources(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            var environment = location(rig)
            let folder = "/tmp/wgplane-command-\(UUID().uuidString)"
            try makeFolders(folder)
            defer { try? FileManager.default.removeItem(atPath: folder) }
            let manifests = [Make.node("n1"), Make.pool("pool", "10.48.0.0/16"), Make.felix(false)]
            let text = try manifests.map { "---\n" + (try ManifestText.yaml($0.content)) }.joined()
            try replaceFile("\(folder)/m.yaml", with: Array(text.utf8))
            try await wgplane(environment, "apply", "-f", "\(folder)/m.yaml")
            // Again, and nothing of others is lost.
            try await rig.direct.update(ResourceKey(.node, "n1")) { current in
                var node = current
                node?[["metadata", "labels", "zone"]] = "b"
                return node
            }
            if kind == .kubernetes {
                try await wgplane(environment, "apply", "-f", "\(folder)/m.yaml")
                let node = try await rig.direct.read([.node]).manifests[ResourceKey(.node, "n1")]
                #expect(node?.content[["metadata", "labels", "zone"]] == "b")
            }
            try await wgplane(
                environment, "patch", "felixconfiguration", "default", "--type=merge", "-p",
                #"{"spec":{"wireguardEnabled":true}}"#)
            #expect(try await wgplane(environment, "get", "felixconfiguration").contains("wireguardEnabled: true"))
            #expect(try await wgplane(environment, "get", "nodes", "-o", "json").contains("\"n1\""))
            try await wgplane(environment, "mode", "set", "route", "--node", "n1")
            #expect(try await wgplane(environment, "mode", "get").contains("Route"))
            try await wgplane(environment, "delete", "ippool", "pool")
            #expect(try await wgplane(environment, "get", "ippools").contains("No resources"))
            try await wgplane(environment, "delete", "ippool", "pool", status: 1)
            environment["WGPLANE_DATASTORE"] = "nothing:here"
            #expect(try await wgplane(environment, "get", "nodes", status: 2).contains("is no datastore"))
        }
    }

    /// Variables that name a rig's datastore.
    private func location(_ rig: any StoreRig) -> [String: String] {
        switch rig {
        case let rig as EtcdRig:
            return rig.server.environment("agent").merging(["WGPLANE_DATASTORE": "etcd:\(rig.server.endpoint)"]) { $1 }
        case let rig as KubernetesRig:
            return ["WGPLANE_DATASTORE": "kubernetes:\(rig.server.adminConfiguration)"]
        default: return [:]
        }
    }

    @Test("copy: directory to etcd to Kubernetes and back is the same; what is refused is named, and the rest goes on")
    func copying() async throws {
        try await StoreKind.etcd.run { etcd in
            try await StoreKind.kubernetes.run { kubernetes in
                let folder = "/tmp/wgplane-copy-\(UUID().uuidString)"
                defer { try? FileManager.default.removeItem(atPath: folder) }
                let first = DirectoryDatastore(path: "\(folder)/first", logger: quiet)
                try await first.create()
                try await first.put(
                    Make.node("n1", annotations: ["projectcalico.org/IPv4Address": "10.0.0.1/24"]),
                    Make.pod("web", node: "n1", "10.48.1.1"), Make.pool("pool", "10.48.0.0/16"), Make.felix(true))
                var environment = location(etcd)
                let removed = environment.removeValue(forKey: "WGPLANE_DATASTORE")
                let hosts = try #require(removed)
                let cluster = try #require(location(kubernetes)["WGPLANE_DATASTORE"])
                let dry = try await wgplane(
                    environment, "datastore", "copy", "directory:\(folder)/first", hosts, "--dry-run")
                #expect(dry.contains("4 would be copied"))
                #expect(
                    try await wgplane(environment, "datastore", "copy", "directory:\(folder)/first", hosts)
                        .contains("4 copied, 0 are the same, 0 failed"))
                try await wgplane(environment, "datastore", "copy", hosts, cluster)
                try await wgplane(environment, "datastore", "copy", cluster, "directory:\(folder)/second")
                let second = try await DirectoryDatastore(path: "\(folder)/second", logger: quiet).read()
                #expect(Set(second.manifests.keys) == Set(try await first.read().manifests.keys))
                let node = second.manifests[ResourceKey(.node, "n1")]
                #expect(node?.annotations["projectcalico.org/IPv4Address"] == "10.0.0.1/24")
                #expect(node?.content[["metadata", "uid"]] == nil && node?.content[["status", "addresses"]] != nil)
                // Of a pod that ran only what wgplane reads: its containers' environment may hold secrets.
                let pod = second.manifests[ResourceKey(.pod, "web")]?.content
                #expect(pod?[["status", "podIP"]]?.stringValue == "10.48.1.1" && pod?["kind"]?.stringValue == "Pod")
                #expect(pod?[["spec", "nodeName"]] != nil && pod?[["spec", "containers"]] == nil)
                // A pod without containers is none to an API server.
                try await first.put(Make.resource(.pod, "bare", ["spec": .object(["nodeName": "n1"])]), Make.node("n2"))
                let words = try await wgplane(
                    environment, "datastore", "copy", "directory:\(folder)/first", cluster, status: 1)
                #expect(words.contains("Pod/default/bare") && words.contains("1 failed"))
                #expect(try await kubernetes.direct.read([.node]).manifests.count == 2)
            }
        }
    }
}
