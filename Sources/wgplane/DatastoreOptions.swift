// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import Datastore
import EtcdDatastore
import Foundation
import KubernetesDatastore
import Logging
import Model

/// Where a datastore is, as text: `directory:PATH`, `etcd:HOSTS`, `kubernetes`, `kubernetes:KUBECONFIG`.
enum DatastoreLocation {
    static let help = "directory:PATH, etcd:HOST:PORT,…, kubernetes, or kubernetes:KUBECONFIG"

    private enum Kind {
        case directory(String)
        case etcd(String)
        case kubernetes(String?)
    }

    static func open(
        _ text: String, environment: [String: String] = ProcessInfo.processInfo.environment, logger: Logger
    ) throws -> any Datastore {
        switch try parse(text) {
        case .directory(let path): return DirectoryDatastore(path: path, logger: logger)
        case .etcd(let hosts):
            return EtcdDatastore(try EtcdAccess(hosts: hosts, environment: environment), logger: logger)
        case .kubernetes(let file):
            return KubernetesDatastore(try KubernetesAccess.found(file: file, environment: environment), logger: logger)
        }
    }

    /// The same for who is in another folder.
    static func absolute(_ text: String) throws -> String {
        func absolute(_ file: String) -> String {
            file.hasPrefix("/") ? file : "\(FileManager.default.currentDirectoryPath)/\(file)"
        }
        switch try parse(text) {
        case .directory(let path): return "directory:\(absolute(path))"
        case .kubernetes(let file?): return "kubernetes:\(absolute(file))"
        case .etcd, .kubernetes(nil): return text
        }
    }

    /// Throws where it is no datastore's name; whether there is one is not looked at.
    static func check(_ text: String) throws { _ = try parse(text) }

    /// Whether its credentials come from a program, which must be started (`users[].user.exec` of a kubeconfig).
    static func startsPrograms(
        _ text: String, environment: [String: String] = ProcessInfo.processInfo.environment
    ) -> Bool {
        // What cannot be read is said when it is opened.
        guard case .kubernetes(let file)? = try? parse(text),
            let access = try? KubernetesAccess.found(file: file, environment: environment)
        else { return false }
        if case .program = access.identity { return true }
        return false
    }

    private static func parse(_ text: String) throws -> Kind {
        let colon = text.firstIndex(of: ":")
        let rest = colon.map { String(text[text.index(after: $0)...]) }
        switch (colon.map { String(text[..<$0]) } ?? text, rest) {
        case ("directory", let path?) where !path.isEmpty: return .directory(path)
        case ("etcd", let hosts?): return .etcd(hosts)
        case ("kubernetes", nil): return .kubernetes(nil)
        case ("kubernetes", let file?) where !file.isEmpty: return .kubernetes(file)
        default:
            throw ValidationError("--datastore: \"\(text)\" is no datastore; write it like \(help)")
        }
    }
}

/// Which datastore a command works on.
struct DatastoreOptions: ParsableArguments {
    @Option(
        name: .customLong("datastore"),
        help: ArgumentHelp(
            "Where the resources are: \(DatastoreLocation.help). Default: WGPLANE_DATASTORE, else (but for an agent) where this node's agent has them, else directory:/var/lib/wgplane. See `wgplane datastore --help`.",
            valueName: "location"))
    var location: String?

    /// As somebody has said.
    var said: String? { location ?? ProcessInfo.processInfo.environment["WGPLANE_DATASTORE"] }

    /// Of an agent.
    var ofAgent: String { said ?? "directory:/var/lib/wgplane" }

    /// Of any other command: what the node's agent works on, where nobody says otherwise.
    func resolved(runDirectory: String = AgentOptions.defaultRunDirectory) -> String {
        if let said { return said }
        let told = (try? StatusReport.read(runDirectory: runDirectory))?.datastoreArgument ?? ""
        return told.isEmpty ? ofAgent : told
    }

    func open() throws -> any Datastore { try DatastoreLocation.open(resolved(), logger: quietLogger) }

    /// Opens it for one piece of work.
    @discardableResult
    func use<Result>(_ body: (any Datastore) async throws -> Result) async throws -> Result {
        try await using(try open(), body)
    }

    func read(_ kinds: Set<ResourceKind> = Set(ResourceKind.allCases)) async throws -> Snapshot {
        try await use { try await $0.read(kinds) }
    }
}

/// Closes a datastore after one piece of work.
@discardableResult
func using<Result>(
    _ store: any Datastore, _ body: (any Datastore) async throws -> Result
) async throws -> Result {
    do {
        let result = try await body(store)
        await store.close()
        return result
    } catch {
        await store.close()
        throw error
    }
}
