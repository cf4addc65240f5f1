// SPDX-License-Identifier: Apache-2.0

import Datastore
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing

/// What is under `scripts/deploy`, against a real API server, helm and the tools that read it.
@Suite("Deployment", .serialized)
struct DeploymentTests {
    /// Runs a program; its exit status and what it says.
    private func execute(_ words: [String]) async throws -> (status: Int32, output: String) {
        try await Task.detachedThread {
            try ProgramLaunch(words, environment: currentEnvironment(), ownSession: false).capture()
        }
    }

    private func succeed(_ words: String...) async throws -> String {
        let (status, output) = try await execute(words)
        try #require(status == 0, "\(words.joined(separator: " ")): \(output)")
        return output
    }

    private var deploy: String { KubernetesRig.deploy }

    @Test("overlays: each is taken by a real API server, field by field, and a field that is none is not")
    func overlays() async throws {
        try await KubernetesRig.run(prepared: false) { rig in
            try await rig.kubectl("apply", "-k", "\(deploy)/calico-crds")
            try await rig.kubectl("wait", "--for=condition=Established", "--timeout=120s", "crd", "--all")
            for overlay in ["beside-calico", "without-calico"] {
                try await rig.kubectl("apply", "--validate=strict", "-k", "\(deploy)/\(overlay)")
                // And as one that is there already.
                try await rig.kubectl("wait", "--for=condition=Established", "--timeout=120s", "crd", "--all")
                try await rig.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", "\(deploy)/\(overlay)")
            }
            let text = try await rig.kubectl("get", "daemonset", "wgplane", "-n", "kube-system", "-o", "yaml")
            #expect(text.contains("NET_ADMIN") && text.contains("system-node-critical"))
            let wrong = try String(contentsOfFile: "\(deploy)/base/daemonset.yaml", encoding: .utf8)
                .replacing("hostNetwork:", with: "hostNetwrok:")
            await #expect(throws: (any Error).self, "negative control") {
                try await rig.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input: wrong)
            }
        }
    }

    @Test("the chart: linted, the same as the overlay, installed, upgraded and taken away by helm")
    func chart() async throws {
        let helm = try await succeed("\(deploy)/../servers/helm.sh").split(separator: "\n").last.map(String.init)
        let program = try #require(helm)
        let chart = "\(deploy)/chart/wgplane"
        let lint = try await succeed(program, "lint", "--strict", chart)
        #expect(lint.contains("0 chart(s) failed"), "\(lint)")
        try await KubernetesRig.run(prepared: false) { rig in
            let ours = try await podSpec(rig, try await rig.kubectl("kustomize", "\(deploy)/without-calico"))
            let rendered = try await succeed(program, "template", "wgplane", chart, "--namespace", "kube-system")
            let theirs = try await podSpec(rig, rendered)
            #expect(ours == theirs, "chart and overlay have drifted apart")
            let common = ["--kubeconfig", rig.server.adminConfiguration, "--namespace", "kube-system"]
            let (installed, words) = try await execute(
                [program, "install", "wgplane", chart, "--set", "felixConfiguration.wireguardEnabled=true"] + common)
            #expect(installed == 0, "\(words.suffix(900))")
            let felix = try await rig.kubectl("get", "felixconfigurations", "default", "-o", "yaml")
            #expect(felix.contains("wireguardEnabled: true"))
            let (upgraded, more) = try await execute(
                [program, "upgrade", "wgplane", chart, "--set", "privileged=true", "--set", "logLevel=debug"] + common)
            #expect(upgraded == 0, "\(more)")
            let text = try await rig.kubectl("get", "daemonset", "wgplane", "-n", "kube-system", "-o", "yaml")
            #expect(text.contains("--log-level=debug") && text.contains("privileged: true"))
            let (removed, last) = try await execute([program, "uninstall", "wgplane"] + common)
            #expect(removed == 0, "\(last)")
            let left = try await rig.kubectl("get", "daemonsets,clusterroles", "-n", "kube-system", "-o", "name")
            #expect(!left.contains("wgplane"))
        }
    }

    /// The pods of the DaemonSet among manifests, but for the log level that the chart sets.
    private func podSpec(_ rig: KubernetesRig, _ manifests: String) async throws -> ManifestValue {
        for value in try ManifestText.parseAll(manifests, origin: "manifests") where value["kind"] == "DaemonSet" {
            var spec = try #require(value[["spec", "template", "spec"]])
            guard case .array(var containers)? = spec["containers"] else { continue }
            containers[0]["args"] = nil
            spec["containers"] = .array(containers)
            return spec.sortedByKey
        }
        throw ProblemsError(Problem(resource: "manifests", message: "hold no DaemonSet", remedy: "see the test"))
    }

    @Test("systemd's units are read without a complaint, and are as closed as they say")
    func units() async throws {
        let folder = "/tmp/wgplane-units-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try makeFolders("\(folder)/usr/bin")
        try replaceFile("\(folder)/usr/bin/wgplane", with: Array("#!/bin/sh\n".utf8), mode: 0o755)
        for unit in ["wgplane.service", "wgplane-guard.service"] {
            let text = try String(contentsOfFile: "\(deploy)/systemd/\(unit)", encoding: .utf8)
                .replacing("ExecStart=/usr/bin/wgplane", with: "ExecStart=\(folder)/usr/bin/wgplane")
                .replacing("ProtectHome=yes\n", with: "")
            try replaceFile("\(folder)/\(unit)", with: Array(text.utf8))
            let said = try await succeed("systemd-analyze", "verify", "--man=no", "\(folder)/\(unit)")
            #expect(!said.contains(unit), "\(said)")
        }
        let said = try await succeed(
            "systemd-analyze", "security", "--offline=true", "--threshold=40", "\(folder)/wgplane.service")
        #expect(said.contains("wgplane.service"), "\(said)")
    }

    @Test("the Debian package holds program and units, and is one")
    func debianPackage() async throws {
        let folder = "/tmp/wgplane-deb-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try makeFolders(folder)
        try replaceFile("\(folder)/wgplane", with: Array("#!/bin/sh\necho 0.1.0\n".utf8), mode: 0o755)
        let said = try await succeed("\(deploy)/package-deb.sh", "--binary", "\(folder)/wgplane", "--output", folder)
        let package = try #require(said.split(separator: "\n").last.map(String.init))
        #expect(try await succeed("dpkg-deb", "--field", package, "Version").hasPrefix("0.1.0"))
        let listing = try await succeed("dpkg-deb", "--contents", package)
        for file in ["/usr/bin/wgplane", "/usr/lib/systemd/system/wgplane.service", "/etc/wgplane/agent.env"] {
            #expect(listing.contains(file), "\(file)")
        }
        _ = try await succeed("dpkg-deb", "--extract", package, "\(folder)/root")
        #expect(try await succeed("\(folder)/root/usr/bin/wgplane") == "0.1.0\n")
    }
}

extension ManifestValue {
    /// With the fields of objects in order, for comparison.
    var sortedByKey: ManifestValue {
        switch self {
        case .object(let fields):
            var result = ManifestValue.object([:])
            for (key, value) in fields.sorted(by: { $0.key < $1.key }) { result[key] = value.sortedByKey }
            return result
        case .array(let values): return .array(values.map(\.sortedByKey))
        default: return self
        }
    }
}
