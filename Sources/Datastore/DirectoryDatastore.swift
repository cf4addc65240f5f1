// SPDX-License-Identifier: Apache-2.0

internal import Glibc
public import Logging
public import Model
internal import SystemDescriptors
internal import SystemPackage

/// A datastore in a folder: one manifest a file, in a folder for each kind, replaced as a
/// whole on writing. Files made by hand count wherever they stand in those folders.
///
/// A file that becomes unreadable keeps its last good content in force until it is mended
/// or removed. The actor's calls block on the disk, on a queue of its own.
public actor DirectoryDatastore: Datastore {
    public nonisolated let location: String
    private let path: String
    private let queue = KernelQueue(label: "datastore-directory")
    private var parsed: [String: ParsedFile] = [:]
    /// Of each resource as it was read last.
    private var versions: [ResourceKey: Int] = [:]
    private var lastVersion = 0
    private let logger: Logger

    private struct ParsedFile {
        var entry: FolderEntry
        /// The last content that could be read.
        var manifest: Manifest?
        var problems: [Problem]
        /// Of the content: what was read later has the greater one.
        var version = 0
    }

    public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    public init(path: String, logger: Logger) {
        self.path = path
        self.logger = logger
        location = "directory:\(path)"
    }

    /// Makes the folders. For whoever sets a datastore up; an agent does not.
    public func create() throws {
        do {
            for kind in ResourceKind.allCases { try makeFolders("\(path)/\(kind.plural)") }
        } catch {
            throw failure(error, doing: "cannot make its folders")
        }
    }

    private func failure(_ error: Errno, doing: String, file: String = "") -> DatastoreError {
        let remedy =
            switch error {
            case .noSpace: "free space on the disk; nothing of the old content was touched"
            case .readOnlyFileSystem: "mount the file system writable"
            case .wouldBlock: "another writer holds \(path)/.lock; wait for it, or end it"
            case .permissionDenied, .notPermitted: "run as root, or give this user the right to write there"
            case .noSuchFileOrDirectory: "make the folder, or name another with --datastore directory:PATH"
            default: "check the folder and its file system"
            }
        return DatastoreError(
            location: file.isEmpty ? location : "\(location)/\(file)", message: "\(doing): \(error)", remedy: remedy)
    }

    // MARK: Reading

    public func read(_ kinds: Set<ResourceKind>) throws -> Snapshot {
        var snapshot = try readAll()
        if kinds.count < ResourceKind.allCases.count {
            snapshot.manifests = snapshot.manifests.filter { kinds.contains($0.key.kind) }
        }
        return snapshot
    }

    private func readAll() throws -> Snapshot {
        var snapshot = Snapshot()
        var versions: [ResourceKey: Int] = [:]
        var seen: Set<String> = []
        do {
            // An empty folder is one whose disk is not mounted, not a cluster without resources.
            let kinds = Set(ResourceKind.allCases.map(\.plural))
            let entries = try listFolder(path)
            if !entries.contains(where: { $0.isFolder ? kinds.contains($0.name) : Self.isManifestFile($0.name) }) {
                throw DatastoreError(
                    location: location, message: "holds no folder of resources",
                    remedy: "mount it, or make the folder nodes in it")
            }
        } catch let error as Errno {
            throw failure(error, doing: "cannot be read")
        }
        for folder in [""] + ResourceKind.allCases.map(\.plural) {
            let entries: [FolderEntry]
            do {
                entries = try listFolder(folder.isEmpty ? path : "\(path)/\(folder)")
            } catch {
                if error == .noSuchFileOrDirectory { continue }
                throw failure(error, doing: "cannot be read", file: folder)
            }
            for entry in entries where entry.isRegular && Self.isManifestFile(entry.name) {
                let file = folder.isEmpty ? entry.name : "\(folder)/\(entry.name)"
                seen.insert(file)
                let content = refresh(file, entry)
                snapshot.problems += content.problems
                guard let manifest = content.manifest else {
                    snapshot.isComplete = false
                    continue
                }
                if snapshot.manifests[manifest.key] != nil {
                    snapshot.problems.append(
                        Problem(
                            resource: file, field: "metadata.name", value: manifest.key.name,
                            message: "names \(manifest.key), which another file holds already, and is ignored",
                            remedy: "remove one of the two files"))
                } else {
                    snapshot.manifests[manifest.key] = manifest
                    versions[manifest.key] = content.version
                }
            }
        }
        parsed = parsed.filter { seen.contains($0.key) }
        self.versions = versions
        return snapshot
    }

    private static func isManifestFile(_ name: String) -> Bool {
        !name.hasPrefix(".") && [".yaml", ".yml", ".json"].contains { name.hasSuffix($0) }
    }

    /// Reads a file again when it is not the one that was read before.
    private func refresh(_ file: String, _ entry: FolderEntry) -> ParsedFile {
        if let known = parsed[file], known.entry == entry { return known }
        var result = ParsedFile(
            entry: entry, manifest: parsed[file]?.manifest, problems: [], version: parsed[file]?.version ?? 0)
        do {
            let bytes = try readFile("\(path)/\(file)", limit: 4 << 20)
            let text = String(decoding: bytes, as: UTF8.self)
            let manifest = try Manifest(ManifestText.parse(text, origin: file), origin: file)
            if manifest != result.manifest {
                lastVersion += 1
                result.version = lastVersion
                result.manifest = manifest
            }
        } catch let error as ProblemsError {
            result.problems = error.problems.map { problem in
                var problem = problem
                if result.manifest != nil { problem.message += " (its last good content stays in force)" }
                return problem
            }
        } catch {
            result.problems = [
                Problem(resource: file, message: "cannot be read: \(error)", remedy: "check the file's rights and size")
            ]
            // Rights may be mended without a change of the file: read it again next time.
            result.entry.modified = -1
        }
        parsed[file] = result
        return result
    }

    // MARK: Writing

    @discardableResult
    public func update(
        _ key: ResourceKey, _ change: @Sendable (ManifestValue?) throws -> ManifestValue?
    ) async throws -> ManifestValue? {
        do {
            return try withFileLock("\(path)/.lock") { try replace(key, change) }
        } catch let error as Errno {
            throw failure(error, doing: "cannot be locked for writing")
        }
    }

    private func replace(
        _ key: ResourceKey, _ change: (ManifestValue?) throws -> ManifestValue?
    ) throws -> ManifestValue? {
        _ = try readAll()
        let file = parsed.filter { $0.value.manifest?.key == key }.keys.min() ?? Self.fileName(key)
        if let problem = parsed[file]?.problems.first {
            throw DatastoreError(
                location: "\(location)/\(file)", message: "is not overwritten, for it \(problem.message)",
                remedy: "mend the file, or remove it")
        }
        let current = parsed[file]?.manifest?.content
        let wanted = try change(current)
        guard wanted != current else { return current }
        do {
            if let wanted {
                _ = try Manifest(wanted, storedAs: key)
                let text = file.hasSuffix(".json") ? try ManifestText.json(wanted) : try ManifestText.yaml(wanted)
                try makeFolders("\(path)/\(key.kind.plural)")
                try replaceFile("\(path)/\(file)", with: Array(text.utf8))
            } else {
                try removeFile("\(path)/\(file)")
            }
        } catch let error as Errno {
            throw failure(error, doing: "cannot be written", file: file)
        }
        _ = try readAll()
        return wanted
    }

    private static func fileName(_ key: ResourceKey) -> String {
        let name = key.namespace.isEmpty ? key.name : "\(key.namespace).\(key.name)"
        return "\(key.kind.plural)/\(name).yaml"
    }

    // MARK: Watching

    /// Looks again whatever was told: a folder may have been away, or mounted over.
    private static let period = Duration.seconds(10)

    public nonisolated func follow(_ feed: ChangeFeed) async {
        await withTaskGroup(of: Void.self) { group in
            let (looks, look) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
            group.addTask {
                guard let watch = try? FolderWatch() else { return }
                await self.watchFolders(watch)
                // The first tick is there from the start.
                for await _ in watch.ticks {
                    watch.drain()
                    await self.watchFolders(watch)
                    look.yield()
                }
            }
            group.addTask {
                while !Task.isCancelled {
                    look.yield()
                    try? await Task.sleep(for: Self.period)
                }
            }
            var told: Told?
            for await _ in looks { await self.tell(feed, &told) }
            group.cancelAll()
        }
    }

    /// What a feed has been told: the version of each resource.
    private struct Told {
        var versions: [ResourceKey: Int] = [:]
        var problems: [Problem] = []
        var isComplete = true
    }

    private func tell(_ feed: ChangeFeed, _ told: inout sending Told?) {
        let snapshot: Snapshot
        do {
            snapshot = try readAll()
        } catch {
            logger.warning("datastore cannot be read", metadata: ["error": "\(error)"])
            told = nil
            return feed.note(.unavailable("\(error)"))
        }
        var changes = ResourceChanges()
        var now = Told(problems: snapshot.problems, isComplete: snapshot.isComplete)
        for (key, manifest) in snapshot.manifests {
            let version = versions[key] ?? 0
            now.versions[key] = version
            if told?.versions[key] != version { changes.put(manifest, own: feed.node) }
        }
        if let told {
            let gone = told.versions.keys.filter { now.versions[$0] == nil }
            for key in gone { changes.remove(key) }
            // Another disk, or an empty one, is a list to be wondered at, not so many deletions.
            for (kind, keys) in Dictionary(grouping: gone, by: \.kind) {
                let former = told.versions.keys.count { $0.kind == kind }
                guard former > 1, keys.count == former || former >= 10 && keys.count * 10 >= former * 9 else {
                    continue
                }
                for (key, manifest) in snapshot.manifests where key.kind == kind {
                    changes.put(manifest, own: feed.node)
                }
                changes.whole.insert(kind)
            }
        } else {
            changes.whole = Set(ResourceKind.allCases)
        }
        changes.availability = .available
        if told?.problems != now.problems || told?.isComplete != now.isComplete {
            changes.problems = now.problems
            changes.isComplete = now.isComplete
        }
        told = now
        feed.post(changes)
    }

    /// A folder may be new, or come back.
    private func watchFolders(_ watch: FolderWatch) {
        let parent = path.split(separator: "/").dropLast().joined(separator: "/")
        for folder in ["/\(parent)", path] + ResourceKind.allCases.map({ "\(path)/\($0.plural)" }) {
            try? watch.add(folder)
        }
    }
}
