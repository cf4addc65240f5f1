// SPDX-License-Identifier: Apache-2.0

import Datastore
import EtcdDatastore
import Foundation
import KubernetesDatastore
import Lab
import Logging
import Model
import SystemDescriptors
import Testing

/// The three datastores. What their servers need is there, or the tests that want it fail.
enum StoreKind: String, CaseIterable, CustomTestStringConvertible {
    case directory, etcd, kubernetes

    var testDescription: String { rawValue }

    func makeRig() async throws -> any StoreRig {
        switch self {
        case .directory: try await DirectoryRig()
        case .etcd: try await EtcdRig()
        case .kubernetes: try await KubernetesRig()
        }
    }

    /// Runs a test with one of it, which goes whatever happens.
    func run(_ body: (any StoreRig) async throws -> Void) async throws {
        let rig = try await makeRig()
        do {
            try await body(rig)
        } catch {
            print("---- \(rawValue): \(rig.words)")
            await rig.close()
            throw error
        }
        await rig.close()
    }
}

let quiet = Logger(label: "test") { label in
    guard ProcessInfo.processInfo.environment["WGPLANE_TEST_LOG"] != nil else { return SwiftLogNoOpLogHandler() }
    var handler = StreamLogHandler.standardOutput(label: label)
    handler.logLevel = .trace
    return handler
}

/// A datastore and what can happen to it. `open` goes by a way that can be cut; `direct` does not.
protocol StoreRig: Sendable {
    /// As an agent opens it. `idle`: how soon silence is noticed.
    func open(pageSize: Int, idle: Duration) throws -> any Datastore
    /// As an administrator has it.
    var direct: any Datastore { get }
    func cut() async throws
    func restore() async throws
    func stop() async throws
    func start() async throws
    /// The server keeps connections and says nothing; nil where there is no server.
    func freeze(_ isFrozen: Bool) -> Bool
    func backUp() async throws
    /// The data are what they were at `backUp`; the server runs.
    func restoreBackup() async throws
    /// The data are gone, all of them; the server runs.
    func loseAll() async throws
    /// What was changed until now can be watched no more.
    func forgetHistory() async throws
    /// The relay to the server; nil where there is no server.
    var relay: Relay? { get }
    var words: String { get }
    func close() async
}

extension StoreRig {
    func open() throws -> any Datastore { try open(pageSize: 500, idle: .seconds(90)) }

    /// A rig that cannot be set up leaves nothing.
    func orClose(_ body: () async throws -> Void) async throws {
        do {
            try await body()
        } catch {
            print("---- \(words)")
            await close()
            throw error
        }
    }
}

/// A port of loopback that nobody has.
///
/// Below the range from which clients' ports are taken (ip_local_port_range): a client that tries such a one again and
/// again before its server listens may get the very port for itself, and is connected to itself.
func freePort() throws -> UInt16 {
    for _ in 0..<200 {
        let port = UInt16.random(in: 20_000..<32_000)
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
        address.sin_port = port.bigEndian
        let isFree = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
        if isFree { return port }
    }
    throw POSIXError(.EADDRINUSE)
}

/// Waits for a condition; false when it does not come.
func eventually(within limit: Duration = .seconds(90), _ condition: () async throws -> Bool) async rethrows -> Bool {
    let deadline = ContinuousClock.now + limit
    while true {
        if try await condition() { return true }
        if ContinuousClock.now >= deadline { return false }
        try? await Task.sleep(for: .milliseconds(5))
    }
}

struct DirectoryRig: StoreRig {
    private let root = "/tmp/wgplane-store-\(UUID().uuidString)"
    let direct: any Datastore
    var relay: Relay? { nil }
    var words: String { "" }

    init() async throws {
        let store = DirectoryDatastore(path: "\(root)/data", logger: quiet)
        try await store.create()
        direct = store
    }

    func open(pageSize: Int, idle: Duration) throws -> any Datastore {
        DirectoryDatastore(path: "\(root)/data", logger: quiet)
    }

    func cut() throws { try FileManager.default.moveItem(atPath: "\(root)/data", toPath: "\(root)/away") }
    func restore() throws { try FileManager.default.moveItem(atPath: "\(root)/away", toPath: "\(root)/data") }
    func stop() throws { try cut() }
    func start() throws { try restore() }
    func freeze(_ isFrozen: Bool) -> Bool { false }

