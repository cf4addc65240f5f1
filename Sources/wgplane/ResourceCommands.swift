// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import Datastore
import Foundation
import Model
import OrderedCollections

/// A kind by its name, singular or plural.
struct KindArgument: ExpressibleByArgument {
    var kind: ResourceKind
    init?(argument: String) {
        guard let kind = ResourceKind(word: argument) else { return nil }
        self.kind = kind
    }
    static var allValueStrings: [String] { ResourceKind.allCases.map { $0.rawValue.lowercased() } }
}

struct ResourceNameOptions: ParsableArguments {
    @Option(name: .shortAndLong, help: "Namespace of a Pod.") var namespace = "default"
}

struct GetCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "get", abstract: "Shows resources of the datastore.",
        usage: "wgplane get KIND [NAME] [options]",
        discussion: """
            With --effective: the settings in force on a node, and where each comes from, as
            `wgplane get felixconfiguration --effective --node node1`.
            """)

    @Argument(help: "Kind: node, pod, ippool, ipamblock, blockaffinity, felixconfiguration, dataplaneconfiguration.")
    var kind: KindArgument
    @Argument(help: "Name; all when left out.") var name: String?
    @OptionGroup var naming: ResourceNameOptions
    @OptionGroup var datastore: DatastoreOptions
    @OptionGroup var output: OutputOptions
    @Flag(help: "The settings in force on a node, merged from all that bears on it.") var effective = false
    @OptionGroup var node: NodeOptions

    func validate() throws {
        if effective, ![.felixConfiguration, .dataplaneConfiguration].contains(kind.kind) || name != nil {
            throw ValidationError("--effective is for felixconfiguration and dataplaneconfiguration, without a name")
        }
    }

    func run() async throws {
        let configurations: Set<ResourceKind> = [.felixConfiguration, .dataplaneConfiguration]
        let snapshot = try await datastore.read(effective ? configurations : [kind.kind])
        if effective {
            let options = node.options
            return try EffectiveSettingsOutput(
                kind.kind, snapshot, node: options.node, runDirectory: options.runDirectory
            ).print(output.format)
        }
        var manifests = snapshot.manifests(of: kind.kind)
        if let name {
            let key = ResourceKey(kind.kind, name, namespace: naming.namespace)
            manifests = manifests.filter { $0.key == key }
            guard let manifest = manifests.first else { throw notFound(key) }
            if output.format == .yaml { return print(try ManifestText.yaml(manifest.content), terminator: "") }
            if try Output.structured(manifest.content, output.format) { return }
        }
        if output.format == .yaml {
            for manifest in manifests { print("---\n" + (try ManifestText.yaml(manifest.content)), terminator: "") }
            return
        }
        if try Output.structured(manifests.map(\.content), output.format) { return }
        Output.table(titles, manifests.map(row), empty: "No resources.")
    }

    private var titles: [String] {
        switch kind.kind {
        case .node: ["NAME", "ADDRESSES", "WIREGUARD KEY", "INTERFACE ADDRESS"]
        case .pod: ["NAMESPACE", "NAME", "NODE", "ADDRESSES"]
        case .ipPool: ["NAME", "CIDR"]
        case .ipamBlock: ["NAME", "CIDR", "AFFINITY"]
        case .blockAffinity: ["NAME", "CIDR", "NODE"]
        case .felixConfiguration, .dataplaneConfiguration: ["NAME", "SPEC"]
        }
    }

    private func row(_ manifest: Manifest) -> [String] {
        var ignored: [Problem] = []
        let name = manifest.key.name
        func field(_ path: String...) -> String { manifest.content[["spec"] + path]?.text ?? "-" }
        switch kind.kind {
        case .node:
            let node = NodeResource(manifest, problems: &ignored)
            func list<Value: CustomStringConvertible>(_ values: [AddressFamily: Value]) -> String {
                values.isEmpty ? "-" : values.sorted { $0.key < $1.key }.map(\.value.description).joined(separator: ",")
            }
            return [
                name, list(node.addresses),
                node.publicKeys[.ipv4]?.description ?? node.publicKeys[.ipv6]?.description ?? "-",
                list(node.interfaceAddresses),
            ]
        case .pod:
            let pod = PodResource(manifest, problems: &ignored)
            return [pod.namespace, name, pod.node, pod.addresses.map(\.description).joined(separator: ",")]
        case .ipPool: return [name, field("cidr")]
        case .ipamBlock: return [name, field("cidr"), field("affinity")]
        case .blockAffinity: return [name, field("cidr"), field("node")]
        case .felixConfiguration, .dataplaneConfiguration: return [name, manifest.content["spec"]?.text ?? "{}"]
        }
    }
}

func notFound(_ key: ResourceKey) -> ProblemsError {
    ProblemsError(
        Problem(
            resource: key.description, message: "is not in the datastore",
            remedy: "see `wgplane get \(key.kind.rawValue.lowercased())`, or make it with `wgplane apply`"))
}

