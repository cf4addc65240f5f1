// SPDX-License-Identifier: Apache-2.0

import Datastore
import Foundation
import Model
import OrderedCollections
import Testing

@Suite("Settings")
struct SettingsTests {
    private func manifest(
        _ kind: ResourceKind, _ name: String, _ spec: OrderedDictionary<String, ManifestValue>
    ) throws -> Manifest {
        try Manifest(
            .object([
                "apiVersion": .string(kind.apiVersion), "kind": .string(kind.rawValue),
                "metadata": .object(["name": .string(name)]), "spec": .object(spec),
            ]), origin: "test")
    }

    private func effective(
        _ resources: [Manifest], _ overrides: [SettingOverride] = [], inForce: Settings? = nil
    ) -> (EffectiveSettings, [Problem]) {
        var problems: [Problem] = []
        let result = EffectiveSettings(
            felix: resources.filter { $0.key.kind == .felixConfiguration },
            dataplane: resources.filter { $0.key.kind == .dataplaneConfiguration }, node: "n1", overrides: overrides,
            inForce: inForce, problems: &problems)
        return (result, problems)
    }

    private func named(_ name: String) throws -> SettingDescription { try #require(SettingDescription.named(name)) }

    @Test("command line over environment over node over default, field by field")
    func precedence() throws {
        let resources = [
            try manifest(
                .felixConfiguration, "default",
                ["wireguardMTU": .integer(1300), "wireguardKeepAlive": "10s", "wireguardListeningPort": .integer(5000)]),
            try manifest(
                .felixConfiguration, "node.n1", ["wireguardMTU": .integer(1310), "wireguardKeepAlive": "20s"]),
            try manifest(.felixConfiguration, "node.n2", ["wireguardMTU": .integer(1399)]),
        ]
        let overrides =
            SettingOverride.environment([
                "FELIX_WIREGUARDMTU": "1320", "FELIX_WIREGUARDENABLED": "Yes", "FELIX_WIREGUARDMTUV6": "",
                "WGPLANE_MODE": "route", "WGPLANE_NODE": "n1", "FELIX_LOGSEVERITYSCREEN": "debug",
            ]) + [try SettingOverride.commandLine("wireguardmtu=1330")]
        let (found, problems) = effective(resources, overrides)
        #expect(problems.isEmpty, "\(problems)")
        let settings = found.settings
        #expect(settings.ipv4.mtu == 1330 && settings.keepAlive == 20 && settings.ipv4.listeningPort == 5000)
        #expect(settings.ipv4.enabled == true && settings.mode == .route && settings.ipv6.mtu == 0)
        func origin(_ name: String) throws -> String { found.origin(of: try named(name)) }
        #expect(try origin("wireguardMTU") == "command line --set wireguardMTU")
        #expect(try origin("wireguardEnabled") == "environment variable FELIX_WIREGUARDENABLED")
        #expect(try origin("wireguardKeepAlive") == "FelixConfiguration/node.n1")
        #expect(try origin("wireguardListeningPort") == "FelixConfiguration/default")
        #expect(try origin("wireguardMTUV6") == "default")
        #expect(throws: ProblemsError.self) { try SettingOverride.commandLine("wireguardMTU") }
        #expect(throws: ProblemsError.self) { try SettingOverride.commandLine("nothing=1") }
    }

    @Test("Felix's other name for the keep-alive, in seconds")
    func otherName() throws {
        let (found, _) = effective([], SettingOverride.environment(["FELIX_WIREGUARDPERSISTENTKEEPALIVE": "25"]))
        #expect(found.settings.keepAlive == 25)
    }

    /// A value for each setting that is not to be used.
    static let invalid: [(String, ManifestValue)] = [
        ("wireguardEnabled", "maybe"), ("wireguardEnabledV6", .integer(3)),
        ("wireguardInterfaceName", "a name/with"), ("wireguardInterfaceNameV6", "sixteen-letters-"),
        ("wireguardListeningPort", .integer(0)), ("wireguardListeningPortV6", .integer(70000)),
        ("wireguardMTU", .integer(100)), ("wireguardMTUV6", .integer(1279)), ("wireguardKeepAlive", "soon"),
        ("wireguardHostEncryptionEnabled", "on"), ("wireguardThreadingEnabled", .integer(1)),
        ("wireguardRoutingRulePriority", .integer(32766)),
        ("routeTableRanges", .array([.object(["min": .integer(250), "max": .integer(254)])])),
        ("routeSource", "BGP"), ("bpfEnabled", "true-ish"), ("bpfDataIfacePattern", "(eth"), ("bpfAttachType", "XDP"),
        ("bpfLogLevel", "Loud"), ("prometheusWireGuardMetricsEnabled", "x"), ("natPortRange", "9:3"),
        ("vxlanPort", .integer(-1)), ("interfacePrefix", ""), ("workloadSourceSpoofing", "All"), ("mode", "Fast"),
        ("wireguardBackend", "Go"), ("wireguardSteeringPath", "Short"), ("wireguardStrictMode", "true"),
        ("wireguardKeyPinning", "Sometimes"),
        ("wireguardMSSClamp", "12"), ("wireguardHostExemptPorts", .array(["tcp"])),
        ("wireguardFirewallMark", "0x1000"), ("wireguardInputRule", "Always"), ("sourceCheck", "No"),
        ("massDeletion", "Maybe"),
        ("flowExportCollector", "192.0.2.9:4739"), ("flowExportFile", "flows.json"),
        ("flowExportFileMegabytes", .integer(0)), ("flowExportAggregation", "Pod"),
        ("flowExportActiveTimeout", "0s"), ("flowExportIdleTimeout", "later"),
        ("flowExportTemplateInterval", "20h"), ("flowExportEnterpriseNumber", .integer(-1)),
        ("flowExportCAFile", "ca.pem"), ("flowExportCertFile", "/only.pem"), ("flowExportKeyFile", "key.pem"),
        ("dashboardAddress", "0.0.0.0:9586"), ("dashboardCertFile", "cert.pem"), ("dashboardKeyFile", "key.pem"),
        ("dashboardTokenFile", "token"),
    ]

    @Test("an invalid value is refused alone: what is in force stays, else the next lower word holds")
    func refused() throws {
        #expect(Set(Self.invalid.map(\.0)) == Set(SettingDescription.all.map(\.name)))
        for (name, value) in Self.invalid {
            let setting = try named(name)
            let bad = try manifest(setting.resource, "node.n1", [name: value])
            let (found, problems) = effective([bad])
            #expect(found.listing.first { $0.name == name }?.value == setting.defaultText, "\(name)")
            let problem = try #require(problems.first, "\(name)")
            #expect(problem.field.hasPrefix("spec.\(name)") && problem.severity == .error, "\(problem)")
            #expect(problem.resource == "\(setting.resource.rawValue)/node.n1" && !problem.remedy.isEmpty)
        }
    }

    @Test(
        "every field of our own kind is in its definition for Kubernetes, which would drop it otherwise, and no other")
    func definition() throws {
        let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().appending(path: "scripts/deploy/base/crd.yaml")
        let content = try ManifestText.parse(String(contentsOf: file, encoding: .utf8), origin: "crd.yaml")
        guard case .array(let versions)? = content[["spec", "versions"]], let version = versions.first,
            case .object(let fields)? = version[
                ["schema", "openAPIV3Schema", "properties", "spec", "properties"]]
        else {
            Issue.record("crd.yaml has no fields")
            return
        }
        let own = SettingDescription.all.filter { $0.resource == .dataplaneConfiguration }.map(\.name)
        #expect(Set(fields.keys) == Set(own))
    }

    @Test("the value that was in force stays, also for an agent that has just started")
    func inForce() throws {
        let good = try manifest(.felixConfiguration, "default", ["wireguardMTU": .integer(1300)])
        let node = try manifest(
            .felixConfiguration, "node.n1",
            ["wireguardMTU": .integer(1400), "wireguardListeningPort": .integer(5001), "bpfEnabled": true])
        let before = effective([good, node]).0
        // What the agent has told, as the next one reads it.
        let told = Settings(inForce: before.listing)
        #expect(told == before.settings)
        let bad = try manifest(
            .felixConfiguration, "node.n1",
            ["wireguardMTU": .integer(1), "wireguardListeningPort": .integer(5002), "bpfEnabled": true])
        let (after, problems) = effective([good, bad], inForce: told)
        #expect(after.settings.ipv4.mtu == 1400 && after.settings.ipv4.listeningPort == 5002)
        #expect(after.origin(of: try named("wireguardMTU")) == "in force before FelixConfiguration/node.n1")
        #expect(problems.count == 1)
        // A higher word that can be used makes an end of it.
        let fixed = effective([good, bad], [try SettingOverride.commandLine("wireguardMTU=1380")], inForce: told).0
        #expect(fixed.settings.ipv4.mtu == 1380)
    }

    @Test("tables by ranges")
    func tables() throws {
        let list = ManifestValue.array([
            .object(["min": .integer(10), "max": .integer(20)]),
            .object(["min": .integer(1000), "max": .integer(1000)]),
        ])
        let felix = try manifest(.felixConfiguration, "default", ["routeTableRanges": list])
        #expect(effective([felix]).0.settings.routeTables == [10...20, 1000...1000])
        let override = try SettingOverride.commandLine("routeTableRanges=5-6,7-9")
        #expect(effective([felix], [override]).0.settings.routeTables == [5...6, 7...9])
    }

    @Test("the documentation lists every setting as it is")
    func documented() throws {
        let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../Sources/Model/SETTINGS.md")
        let text = try String(contentsOf: file, encoding: .utf8)
        let rows = text.split(separator: "\n").filter { $0.contains(" | Felix | ") || $0.contains(" | Dataplane | ") }
        let wanted = SettingDescription.all.map { $0.documentationRow }
        #expect(rows.map(String.init) == wanted, "\(wanted.joined(separator: "\n"))")
    }
}
