// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Model
internal import Synchronization
internal import SystemDescriptors
internal import SystemPackage

/// Tells of changes, at the cost of what has changed where the kernel names it.
extension DirectoryDatastore {
    /// Looks again whatever was told: a folder may have been away, or mounted over.
    private static let period = Duration.seconds(10)
    private static let restraint = 500
    private static let gathering = Duration.milliseconds(1)
    private static let longestPeriod = Duration.seconds(120)

    public nonisolated func follow(_ feed: ChangeFeed) async {
        await withTaskGroup(of: Void.self) { group in
            let (looks, look) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
            let hints = Hints(path: path)
            let watch = try? FolderWatch()
            group.addTask {
                guard let watch else { return }
                // The first tick is there from the start.
                for await _ in watch.ticks {
                    let found = hints.add(watch.take())
                    // Where a folder may be new, or another one.
                    if found == .all, await self.watchFolders(watch) { hints.addAll() }
                    guard found != .nothing else { continue }
                    look.yield()
                    // The first of many changes is told at once, what comes within this time after it together.
                    try? await Task.sleep(for: Self.gathering)
                }
            }
            group.addTask {
                while !Task.isCancelled {
                    if let watch { _ = await self.watchFolders(watch) }
                    let began = ContinuousClock.now
                    await self.findDrift(hints)
                    hints.addStock()
                    look.yield()
                    // Where a look takes long, it is taken so many times less often: the kernel tells of changes.
                    let pause = min(Self.longestPeriod, (.now - began) * Self.restraint)
                    try? await Task.sleep(for: max(Self.period, pause))
                }
            }
            var told: Told?
            for await _ in looks {
                // What this process has read for others is known here, and was not told.
                if hints.takeStock(), let told {
                    if let files = await self.untold(told.versions) { hints.add(files: files) } else { hints.addAll() }
                }
                let files = hints.take()
                if let files, await self.tell(feed, &told, of: files) { continue }
                await self.waitForMoreToGo()
                await self.tell(feed, &told)
            }
            group.cancelAll()
        }
    }

    /// Which files are to be looked at: those of the folders of kinds that have changed; else all.
    private final class Hints: Sendable {
        private let waiting = Mutex<(files: Set<String>, all: Bool, stock: Bool)>(([], true, false))
        private let folders: [String: String]
        private let parent: String
        private let own: String

        init(path: String) {
            let parts = path.split(separator: "/")
            folders = Dictionary(
                uniqueKeysWithValues: ResourceKind.allCases.map { ("\(path)/\($0.plural)", $0.plural) })
            parent = "/" + parts.dropLast().joined(separator: "/")
            own = parts.last.map(String.init) ?? ""
        }

        /// What was told is to be compared with what is known.
        func addStock() { waiting.withLock { $0.stock = true } }

        func takeStock() -> Bool {
            waiting.withLock { waiting in
                defer { waiting.stock = false }
                return waiting.stock
            }
        }

        func add(files: Set<String>) { waiting.withLock { $0.files.formUnion(files) } }

        func addAll() { waiting.withLock { $0.all = true } }

        enum Found { case nothing, files, all }

        func add(_ changes: FolderWatch.Changes) -> Found {
            var files: Set<String> = []
            var all = changes.isMore
            for (folder, names) in changes.names {
                if let kind = folders[folder] {
                    for name in names where DirectoryDatastore.isManifestFile(name) { files.insert("\(kind)/\(name)") }
                    // The kubelet's volumes change all their files at once, behind a link `..data`.
                    all = all || names.contains { $0.hasPrefix("..") }
                } else if folder == parent ? names.contains(own) : names.contains(where: { !$0.hasPrefix(".") }) {
                    all = true
                }
            }
            return waiting.withLock {
                $0.files.formUnion(files)
                $0.all = $0.all || all
                return $0.all ? .all : $0.files.isEmpty ? .nothing : .files
            }
        }

        /// Nil: all.
        func take() -> Set<String>? {
            waiting.withLock { waiting in
                defer { (waiting.files, waiting.all) = ([], false) }
                return waiting.all ? nil : waiting.files
            }
        }
    }

    /// Finds what the kernel has not told of, without holding up what it has: the folders are listed by another thread,
    /// and compared in parts.
    private nonisolated func findDrift(_ hints: Hints) async {
        let path = path
        // What is not in a kind's folder, and folders that cannot be read, are for a look at everything.
        guard await hasRead, let top = try? await Task.detachedThread({ try listFolder(path) }),
            !top.contains(where: { !$0.isFolder && Self.isManifestFile($0.name) })
        else { return hints.addAll() }
        let present = Set(top.filter(\.isFolder).map(\.name))
        var found: Set<String> = []
        for kind in ResourceKind.allCases.map(\.plural) where present.contains(kind) {
            guard let entries = try? await Task.detachedThread({ try listFolder("\(path)/\(kind)") }) else {
                return hints.addAll()
            }
            for start in stride(from: 0, to: entries.count, by: 500) {
                hints.add(files: await changed(kind, entries[start..<min(entries.count, start + 500)], &found))
                await Task.yield()
            }
        }
        hints.add(files: await filesKnown(besides: found))
    }

