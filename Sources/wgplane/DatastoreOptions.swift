// SPDX-License-Identifier: Apache-2.0

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

    static func open(
        _ text: String, environment: [String: String] = ProcessInfo.processInfo.environment, logger: Logger
    ) throws -> any Datastore {
        let (kind, rest) = split(text)
        switch (kind, rest) {
        case ("directory", let path?) where !path.isEmpty: return DirectoryDatastore(path: path, logger: logger)
        case ("etcd", let hosts?):
            return EtcdDatastore(try EtcdAccess(hosts: hosts, environment: environment), logger: logger)
        case ("kubernetes", nil):
            return KubernetesDatastore(try KubernetesAccess.found(environment: environment), logger: logger)
        case ("kubernetes", let file?) where !file.isEmpty:
            return KubernetesDatastore(try KubernetesAccess.found(file: file, environment: environment), logger: logger)
        default:
            throw ValidationError("--datastore: \"\(text)\" is no datastore; write it like \(help)")
        }
    }

    /// Whether its credentials come from a program, which must be started (`users[].user.exec` of a kubeconfig).
    static func startsPrograms(
        _ text: String, environment: [String: String] = ProcessInfo.processInfo.environment
    ) -> Bool {
        let (kind, file) = split(text)
        guard kind == "kubernetes" else { return false }
        // What cannot be read is said when it is opened.
        guard let access = try? KubernetesAccess.found(file: file, environment: environment) else { return false }
        if case .program = access.identity { return true }
        return false
    }

    private static func split(_ text: String) -> (kind: String, rest: String?) {
        guard let colon = text.firstIndex(of: ":") else { return (text, nil) }
        return (String(text[..<colon]), String(text[text.index(after: colon)...]))
    }
}

/// Which datastore a command works on.
struct DatastoreOptions: ParsableArguments {
    @Option(
        name: .customLong("datastore"),
        help: ArgumentHelp(
            "Where the resources are: \(DatastoreLocation.help). Default: WGPLANE_DATASTORE, else directory:/var/lib/wgplane. See `wgplane datastore --help`.",
            valueName: "location"))
    var location: String?

    private var text: String {
        location ?? ProcessInfo.processInfo.environment["WGPLANE_DATASTORE"] ?? "directory:/var/lib/wgplane"
    }

    func open(_ logger: Logger = quietLogger) throws -> any Datastore {
        try DatastoreLocation.open(text, logger: logger)
    }

    var startsPrograms: Bool { DatastoreLocation.startsPrograms(text) }

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
