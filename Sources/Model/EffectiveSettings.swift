// SPDX-License-Identifier: Apache-2.0

internal import OrderedCollections

/// One of the places that settings come from. A later one goes over an earlier, field by field.
public struct SettingLayer: Sendable {
    /// For people: the resource, or where else it was said.
    public var origin: String
    /// Whose fields these are: FelixConfiguration's, or DataplaneConfiguration's.
    public var kind: ResourceKind
    /// With the fields below `spec`.
    public var content: ManifestValue
    /// Values are texts.
    public var isText = false

    public init(_ manifest: Manifest) {
        origin = manifest.key.description
        kind = manifest.key.kind
        content = manifest.content
    }

    /// One field, said outside the datastore.
    public init(_ override: SettingOverride) {
        origin = override.origin
        kind = override.setting.resource
        content = .object(["spec": .object([override.setting.name: .string(override.text)])])
        isText = true
    }

    /// What a layer has said.
    struct Outcome {
        var mentioned: Set<String>
        /// Of them those that are not in force.
        var refused: Set<String>
    }
}

/// A setting that was said in the environment or on the command line.
public struct SettingOverride: Sendable, Hashable {
    public var setting: SettingDescription
    public var text: String
    public var origin: String

    /// `FELIX_<NAME>` for Felix's settings, `WGPLANE_<NAME>` for ours, in order of their names.
    public static func environment(_ variables: [String: String]) -> [SettingOverride] {
        let names: [(String, SettingDescription)] = SettingDescription.all.flatMap { setting in
            let prefix = setting.resource == .felixConfiguration ? "FELIX_" : "WGPLANE_"
            return ([setting.name] + setting.otherNames).map { (prefix + $0.uppercased(), setting) }
        }
        let found = names.compactMap { name, setting in
            variables[name].map {
                SettingOverride(setting: setting, text: $0, origin: "environment variable \(name)")
            }
        }
        return found.filter { !$0.text.isEmpty }.sorted { $0.origin < $1.origin }
    }

    /// `--set NAME=VALUE`. Throws what is no setting.
    public static func commandLine(_ text: String) throws(ProblemsError) -> SettingOverride {
        let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 2, let setting = SettingDescription.named(parts[0]) else {
            throw ProblemsError(
                Problem(
                    resource: "command line", field: "--set", value: text, message: "sets nothing that wgplane knows",
                    remedy:
                        "write it like --set wireguardMTU=1400; `wgplane get felixconfiguration --effective` lists all"
                ))
        }
        return SettingOverride(setting: setting, text: parts[1], origin: "command line --set \(setting.name)")
    }
}

/// The settings in force on one node, and where each comes from.
///
/// Precedence as Felix has it: the command line over the environment over
/// `node.<name>` over `default`, field by field. A field whose highest word cannot be used
/// keeps the value that is in force; where none is, the next lower word holds.
public struct EffectiveSettings: Sendable, Hashable {
    /// Where a value comes from: a resource, a variable, an option; or `default`.
    public private(set) var origins: [String: String] = [:]
    public private(set) var settings = Settings()

    /// `inForce`: what this node has had until now.
    public init(_ layers: [SettingLayer], inForce: Settings? = nil, problems: inout [Problem]) {
        var refused: [String: String] = [:]
        for layer in layers {
            let outcome = settings.read(layer, &problems)
            for name in outcome.mentioned {
                if outcome.refused.contains(name) {
                    refused[name] = layer.origin
                } else {
                    origins[name] = layer.origin
                    refused[name] = nil
                }
            }
        }
        if let inForce {
            for (name, origin) in refused {
                SettingDescription.named(name)?.copy(&settings, inForce)
                origins[name] = "in force before \(origin)"
            }
        }
        settings.separateFamilies(&problems)
    }

    /// Of a node: its resources, then what was said outside the datastore.
    public init(
        felix: [Manifest], dataplane: [Manifest], node: String, overrides: [SettingOverride] = [],
        inForce: Settings? = nil, problems: inout [Problem]
    ) {
        let names = ["default", "node.\(node)"]
        let layers = [felix, dataplane].flatMap { manifests in
            names.compactMap { name in manifests.first { $0.key.name == name } }.map { SettingLayer($0) }
        }
        self.init(layers + overrides.map { SettingLayer($0) }, inForce: inForce, problems: &problems)
    }

    public func origin(of setting: SettingDescription) -> String { origins[setting.name] ?? "default" }

    /// Every setting as text, and where it comes from.
    public var listing: [SettingValue] {
        SettingDescription.all.map {
            SettingValue(name: $0.name, value: $0.text(settings), origin: origin(of: $0))
        }
    }
}

/// A setting in force, for people and for the next agent.
public struct SettingValue: Sendable, Hashable, Codable {
    public var name: String
    /// As it could be said; empty: nobody has said.
    public var value: String
    public var origin: String
}

extension Settings {
    /// What an agent has told to be in force.
    public init(inForce values: [SettingValue]) {
        let overrides = values.compactMap { value -> SettingOverride? in
            guard !value.value.isEmpty, let setting = SettingDescription.named(value.name) else { return nil }
            return SettingOverride(setting: setting, text: value.value, origin: "an earlier agent")
        }
        var ignored: [Problem] = []
        self = EffectiveSettings(overrides.map { SettingLayer($0) }, problems: &ignored).settings
    }

    /// Merged from `default` and `node.<name>`.
    public init(felix: [Manifest], dataplane: [Manifest], node: String, problems: inout [Problem]) {
        self = EffectiveSettings(felix: felix, dataplane: dataplane, node: node, problems: &problems).settings
    }

    /// The same, for whoever tells the problems elsewhere.
    public init(felix: [Manifest], dataplane: [Manifest], node: String) {
        var ignored: [Problem] = []
        self.init(felix: felix, dataplane: dataplane, node: node, problems: &ignored)
    }
}
