// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Datastore
import Foundation
import KubernetesDatastore
import Model

struct DatastoreCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "datastore", abstract: "Where resources are; copies them from one datastore to another.",
        discussion: """
            A location is one of
              directory:PATH         one manifest a file, in a folder for each kind
              etcd:HOST:PORT,…       etcd v3; https://HOST:PORT with TLS. Certificates and user by the variables
                                     ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE, ETCD_USERNAME, ETCD_PASSWORD,
                                     ETCD_PASSWORD_FILE
              kubernetes             the API server, as the pod's service account says, else ~/.kube/config;
                                     KUBECONFIG names another file
              kubernetes:FILE        as that kubeconfig says
            and is named by --datastore or WGPLANE_DATASTORE.
            """,
        subcommands: [Copy.self])

    struct Copy: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Copies resources to another datastore; what is there and not in the first stays.",
            usage: "wgplane datastore copy FROM TO [options]",
            discussion: """
                What a server adds by itself (uid, versions, times, managed fields) is left out. A resource that the
                other datastore refuses is named, and the rest goes on; exit status 1 then. Of Pods that come from an
                API server only what wgplane reads is copied to a directory or etcd: their environment may hold secrets.
                """)

        @Argument(help: "Location to read from.") var from: String
        @Argument(help: "Location to write to.") var to: String
        @Option(name: .customLong("kind"), help: "Only this kind; may be repeated.") var kinds: [KindArgument] = []
        @Flag(help: "Say what would be copied, and write nothing.") var dryRun = false
        @OptionGroup var output: OutputOptions

        /// The JSON form.
        struct Result: Encodable {
            var schema = 1
            var copied: [String] = []
            var unchanged: [String] = []
            /// By resource: why not.
            var failed: [String: String] = [:]
        }

        func run() async throws {
            let wanted = kinds.isEmpty ? Set(ResourceKind.allCases) : Set(kinds.map(\.kind))
            let (source, isCluster) = try await using(try DatastoreLocation.open(from, logger: quietLogger)) {
                (try await $0.read(wanted), $0 is KubernetesDatastore)
            }
            guard source.isComplete else { throw ProblemsError(source.problems) }
            let result = try await using(try DatastoreLocation.open(to, logger: quietLogger)) { store in
                try await write(source, to: store, wanted, masksPods: isCluster && !(store is KubernetesDatastore))
            }
            if try !Output.structured(result, output.format) {
                print(
                    "\(result.copied.count) \(dryRun ? "would be " : "")copied, \(result.unchanged.count) are the same, \(result.failed.count) failed"
                )
                for (name, reason) in result.failed.sorted(by: { $0.key < $1.key }) {
                    FileHandle.standardError.write(Data("wgplane: \(name): \(reason)\n".utf8))
                }
            }
            if !result.failed.isEmpty { throw ExitCode(1) }
        }

        private func kept(_ manifest: Manifest, _ masksPods: Bool) -> ManifestValue {
            let content = manifest.content.withoutServerFields
            guard manifest.key.kind == .pod, masksPods else { return content }
            var kept = FieldMask.followed(.pod).applied(to: content)
            for field in ["kind", "apiVersion"] { kept[[field]] = content[[field]] }
            return kept
        }

        private func write(
            _ source: Snapshot, to store: any Datastore, _ kinds: Set<ResourceKind>, masksPods: Bool
        ) async throws -> Result {
            if !dryRun, let directory = store as? DirectoryDatastore { try await directory.create() }
            let present = dryRun || !(store is DirectoryDatastore) ? try? await store.read(kinds) : nil
            var result = Result()
            for manifest in source.manifests.values.sorted(by: { $0.key < $1.key }) {
                let content = kept(manifest, masksPods)
                if let other = present?.manifests[manifest.key], kept(other, masksPods) == content {
                    result.unchanged.append(manifest.key.description)
                    continue
                }
                do {
                    if !dryRun { try await store.apply(Manifest(key: manifest.key, content: content)) }
                    result.copied.append(manifest.key.description)
                } catch {
                    result.failed[manifest.key.description] = "\(error)"
                }
            }
            return result
        }
    }
}