    func backUp() throws { try FileManager.default.copyItem(atPath: "\(root)/data", toPath: "\(root)/backup") }

    func restoreBackup() throws {
        try FileManager.default.moveItem(atPath: "\(root)/data", toPath: "\(root)/lost")
        try FileManager.default.moveItem(atPath: "\(root)/backup", toPath: "\(root)/data")
    }

    func loseAll() async throws {
        try FileManager.default.moveItem(atPath: "\(root)/data", toPath: "\(root)/lost")
        try await DirectoryDatastore(path: "\(root)/data", logger: quiet).create()
    }

    func forgetHistory() {}
    func close() { try? FileManager.default.removeItem(atPath: root) }
}

struct EtcdRig: StoreRig {
    let server: EtcdServer
    let root: String
    let direct: any Datastore
    private let way: Relay
    var relay: Relay? { way }
    var words: String { server.process.words }

    init() async throws {
        try EtcdServer.check()
        root = "/tmp/wgplane-store-\(UUID().uuidString)"
        server = try EtcdServer(
            folder: root, address: .loopback(.ipv4), port: freePort(), peerPort: freePort())
        try server.authority.issue("agent", name: "agent")
        way = try await Relay(to: server.port)
        direct = EtcdDatastore(
            try EtcdAccess(hosts: server.endpoint, environment: server.environment("agent")), logger: quiet)
        try await orClose { try await start() }
    }

    func open(pageSize: Int, idle: Duration) throws -> any Datastore {
        EtcdDatastore(
            try EtcdAccess(hosts: "https://127.0.0.1:\(way.port)", environment: server.environment("agent")),
            idle: idle, pageSize: pageSize, logger: quiet)
    }

    func cut() { way.cut() }
    func restore() { way.restore() }
    func stop() { server.process.end() }

    func start() async throws {
        try server.process.start()
        try #require(await eventually { (try? await direct.read([.node])) != nil }, "etcd answers")
    }

    func freeze(_ isFrozen: Bool) -> Bool {
        server.process.signal(isFrozen ? SIGSTOP : SIGCONT)
        return true
    }

    @discardableResult
    func etcdctl(_ arguments: String...) async throws -> String { try await etcdctl(arguments) }

    @discardableResult
    func etcdctl(_ arguments: [String]) async throws -> String {
        let words =
            ["etcdctl", "--endpoints", server.endpoint, "--cacert", server.authority.authorityFile]
            + ["--cert", server.authority.certificateFile("agent"), "--key", server.authority.keyFile("agent")]
            + arguments
        let (status, output) = try await Task.detachedThread {
            try ProgramLaunch(words, environment: currentEnvironment() + ["ETCDCTL_API=3"], ownSession: false).capture()
        }
        try #require(status == 0, "\(output)")
        return output
    }

    func backUp() async throws { try await etcdctl("snapshot", "save", "\(root)/backup") }

    func restoreBackup() async throws {
        stop()
        try FileManager.default.removeItem(atPath: server.data)
        try await etcdctl(
            "snapshot", "restore", "\(root)/backup", "--data-dir", server.data, "--name", "lab", "--initial-cluster",
            "lab=http://127.0.0.1:\(server.peerPort)", "--initial-advertise-peer-urls",
            "http://127.0.0.1:\(server.peerPort)")
        try await start()
    }

    func loseAll() async throws {
        stop()
        try FileManager.default.removeItem(atPath: server.data)
        try await start()
    }

    func forgetHistory() async throws {
        struct Answer: Decodable {
            struct Header: Decodable { var revision: Int64 }
            var header: Header
        }
        // etcd before 3.4.34 and 3.5.16 forgets a deletion that is the very revision that is compacted (etcd#18089).
        try await etcdctl("put", "nothing", "x")
        let text = try await etcdctl("get", "-w", "json", "nothing")
        let revision = try JSONDecoder().decode(Answer.self, from: Data(text.utf8)).header.revision
        try await etcdctl("compact", "\(revision)")
    }

    func close() async {
        await direct.close()
        await way.close()
        server.process.end()
        try? FileManager.default.removeItem(atPath: root)
    }
}

struct KubernetesRig: StoreRig {
    let server: KubernetesServer
    let root: String
    let direct: any Datastore
    let tokenFile: String
    private let way: Relay
    var relay: Relay? { way }
    var words: String { server.process.words }