/// Tells what is wrong with manifests before they are stored: what is wrong is not stored.
func refuseProblems(_ manifests: [Manifest]) throws {
    for manifest in manifests {
        var problems: [Problem] = []
        switch manifest.key.kind {
        case .felixConfiguration:
            _ = Settings(felix: [renamed(manifest)], dataplane: [], node: "", problems: &problems)
        case .dataplaneConfiguration:
            _ = Settings(felix: [], dataplane: [renamed(manifest)], node: "", problems: &problems)
        case .node: _ = NodeResource(manifest, problems: &problems)
        case .pod: _ = PodResource(manifest, problems: &problems)
        case .ipPool: _ = IPPoolResource(manifest, problems: &problems)
        case .ipamBlock: _ = IPAMBlockResource(manifest, problems: &problems)
        case .blockAffinity: _ = BlockAffinityResource(manifest, problems: &problems)
        }
        // Settings were read under the name `default`.
        problems = problems.map { problem in
            var problem = problem
            problem.resource = manifest.key.description
            return problem
        }
        let errors = problems.filter { $0.severity == .error }
        if !errors.isEmpty { throw ProblemsError(errors) }
        for warning in problems { FileHandle.standardError.write(Data("wgplane: warning: \(warning)\n".utf8)) }
    }
}

/// Settings are read only under the names `default` and `node.<name>`.
private func renamed(_ manifest: Manifest) -> Manifest {
    var result = manifest
    result.key.name = "default"
    return result
}

struct ApplyCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "apply", abstract: "Creates resources, or replaces them, from manifests.",
        usage: "wgplane apply -f FILE [options]")

    @Option(name: .shortAndLong, help: "File of manifests in YAML or JSON; - for standard input.") var filename: String
    @OptionGroup var datastore: DatastoreOptions

    func run() async throws {
        let text: String
        if filename == "-" {
            text = String(decoding: FileHandle.standardInput.readDataToEndOfFile(), as: UTF8.self)
        } else {
            do {
                text = try String(contentsOfFile: filename, encoding: .utf8)
            } catch {
                throw ProblemsError(
                    Problem(
                        resource: filename, field: "--filename", message: "cannot be read",
                        remedy: "name a file of UTF-8 text that is there and can be read"))
            }
        }
        let manifests = try ManifestText.parseAll(text, origin: filename).map { try Manifest($0, origin: filename) }
        try refuseProblems(manifests)
        try await datastore.use { store in
            for manifest in manifests {
                try await store.apply(manifest)
                print("\(manifest.key) applied")
            }
        }
    }
}

struct PatchCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "patch", abstract: "Changes fields of a resource by a JSON merge patch (RFC 7386).",
        usage: "wgplane patch KIND NAME -p PATCH [options]",
        discussion: """
            wgplane patch felixconfiguration default --type=merge -p '{"spec":{"wireguardEnabled":true}}'
            """)

    enum PatchType: String, ExpressibleByArgument { case merge }

    @Argument(help: "Kind of the resource.") var kind: KindArgument
    @Argument(help: "Name of the resource.") var name: String
    @Option(help: "Only merge.") var type = PatchType.merge
    @Option(name: .shortAndLong, help: "The patch, JSON or YAML.") var patch: String
    @OptionGroup var naming: ResourceNameOptions
    @OptionGroup var datastore: DatastoreOptions

    func run() async throws {
        let key = ResourceKey(kind.kind, name, namespace: naming.namespace)
        let change = try ManifestText.parse(patch, origin: "--patch")
        guard case .object = change else {
            throw ValidationError("--patch: \"\(patch)\" is no object; write it like '{\"spec\":{…}}'")
        }
        try await datastore.use { try await $0.update(key, Self.changed(key, change)) }
        print("\(key) patched")
    }

    private static func changed(
        _ key: ResourceKey, _ change: ManifestValue
    ) -> @Sendable (ManifestValue?) throws -> ManifestValue? {
        { current in
            var base = current
            // A configuration may be patched before anybody has made it.
            if base == nil, key.kind == .felixConfiguration || key.kind == .dataplaneConfiguration {
                base = emptyManifest(key)
            }
            guard let base else { throw notFound(key) }
            let result = base.merging(change)
            try refuseProblems([try Manifest(result, origin: key.description)])
            return result
        }
    }
}

struct DeleteCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "delete", abstract: "Deletes a resource.",
        usage: "wgplane delete KIND NAME [options]")

    @Argument(help: "Kind of the resource.") var kind: KindArgument
    @Argument(help: "Name of the resource.") var name: String
    @OptionGroup var naming: ResourceNameOptions
    @OptionGroup var datastore: DatastoreOptions

    func run() async throws {
        let key = ResourceKey(kind.kind, name, namespace: naming.namespace)
        try await datastore.use { store in
            try await store.update(key) { current in
                guard current != nil else { throw notFound(key) }
                return nil
            }
        }
        print("\(key) deleted")
    }
}
