// SPDX-License-Identifier: Apache-2.0

internal import Agent
internal import Datastore
internal import DataplaneMaps
internal import Foundation
internal import Lab
internal import Model
internal import Netlink
internal import OrderedCollections
internal import SystemDescriptors
internal import WireGuard

/// One thing that goes wrong, or is done by a hand that errs.
public struct Fault: Sendable {
    /// As `--fault` takes it.
    public var name: String
    public var text: String
    /// A gap is no failure: what carried packets is gone until the agent has mended it. Connections must hold all the same.
    public var mayInterrupt: Bool
    /// What is there to carry packets may be other afterwards: another mode, another setting.
    public var changesHoldings: Bool
    /// Does it, and says what exactly; nil: there is nothing here now that it could be done to.
    let inject: @Sendable (FaultSite, inout SeededGenerator) async throws -> String?

    init(
        _ name: String, _ text: String, mayInterrupt: Bool = false, changesHoldings: Bool = false,
        _ inject: @escaping @Sendable (FaultSite, inout SeededGenerator) async throws -> String?
    ) {
        self.name = name
        self.text = text
        self.mayInterrupt = mayInterrupt
        self.changesHoldings = changesHoldings
        self.inject = inject
    }

    public static let all: [Fault] = ofAgent + ofDatastore + ofPrograms + ofDevices + ofNodes
}

/// Where faults happen: a lab, and hands on its nodes.
struct FaultSite: Sendable {
    let lab: Lab

    func anyNode(_ random: inout SeededGenerator) -> String {
        lab.nodeNames()[Int.random(in: 0..<lab.spec.nodes, using: &random)]
    }

    func anyFamily(_ random: inout SeededGenerator) -> AddressFamily {
        lab.spec.families[Int.random(in: 0..<lab.spec.families.count, using: &random)]
    }

    func pause(_ range: ClosedRange<Int>, _ random: inout SeededGenerator) async throws -> Int {
        let time = Int.random(in: range, using: &random)
        try await Task.sleep(for: .milliseconds(time * Lab.patience))
        return time
    }

    /// Runs a body in a node's namespaces.
    func on<Value: Sendable>(_ node: String, _ body: @escaping @Sendable () throws -> Value) async throws -> Value {
        let place = try lab.place(node)
        return try await Task.detachedThread { try place.run(body) }
    }

    /// Runs a program on a node; throws its words when it fails.
    func run(_ node: String, _ command: String) async throws {
        let words = command.split(separator: " ").map(String.init)
        let environment = lab.environment(node)
        let (status, output) = try await on(node) {
            try ProgramLaunch(words, environment: environment, ownSession: false).capture()
        }
        guard status == 0 else {
            throw ProblemsError(
                Problem(
                    resource: "lab", field: node, value: command, message: "ended with \(status): \(output)",
                    remedy: "it must work for this fault"))
        }
    }

    /// What a program writes.
    func output(_ node: String, _ command: String) async throws -> String {
        let words = command.split(separator: " ").map(String.init)
        return try await on(node) {
            try ProgramLaunch(words, environment: currentEnvironment(), ownSession: false).capture().output
        }
    }

    /// A WireGuard device as it is set: port, mark, MTU, state, addresses, and its peers' allowed IPs without their keys, which
    /// a node that boots has anew.
    func device(_ node: String, _ name: String) async throws -> String {
        try await on(node) {
            let session = try RouteSession()
            guard let link = try session.link(named: name), let state = try BackendSelection.state(device: name)?.1
            else {
                return "none"
            }
            let addresses = try session.addresses().filter { $0.index == link.index && !$0.address.isLinkLocal }
                .map { "\($0.address)/\($0.prefixLength)" }.sorted()
            // A peer without any is one that goes.
            let allowed = state.peers.values.filter { !$0.allowedIPs.isEmpty }.map {
                $0.allowedIPs.sorted().map(\.description).joined(separator: " ")
            }.sorted()
            return "\(state.listeningPort) \(state.firewallMark) \(link.mtu) \(link.isUp) \(addresses) \(allowed)"
        }
    }

    /// What is in the names of the maps that say where packets go.
    static let steeringMaps = ["route_", "config", "endpoint", "local", "source", "interface", "destination"]

    /// Where a node's maps and links are pinned, as this process sees it.
    func layout(_ node: String) -> PinLayout { PinLayout(root: lab.paths.pins(node)) }

    /// A node in this mode.
    func node(_ mode: String, _ random: inout SeededGenerator) -> String? {
        lab.nodeNames().shuffled(using: &random).first { lab.status($0)?.mode == mode }
    }

    func device(_ node: String, _ family: AddressFamily) -> String? { lab.status(node)?[family]?.device }

    func patch(_ kind: ResourceKind, _ name: String, _ spec: ManifestValue) async throws {
        let change = ManifestValue.object([
            "apiVersion": .string(kind.apiVersion), "kind": .string(kind.rawValue),
            "metadata": .object(["name": .string(name)]), "spec": spec,
        ])
        try await lab.datastore.update(ResourceKey(kind, name)) { ($0 ?? .object([:])).merging(change) }
    }
}
