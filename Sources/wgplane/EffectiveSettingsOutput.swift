// SPDX-License-Identifier: Apache-2.0

import Agent
import Datastore
import Foundation
import Model

/// The settings of a node as its resources say, without its environment and command line.
func effectiveSettings(_ snapshot: Snapshot, node: String) -> EffectiveSettings {
    var ignored: [Problem] = []
    return EffectiveSettings(
        felix: snapshot.manifests(of: .felixConfiguration), dataplane: snapshot.manifests(of: .dataplaneConfiguration),
        node: node, problems: &ignored)
}

/// `get felixconfiguration --effective`.
struct EffectiveSettingsOutput: Encodable {
    var schema = 1
    var node: String
    /// `agent`: what the node's agent has in force; `resources`: what the datastore says alone, without the node's
    /// environment and command line.
    var basis: String
    var settings: [SettingValue]

    /// Of one kind of resource. What the node's own agent tells is the truth, where it can be read.
    init(_ kind: ResourceKind, _ snapshot: Snapshot, node: String, runDirectory: String) {
        self.node = node
        let report = try? StatusReport.read(runDirectory: runDirectory)
        if let report, report.node == node, !report.settings.isEmpty {
            basis = "agent"
            settings = report.settings
        } else {
            basis = "resources"
            settings = effectiveSettings(snapshot, node: node).listing
        }
        settings.removeAll { SettingDescription.named($0.name)?.resource != kind }
    }

    func print(_ format: OutputFormat) throws {
        if try Output.structured(self, format) { return }
        Output.table(
            ["SETTING", "VALUE", "FROM"], settings.map { [$0.name, $0.value.isEmpty ? "-" : $0.value, $0.origin] })
        if basis == "resources" {
            Swift.print("As the resources say; the environment and command line of node \(node) are not known here.")
        }
    }
}
