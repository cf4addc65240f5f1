// SPDX-License-Identifier: Apache-2.0

internal import Dispatch
internal import Glibc
public import Logging
public import Model
internal import Synchronization
internal import SystemDescriptors
internal import SystemPackage

/// A datastore in a folder: one manifest a file, in a folder for each kind, replaced as a
/// whole on writing. Files made by hand count wherever they stand in those folders.
///
/// A file that becomes unreadable keeps its last good content in force until it is mended
/// or removed. The actor's calls block on the disk, on a queue of its own.
public actor DirectoryDatastore: Datastore {
    public nonisolated let location: String
    nonisolated let path: String
    private let queue = KernelQueue(label: "datastore-directory")
    var parsed: [String: ParsedFile] = [:]
    /// Which files hold a resource.
    var holders: [ResourceKey: Set<String>] = [:]
    /// Of each resource as it was read last.
    var versions: [ResourceKey: Int] = [:]
    private var lastVersion = 0
    let logger: Logger

    struct ParsedFile {
        var entry: FolderEntry
        /// The last content that could be read.
        var manifest: Manifest?
        /// That content ended with the end of a line.
        var endsLine = false
        /// What is there is newer, ends within a line, and was first seen so then.
        var half: (entry: FolderEntry, since: ContinuousClock.Instant)?
        var problems: [Problem]
        /// Of the content: what was read later has the greater one.
        var version = 0
    }

    public nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    /// So long a file may be half written. What has been so for longer is how somebody writes it.
    private let writingTime: Duration

    public init(path: String, writingTime: Duration = .seconds(10), logger: Logger) {
        self.path = path
        self.writingTime = writingTime
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

    func failure(_ error: Errno, doing: String, file: String = "") -> DatastoreError {
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

    func readAll() throws -> Snapshot {
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
            let files = entries.filter { $0.isRegular && Self.isManifestFile($0.name) }
                .map { (name: folder.isEmpty ? $0.name : "\(folder)/\($0.name)", entry: $0) }
            seen.formUnion(files.map(\.name))
            for (file, content) in refresh(files) {
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
        holders = [:]
        for (file, content) in parsed {
            if let key = content.manifest?.key { holders[key, default: []].insert(file) }
        }
        self.versions = versions
        return snapshot
    }

    static func isManifestFile(_ name: String) -> Bool {
        !name.hasPrefix(".") && [".yaml", ".yml", ".json"].contains { name.hasSuffix($0) }
    }

    /// Reads files again that are not those that were read before, many at once on all processors.
    private func refresh(_ files: [(name: String, entry: FolderEntry)]) -> [(name: String, content: ParsedFile)] {
        let changed = files.filter { parsed[$0.name]?.entry != $0.entry }.map(\.name)
        let path = path
        let outcomes = Mutex<[String: Result<FileContent, any Error>]>([:])
        if changed.count >= 64 {
            let share = 32
            DispatchQueue.concurrentPerform(iterations: (changed.count + share - 1) / share) { index in
                let names = changed[index * share..<min(changed.count, (index + 1) * share)]
                let read = names.map { ($0, Self.read($0, in: path)) }
                outcomes.withLock { $0.merge(read) { _, new in new } }
            }
        }
        let known = outcomes.withLock { $0 }
        return files.map { ($0.name, refresh($0.name, $0.entry, known[$0.name])) }
    }

    struct FileContent: Sendable {
        var manifest: Manifest
        var endsLine: Bool
        var isJSON: Bool
    }

    private static func read(_ file: String, in path: String) -> Result<FileContent, any Error> {
        Result {
            let bytes = try readFile("\(path)/\(file)", limit: 4 << 20)
            let value = try ManifestText.parse(String(decoding: bytes, as: UTF8.self), origin: file)
            return FileContent(
                manifest: try Manifest(value, origin: file), endsLine: bytes.last == UInt8(ascii: "\n"),
                isJSON: bytes.first { !" \t\r\n".utf8.contains($0) } == UInt8(ascii: "{"))
        }
    }

    /// Reads a file again when it is not the one that was read before. `outcome`: it has been read.
    func refresh(_ file: String, _ entry: FolderEntry, _ outcome: Result<FileContent, any Error>? = nil) -> ParsedFile {
        if let known = parsed[file], known.entry == entry { return known }
        var result = ParsedFile(
            entry: entry, manifest: parsed[file]?.manifest, endsLine: parsed[file]?.endsLine ?? false,
            half: parsed[file]?.half, problems: [], version: parsed[file]?.version ?? 0)
        do {
            let content = try (outcome ?? Self.read(file, in: path)).get()
            // Half of a YAML file may be YAML; half of a JSON file is none.
            if result.endsLine, !content.endsLine, !content.isJSON, isBeingWritten(&result, entry) {
                result.problems = [
                    Problem(
                        .warning, resource: file,
                        message: "ends within a line, as if it were not wholly written, and is read when it has been so"
                            + " for \(writingTime.components.seconds) s; its last good content is in force",
                        remedy: "write it whole, with the end of a line at its end")
                ]
                // It is to be looked at again.
                result.entry.modified = -1
                parsed[file] = result
                return result
            }
            (result.endsLine, result.half) = (content.endsLine, nil)
            if content.manifest != result.manifest {
                lastVersion += 1
                result.version = lastVersion
                result.manifest = content.manifest
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

    /// Whether a file that ends within a line has been so for a short time only.
    private func isBeingWritten(_ file: inout ParsedFile, _ entry: FolderEntry) -> Bool {
        if file.half?.entry != entry { file.half = (entry, .now) }
        return file.half.map { ContinuousClock.now - $0.since < writingTime } ?? false
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
        let file = try self.file(of: key)
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
        take(file)
        return wanted
    }

    /// Where a resource is, or is to be, read as it is now.
    private func file(of key: ResourceKey) throws -> String {
        // Of one that nobody has seen, somebody may have made a file of another name.
        if let known = holders[key]?.min() {
            take(known)
            if parsed[known]?.manifest?.key == key { return known }
        }
        _ = try readAll()
        return holders[key]?.min() ?? Self.fileName(key)
    }

    /// Reads a file again, or forgets one that is gone.
    private func take(_ file: String) {
        let before = parsed[file]?.manifest?.key
        let parts = file.split(separator: "/").map(String.init)
        let folder = parts.count > 1 ? "\(path)/\(parts[0])" : path
        if let entry = folderEntry(parts.last ?? file, in: folder), entry.isRegular {
            let content = refresh(file, entry)
            if let key = content.manifest?.key {
                holders[key, default: []].insert(file)
                if holders[key]?.count == 1 { versions[key] = content.version }
            }
        } else {
            parsed[file] = nil
        }
        guard let before, parsed[file]?.manifest?.key != before else { return }
        holders[before]?.remove(file)
        if holders[before]?.isEmpty == true { (holders[before], versions[before]) = (nil, nil) }
    }

    private static func fileName(_ key: ResourceKey) -> String {
        let name = key.namespace.isEmpty ? key.name : "\(key.namespace).\(key.name)"
        return "\(key.kind.plural)/\(name).yaml"
    }
}