    init() async throws { try await self.init(prepared: true) }

    /// `prepared`: with the CustomResourceDefinitions and rights that are shipped.
    init(prepared: Bool) async throws {
        root = "/tmp/wgplane-store-\(UUID().uuidString)"
        tokenFile = "\(root)/token"
        server = try KubernetesServer(
            folder: root, address: .loopback(.ipv4), port: freePort(), etcdPort: freePort(), etcdPeerPort: freePort())
        way = try await Relay(to: server.port)
        direct = KubernetesDatastore(
            try KubernetesAccess.found(file: server.adminConfiguration, environment: [:]), logger: quiet)
        try await orClose {
            try await start()
            try #require(
                await eventually { (try? await kubectl("get", "namespace", "default", "kube-system")) != nil })
            guard prepared else { return }
            for file in ["base/crd.yaml", "calico-crds/crds.yaml", "base/rbac.yaml"] {
                try await kubectl("apply", "-f", "\(Self.deploy)/\(file)")
            }
            try await kubectl("wait", "--for=condition=Established", "--timeout=120s", "crd", "--all")
            try await newToken()
        }
    }

    /// Runs a test with one, which goes whatever happens.
    static func run(prepared: Bool = true, _ body: (KubernetesRig) async throws -> Void) async throws {
        let rig = try await KubernetesRig(prepared: prepared)
        do {
            try await body(rig)
        } catch {
            await rig.close()
            throw error
        }
        await rig.close()
    }

    /// `scripts/deploy`, beside these tests.
    static let deploy = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../../scripts/deploy").standardizedFileURL.path

    @discardableResult
    func kubectl(_ arguments: String..., input: String = "") async throws -> String {
        try await Task.detachedThread { try server.kubectl(arguments, input: input) }
    }

    /// What a kubelet does with a service account's token.
    func newToken() async throws {
        let token = try await Task.detachedThread { try server.token(account: "wgplane", namespace: "kube-system") }
        try replaceFile(tokenFile, with: Array(token.utf8))
    }

    var agentAccess: KubernetesAccess {
        KubernetesAccess(
            server: "https://127.0.0.1:\(way.port)", authorities: .file(server.authorityFile),
            identity: .token(.file(tokenFile)))
    }

    func open(pageSize: Int, idle: Duration) throws -> any Datastore {
        KubernetesDatastore(agentAccess, idle: idle, pageSize: pageSize, logger: quiet)
    }

    func cut() { way.cut() }
    func restore() { way.restore() }
    func stop() { server.process.end() }

    func start() async throws {
        if !server.etcd.process.isRunning { try server.etcd.process.start() }
        try server.process.start()
        try #require(
            await eventually(within: .seconds(180)) {
                // It ends where its etcd does not answer at once.
                if !server.process.isRunning { try server.process.start() }
                return (try? await direct.read([.node])) != nil
            },
            "the API server answers: \(words)")
    }

    func freeze(_ isFrozen: Bool) -> Bool {
        server.process.signal(isFrozen ? SIGSTOP : SIGCONT)
        return true
    }

    private func copy(_ from: String, _ to: String) async throws {
        server.process.end()
        server.etcd.process.end(signal: SIGTERM)
        try? FileManager.default.removeItem(atPath: to)
        try FileManager.default.copyItem(atPath: from, toPath: to)
    }

    func backUp() async throws {
        try await copy(server.etcd.data, "\(root)/backup")
        try await start()
    }

    func restoreBackup() async throws {
        try await copy("\(root)/backup", server.etcd.data)
        try await start()
    }

    /// The resources, but not the definitions and rights.
    func loseAll() async throws {
        way.cut()
        for kind in ["nodes", "pods", "ippools", "ipamblocks", "blockaffinities", "felixconfigurations"] {
            try await kubectl("delete", kind, "--all", "--force", "--grace-period=0")
        }
        stop()
        try await start()
        way.restore()
    }

    /// A new API server knows no changes from before its start.
    func forgetHistory() async throws {
        stop()
        try await start()
    }

    func close() async {
        await direct.close()
        await way.close()
        server.process.end()
        server.etcd.process.end()
        try? FileManager.default.removeItem(atPath: root)
    }
}