    /// Files of what has not been told as it is; nil: something is gone that was, and all is to be looked at.
    private func untold(_ told: [ResourceKey: Int]) -> Set<String>? {
        guard told.keys.allSatisfy({ versions[$0] != nil }) else { return nil }
        var files: Set<String> = []
        for (key, version) in versions where told[key] != version { files.formUnion(holders[key] ?? []) }
        return files
    }

    private var hasRead: Bool { !parsed.isEmpty }

    private func filesKnown(besides found: Set<String>) -> Set<String> {
        Set(parsed.keys.filter { !found.contains($0) })
    }

    /// Those that are not as they were read; all are noted as found.
    private func changed(
        _ folder: String, _ entries: ArraySlice<FolderEntry>, _ found: inout sending Set<String>
    ) -> Set<String> {
        var result: Set<String> = []
        for entry in entries where entry.isRegular && Self.isManifestFile(entry.name) {
            let file = "\(folder)/\(entry.name)"
            found.insert(file)
            if parsed[file]?.entry != entry { result.insert(file) }
        }
        return result
    }

    /// Looks at these files alone. False: that does not do, all must be looked at; nothing was told then.
    private func tell(_ feed: ChangeFeed, _ told: inout sending Told?, of files: Set<String>) -> Bool {
        guard told?.isComplete == true, told?.problems.isEmpty == true else { return false }
        var changes = ResourceChanges()
        var news: [(key: ResourceKey, version: Int?)] = []
        for file in files {
            let old = parsed[file]
            let parts = file.split(separator: "/").map(String.init)
            guard parts.count == 2 else { return false }
            let entry = folderEntry(parts[1], in: "\(path)/\(parts[0])")
            // What has problems, or stands in two files, is for a look at everything.
            guard old?.problems.isEmpty ?? true, entry?.isRegular ?? true else { return false }
            if let key = old?.manifest?.key, holders[key] != [file] { return false }
            guard let entry else {
                // Come and gone again, or looked for when it was gone already.
                if old == nil { continue }
                // What this process has removed, and what else goes: that may be a disk that is gone.
                guard let key = old?.manifest?.key, key.kind == .pod else { return false }
                parsed[file] = nil
                (holders[key], versions[key]) = (nil, nil)
                news.append((key, nil))
                changes.remove(key)
                continue
            }
            let content = refresh(file, entry)
            guard content.problems.isEmpty, let manifest = content.manifest,
                old == nil ? holders[manifest.key] == nil : old?.manifest?.key == manifest.key
            else { return false }
            holders[manifest.key] = [file]
            versions[manifest.key] = content.version
            if told?.versions[manifest.key] != content.version {
                news.append((manifest.key, content.version))
                changes.put(manifest, own: feed.node)
            }
        }
        // So many at once may be a disk that is gone.
        let gone = news.count { $0.version == nil }
        if gone > 1, Self.isMany(gone, of: told?.versions.keys.count { $0.kind == .pod } ?? 0) { return false }
        for (key, version) in news { told?.versions[key] = version }
        changes.availability = .available
        feed.post(changes)
        return true
    }

    /// All, or nine of ten where there are ten or more.
    private static func isMany(_ gone: Int, of former: Int) -> Bool {
        gone == former || former >= 10 && gone * 10 >= former * 9
    }

    /// What a feed has been told: the version of each resource.
    private struct Told {
        var versions: [ResourceKey: Int] = [:]
        var problems: [Problem] = []
        var isComplete = true
    }

    /// What goes may be the first of much: a disk that is being emptied is seen as a whole, and wondered at. Waits while more
    /// goes, a second at most; not for pods, which go by themselves.
    private nonisolated func waitForMoreToGo() async {
        var gone = await countGone()
        for _ in 0..<10 where gone > 0 {
            try? await Task.sleep(for: .milliseconds(100))
            let more = await countGone()
            if more <= gone { return }
            gone = more
        }
    }

    /// Files that were read, other than pods', and are not there any more.
    private func countGone() -> Int {
        var present: [Substring: Set<String>] = [:]
        return parsed.keys.count { file in
            let parts = file.split(separator: "/", maxSplits: 1)
            guard parts.count == 2, parts[0] != ResourceKind.pod.plural else { return false }
            let names = present[parts[0]] ?? Set((try? listNames("\(path)/\(parts[0])")) ?? [])
            present[parts[0]] = names
            return !names.contains(String(parts[1]))
        }
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
                guard former > 1, Self.isMany(keys.count, of: former) else { continue }
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
    /// Whether one was.
    private func watchFolders(_ watch: FolderWatch) -> Bool {
        let parent = path.split(separator: "/").dropLast().joined(separator: "/")
        var isNew = false
        for folder in ["/\(parent)", path] + ResourceKind.allCases.map({ "\(path)/\($0.plural)" }) {
            isNew = (try? watch.add(folder)) ?? false || isNew
        }
        return isNew
    }
}
