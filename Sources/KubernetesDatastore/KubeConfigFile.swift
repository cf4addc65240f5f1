// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import Foundation
internal import Model
internal import SystemDescriptors
internal import OrderedCollections

/// A kubeconfig file (kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig).
struct KubeConfigFile {
    private let path: String
    private let content: ManifestValue

    init(path: String) throws {
        self.path = path
        do {
            let text = String(decoding: try readFile(path, limit: 4 << 20), as: UTF8.self)
            content = try ManifestText.parse(text, origin: path)
        } catch let error as ProblemsError {
            throw AccessError("\(error)", remedy: "mend the kubeconfig")
        } catch {
            throw AccessError("\(path) cannot be read: \(error)", remedy: "name another file, or check its rights")
        }
    }

    /// The cluster and user of a context; nil: the current one.
    func access(context name: String?) throws -> KubernetesAccess {
        guard let name = name ?? content["current-context"]?.stringValue, !name.isEmpty else {
            throw AccessError("\(path) has no current-context", remedy: "set it: kubectl config use-context NAME")
        }
        let context = try entry("contexts", name, "context")
        let clusterName = context["cluster"]?.stringValue ?? ""
        let cluster = try entry("clusters", clusterName, "cluster")
        guard let server = cluster["server"]?.stringValue, server.hasPrefix("https://") || server.hasPrefix("http://")
        else {
            throw AccessError(
                "\(path): clusters[\(clusterName)].server is no address", remedy: "write it like https://10.0.0.1:6443")
        }
        for field in ["proxy-url", "tls-server-name"] where cluster[field] != nil {
            throw AccessError(
                "\(path): clusters[\(clusterName)].\(field) is not supported",
                remedy: "use an address of the server that its certificate names")
        }
        var user = ManifestValue.object([:])
        if let userName = context["user"]?.stringValue, !userName.isEmpty {
            user = try entry("users", userName, "user")
        }
        var access = KubernetesAccess(
            server: server.hasSuffix("/") ? String(server.dropLast()) : server,
            authorities: try material(cluster, "certificate-authority"), identity: try identity(user))
        access.isUnverified = cluster["insecure-skip-tls-verify"] == .bool(true)
        return access
    }

    private func identity(_ user: ManifestValue) throws -> KubernetesAccess.Identity {
        if let chain = try material(user, "client-certificate"), let key = try material(user, "client-key") {
            return .certificate(chain, key: key)
        }
        // As kubectl: a file goes before the token itself.
        if let file = user["tokenFile"]?.stringValue { return .token(.file(resolved(file))) }
        if let token = user["token"]?.stringValue { return .token(.data(Array(token.utf8))) }
        if let exec = user["exec"] { return .program(try program(exec)) }
        for field in ["auth-provider", "username"] where user[field] != nil {
            throw AccessError(
                "\(path): \(field) is no longer a way into an API server",
                remedy: "use a token, a client certificate or an exec plugin")
        }
        return .none
    }

    private func program(_ exec: ManifestValue) throws -> CredentialProgram {
        guard let command = exec["command"]?.stringValue, !command.isEmpty else {
            throw AccessError("\(path): users[].user.exec has no command", remedy: "name the credential plugin")
        }
        var program = CredentialProgram(
            command: command.contains("/") ? resolved(command) : command,
            apiVersion: exec["apiVersion"]?.stringValue ?? "client.authentication.k8s.io/v1")
        if case .array(let arguments)? = exec["args"] { program.arguments = arguments.map(\.text) }
        if case .array(let variables)? = exec["env"] {
            for variable in variables {
                guard let name = variable["name"]?.stringValue else { continue }
                program.environment[name] = variable["value"]?.text ?? ""
            }
        }
        return program
    }

    /// `FIELD-data` (base64) or `FIELD` (a path).
    private func material(_ object: ManifestValue, _ field: String) throws -> KubernetesAccess.Material? {
        if let text = object["\(field)-data"]?.stringValue, !text.isEmpty {
            guard let data = Data(base64Encoded: text) else {
                throw AccessError("\(path): \(field)-data is no base64", remedy: "mend it, or name a file: \(field)")
            }
            return .data(Array(data))
        }
        return object[field]?.stringValue.map { .file(resolved($0)) }
    }

    /// Paths count from the file's own folder.
    private func resolved(_ file: String) -> String {
        file.hasPrefix("/") ? file : URL(fileURLWithPath: path).deletingLastPathComponent().path + "/" + file
    }

    private func entry(_ list: String, _ name: String, _ inner: String) throws -> ManifestValue {
        if case .array(let entries)? = content[list],
            let found = entries.first(where: { $0["name"]?.stringValue == name }), let value = found[inner]
        {
            return value
        }
        throw AccessError("\(path): \(list) has no \"\(name)\"", remedy: "see kubectl config view")
    }
}
