// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import Foundation
internal import Model
internal import SystemDescriptors

/// The server that a lab's resources are on, where that is no folder.
public enum LabServer: Sendable {
    case etcd(EtcdServer)
    case kubernetes(KubernetesServer)

    /// The server that agents talk to.
    public var process: ServerProcess {
        switch self {
        case .etcd(let server): server.process
        case .kubernetes(let server): server.process
        }
    }
}

/// Starts a lab's server, and says how its nodes find it.
struct LabControl {
    let spec: LabSpec
    let paths: LabPaths
    let binary: String

    /// Words before a program that make it run on the machine of the server.
    private var prefix: [String] { [binary, "lab", "exec", "--name", spec.name, LabNetwork.control, "--"] }

    private var address: IPAddress { LabAddresses.control(spec.families.first ?? .ipv4) }

    /// Ready when it returns. Blocks.
    func start() throws -> LabServer? {
        switch spec.datastore {
        case .directory: return nil
        case .etcd: return .etcd(try startEtcd())
        case .kubernetes: return .kubernetes(try startKubernetes())
        }
    }

    private func startEtcd() throws -> EtcdServer {
        try EtcdServer.check()
        let server = try EtcdServer(
            folder: paths.control, address: address, port: 2379, peerPort: 2380, prefix: prefix)
        for name in nodes + ["admin"] { try server.authority.issue(name, name: name) }
        try server.process.start()
        try wait(server.process) { try run(["wgplane", "get", "nodes"]) == 0 }
        for node in nodes {
            for (file, name) in [("ca.crt", "ca.crt"), ("\(node).crt", "node.crt"), ("\(node).key", "node.key")] {
                try give(node, name, try readFile("\(server.authority.folder)/\(file)"))
            }
        }
        return server
    }

    private func startKubernetes() throws -> KubernetesServer {
        let server = try KubernetesServer(
            folder: paths.control, address: address, port: 6443, etcdPort: 2379, etcdPeerPort: 2380, prefix: prefix)
        try server.etcd.process.start()
        try server.process.start()
        try wait(server.process) {
            try server.kubectl(["get", "namespace", "default", "kube-system"])
            return true
        }
        for file in ["base/crd.yaml", "calico-crds/crds.yaml", "base/rbac.yaml"] {
            try server.kubectl(["apply", "-f", "\(spec.manifests)/\(file)"])
        }
        try server.kubectl(["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"])
        let token = try server.token(account: "wgplane", namespace: "kube-system")
        for node in nodes {
            try give(node, "ca.crt", try readFile(server.authorityFile))
            try give(node, "token", Array(token.utf8))
            let text = KubernetesServer.configuration(
                server: server.server, authority: "ca.crt", user: "    tokenFile: token")
            try give(node, "kubeconfig", Array(text.utf8))
        }
        return server
    }

    private var nodes: [String] { (1...spec.nodes).map { "node\($0)" } }

    /// A file in `/run/wgplane-access` of a node.
    private func give(_ node: String, _ name: String, _ content: [UInt8]) throws {
        try makeFolders("\(paths.run(node))/wgplane-access", mode: 0o700)
        try replaceFile("\(paths.run(node))/wgplane-access/\(name)", with: content)
    }

    private func wait(_ process: ServerProcess, _ condition: () throws -> Bool) throws {
        let deadline = monotonicNanoseconds() + UInt64(60 * Lab.patience) * 1_000_000_000
        while (try? condition()) != true {
            guard process.isRunning, monotonicNanoseconds() < deadline else {
                throw ProblemsError(
                    Problem(
                        resource: "lab", field: "--datastore", value: spec.datastore.rawValue,
                        message: "\(process.name) does not answer: \(process.words)", remedy: "see \(process.log)"))
            }
            sleepMicroseconds(50_000)
        }
    }

    /// Runs a program on the server's machine, as one who may all.
    func run(_ words: [String], log: String? = nil) throws -> Int32 {
        try ProgramLaunch(
            prefix + words, environment: currentEnvironment(), log: log, ownSession: false
        ).run()
    }

    /// Variables that tell wgplane on a place where the datastore is.
    static func environment(_ place: String, _ spec: LabSpec, _ paths: LabPaths) -> [String] {
        let address = LabAddresses.control(spec.families.first ?? .ipv4)
        let host = address.family == .ipv4 ? "\(address)" : "[\(address)]"
        let isControl = place == LabNetwork.control
        switch spec.datastore {
        case .directory: return ["WGPLANE_DATASTORE=directory:\(LabPaths.datastoreOnNode)"]
        case .etcd:
            let folder = isControl ? "\(paths.control)/pki" : LabPaths.accessOnNode
            let name = isControl ? "admin" : "node"
            return [
                "WGPLANE_DATASTORE=etcd:https://\(host):2379", "ETCD_CA_CERT_FILE=\(folder)/ca.crt",
                "ETCD_CERT_FILE=\(folder)/\(name).crt", "ETCD_KEY_FILE=\(folder)/\(name).key",
            ]
        case .kubernetes:
            let file = isControl ? "\(paths.control)/admin.kubeconfig" : "\(LabPaths.accessOnNode)/kubeconfig"
            return ["WGPLANE_DATASTORE=kubernetes:\(file)", "KUBECONFIG=\(file)"]
        }
    }
}

extension Lab {
    /// Makes resources what manifests say.
    func apply(_ manifests: [Manifest]) async throws {
        guard spec.datastore != .directory else {
            for manifest in manifests { try await datastore.update(manifest.key) { _ in manifest.content } }
            return
        }
        let text = try manifests.map { "---\n" + (try ManifestText.yaml($0.content)) }.joined()
        let file = "\(paths.control)/manifests.yaml"
        try replaceFile(file, with: Array(text.utf8))
        try await control(["wgplane", "apply", "-f", file])
    }

    /// Takes a resource away.
    func remove(_ key: ResourceKey) async throws {
        guard spec.datastore != .directory else {
            try await datastore.update(key) { _ in nil }
            return
        }
        try await control(["wgplane", "delete", key.kind.rawValue, key.name])
    }

    /// Runs a program on the datastore's machine, as one who may all; throws what it says when it fails.
    public func control(_ words: [String]) async throws {
        let log = "\(paths.control)/commands.log"
        let control = LabControl(spec: spec, paths: paths, binary: binary)
        let status = try await Task.detachedThread { try control.run(words, log: log) }
        guard status == 0 else {
            let text = String(decoding: (try? readFile(log)) ?? [], as: UTF8.self)
            throw ProblemsError(
                Problem(
                    resource: "lab", field: "control", value: words.joined(separator: " "),
                    message: "has failed: \(text.split(separator: "\n").suffix(5).joined(separator: "\n"))",
                    remedy: "see \(paths.control)"))
        }
    }
}
