// SPDX-License-Identifier: Apache-2.0

import Agent
import BPF
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Logging
import Model
import Netlink
import OrderedCollections
import SystemDescriptors
import Testing

/// A lab for one test, which goes with it whatever happens.
enum Cluster {
    static let binary = ProcessInfo.processInfo.environment["WGPLANE_BINARY"] ?? Self.besideTests()

    /// Where `swift build` puts it: next to the test bundle.
    private static func besideTests() -> String {
        let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""
        let bundle = CommandLine.arguments.first { $0.hasSuffix(".xctest") } ?? own
        return URL(fileURLWithPath: bundle).deletingLastPathComponent().appendingPathComponent("wgplane").path
    }

    /// `auto`, `kernel` or `userspace`: the WireGuard that the labs use unless a test says otherwise.
    static let wireguard: WireGuardBackendChoice = chosen("WGPLANE_TEST_WIREGUARD") ?? .auto
    /// `auto`, `tcx` or `tc`: how the labs attach programs unless a test says otherwise.
    static let attachment: AttachmentChoice = chosen("WGPLANE_TEST_ATTACH") ?? .auto
    /// The attachments that this kernel has.
    static let attachments: [AttachmentChoice] = AttachmentMechanism.probe() == .tcx ? [.tcx, .tc] : [.tc]

    private static func chosen<Choice: RawRepresentable<String> & CaseIterable>(_ variable: String) -> Choice? {
        guard let word = ProcessInfo.processInfo.environment[variable] else { return nil }
        let choice = Choice.allCases.first { $0.rawValue.lowercased() == word }
        precondition(choice != nil, "\(variable)=\(word) is not one of \(Choice.allCases)")
        return choice
    }

    static let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }
    private static let prefix = ProcessInfo.processInfo.environment["WGPLANE_TEST_PREFIX"] ?? "t\(getpid())"

    /// Brings a lab up, settles it, runs the body, and takes it down. A failure shows the agents' last words.
    static func run(
        nodes: Int = 2, pods: Int = 1, families: [AddressFamily] = [.ipv4, .ipv6], enabled: Bool = true,
        attachment: AttachmentChoice? = nil, mode: ModeChoice = .auto, podMTU: UInt32 = 1420, agents: Bool = true,
        datastore: LabDatastore = .directory, platform: LabPlatform = .onPremises,
        _ body: (Lab) async throws -> Void
    ) async throws {
        let name = "\(prefix)-\(String(UInt32.random(in: 0...UInt32.max), radix: 36))"
        let spec = LabSpec(
            name: name, nodes: nodes, pods: pods, families: families, backend: wireguard,
            attachment: attachment ?? self.attachment, mode: mode, podMTU: podMTU,
            datastore: datastore, manifests: DatastoreLabTests.deploy, platform: platform)
        let lab = try await Lab.up(spec, enabled: enabled, agents: agents, binary: binary, logger: logger)
        let precedence = Task { await Precedence.keep(lab) }
        defer { precedence.cancel() }
        do {
            if agents { try await lab.waitUntilSettled(enabled: enabled) }
            try await body(lab)
        } catch {
            await describe(lab)
            try? await lab.down()
            throw error
        }
        try await lab.down()
        #expect(!FileManager.default.fileExists(atPath: lab.paths.root))
    }

    /// Prints what the agents say and count, for a failure's reader.
    static func describe(_ lab: Lab) async {
        for node in lab.nodeNames() {
            let log = (try? String(contentsOfFile: lab.paths.log(node), encoding: .utf8)) ?? ""
            print("---- \(node): \(lab.status(node)?.problems.map(\.description) ?? [])")
            print(log.split(separator: "\n").suffix(25).joined(separator: "\n"))
            for counter in (try? lab.maps(node).counters.readAll()) ?? [] {
                print("     \(counter.hook.name) \(counter.reason.name): \(counter.value.packets)")
            }
            if let links = try? await execute(lab, node, ["ip", "-s", "-s", "link", "show"]) { print(links.output) }
        }
    }

    /// Runs a program on a node or pod; its standard output, and its exit status.
    static func execute(_ lab: Lab, _ place: String, _ command: [String]) async throws -> (
        output: String, status: Int32
    ) {
        let file = "/tmp/wgplane-test-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: file) }
        let arguments = [binary, "lab", "exec", "--name", lab.spec.name, place, "--"] + command
        let status = try await Task.detachedThread {
            try ProgramLaunch(arguments, environment: currentEnvironment(), log: file, ownSession: false).run()
        }
        return ((try? String(contentsOfFile: file, encoding: .utf8)) ?? "", status)
    }

    /// `wgplane` on a node.
    static func wgplane(_ lab: Lab, _ node: String, _ arguments: String...) async throws -> (
        output: String, status: Int32
    ) {
        try await execute(lab, node, [binary] + arguments)
    }

    /// The patch that the seed shows.
    static func patch(_ lab: Lab, _ kind: ResourceKind, _ name: String, _ change: ManifestValue) async throws {
        let key = ResourceKey(kind, name)
        try await lab.datastore.update(key) { current in (current ?? .object([:])).merging(change) }
    }

    static func switchWireGuard(_ lab: Lab, on: Bool) async throws {
        var spec = ManifestValue.object([:])
        for family in lab.spec.families {
            spec[family == .ipv4 ? "wireguardEnabled" : "wireguardEnabledV6"] = .bool(on)
        }
        try await patch(lab, .felixConfiguration, "default", .object(["spec": spec]))
    }

    /// Sets fields of the DataplaneConfiguration `default`, or of one node's.
    static func configure(
        _ lab: Lab, _ fields: OrderedDictionary<String, ManifestValue>, node: String? = nil
    ) async throws {
        let name = node.map { "node.\($0)" } ?? "default"
        try await patch(
            lab, .dataplaneConfiguration, name,
            .object([
                "apiVersion": .string(ResourceKind.dataplaneConfiguration.apiVersion),
                "kind": .string(ResourceKind.dataplaneConfiguration.rawValue),
                "metadata": .object(["name": .string(name)]), "spec": .object(fields),
            ]))
    }

    static func pod(_ lab: Lab, _ name: String) async throws -> LabPod {
        try #require(await lab.state.pods.first { $0.name == name })
    }

    /// Devices with the programs of uplinks. Modules for tunnels put devices of their own into every
    /// network namespace, which are overlays and no test's matter.
    static func uplinks(_ lab: Lab, _ node: String) -> Set<String> {
        Set(lab.status(node)?.attachments.filter { $0.hook == "to_uplink" }.map(\.device) ?? [])
            .subtracting(["sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip6gre0"])
    }

    /// What an agent has of a peer's device, read on the node.
    static func onNode<Value: Sendable>(
        _ lab: Lab, _ node: String, _ body: @escaping @Sendable () throws -> Value
    ) async throws -> Value {
        let place = try lab.place(node)
        return try await Task.detachedThread { try place.run(body) }
    }
}
