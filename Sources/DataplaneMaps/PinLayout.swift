// SPDX-License-Identifier: Apache-2.0

internal import CDataplaneABI
internal import SystemDescriptors
internal import BPF

/// Where a node's maps and links are pinned: one folder, named for the layout's version.
public struct PinLayout: Sendable, Hashable {
    /// Folder of all versions, by default `/sys/fs/bpf/wgplane`.
    public var root: String

    public static let defaultRoot = "/sys/fs/bpf/wgplane"
    /// `WGP_LAYOUT_VERSION`.
    public static let version = Int(WGP_LAYOUT_VERSION)

    public init(root: String = Self.defaultRoot) { self.root = root }

    public var folder: String { "\(root)/v\(Self.version)" }
    public var links: String { "\(folder)/links" }
    public func map(_ name: String) -> String { "\(folder)/\(name)" }
    /// A link's pin bears hook and device.
    public func link(hook: Hook, interface: UInt32) -> String { "\(links)/\(hook.name)-\(interface)" }

    /// Folder of the second lock's links: beside the root, so that what takes the first lock away by hand, or
    /// by a wrong `rm -r`, leaves it.
    public var guardFolder: String { "\(root)-guard" }
    public func guardLink(hook: Hook, interface: UInt32) -> String { "\(guardFolder)/\(hook.name)-\(interface)" }

    /// Interface and hook of every pinned link of the second lock.
    public func pinnedGuardLinks() -> [(hook: Hook, interface: UInt32, pin: String)] { Self.links(in: guardFolder) }

    /// Makes the folder of the second lock's links.
    public func createGuardFolder() throws { try makeOwnFolders(guardFolder) }

    /// Removes what is left of the second lock's links.
    public func removeGuardFolder() throws {
        for entry in (try? listFolder(guardFolder)) ?? [] { try removeFile("\(guardFolder)/\(entry.name)") }
        try removeFolder(guardFolder)
    }

    /// Whether something of any version is there.
    public var isAnyVersionThere: Bool { !versions.isEmpty || fileExists(guardFolder) }

    /// Versions of which something is there.
    public var presentVersions: [Int] { versions.compactMap { Int($0.split(separator: "/v").last ?? "") }.sorted() }

    /// Whether something of this version is there.
    public var exists: Bool { fileExists(folder) }

    /// Mounts the BPF file system where it is missing.
    public func mountWhereMissing() throws {
        let mountPoint = "/sys/fs/bpf"
        guard root.hasPrefix(mountPoint), !isBPFFileSystem(mountPoint) else { return }
        try mountFileSystem("bpf", on: mountPoint, options: "mode=0700")
    }

    /// Makes the folders, root's alone, and mounts the BPF file system where it is missing.
    public func create() throws {
        try mountWhereMissing()
        try makeOwnFolders(links)
        for folder in [root, folder] { try requireOwn(folder) }
        // libbpf follows links.
        for name in try listNames(folder) { try requireOwn("\(folder)/\(name)") }
    }

    /// Interface and hook of every pinned link.
    public func pinnedLinks() -> [(hook: Hook, interface: UInt32, pin: String)] { Self.links(in: links) }

    private static func links(in folder: String) -> [(hook: Hook, interface: UInt32, pin: String)] {
        let entries = (try? listFolder(folder)) ?? []
        return entries.compactMap { entry in
            let parts = entry.name.split(separator: "-")
            guard parts.count == 2, let hook = Hook(name: String(parts[0])), let interface = UInt32(parts[1]) else {
                return nil
            }
            return (hook, interface, "\(folder)/\(entry.name)")
        }
    }

    /// Folders of versions, `v1` and so on: all that is ours under the root, which others may share.
    private var versions: [String] {
        ((try? listFolder(root)) ?? []).filter { entry in
            entry.isFolder && entry.name.first == "v" && entry.name.count > 1
                && entry.name.dropFirst().allSatisfy(\.isNumber)
        }.map { "\(root)/\($0.name)" }
    }

    /// Maps that go over to another version as they are: what nobody else knows, and connections live on. Where their
    /// structs change, so do their names.
    static let sharedMaps = ["masquerade4", "masquerade6"]

    /// Takes over the maps that all versions share from an agent of another one. Before this version's maps are made.
    public func shareMaps() {
        guard !fileExists(map("peers")) else { return }
        for name in Self.sharedMaps {
            for folder in otherVersions where fileExists("\(folder)/\(name)") {
                // What cannot be taken over is made anew.
                try? sharePin("\(folder)/\(name)", at: map(name))
            }
        }
    }

    /// Takes over the links that an agent of another version has at work: in them this version's programs replace the
    /// others, so that there is no moment with none, or with both. Before ours are made, and once what the programs read is
    /// as it should be. One that cannot be taken stays until `removeOtherVersions`, before ours in the chain.
    public func takeOverLinks() {
        for link in otherVersions.flatMap({ Self.links(in: "\($0)/links") }) {
            // Of a device that is gone it is of no use.
            guard (try? Attachment.link(pin: link.pin))??.interface == link.interface else { continue }
            try? sharePin(link.pin, at: self.link(hook: link.hook, interface: link.interface))
        }
    }

    /// Several, where an agent was killed between two: the newest first.
    private var otherVersions: [String] {
        presentVersions.reversed().filter { $0 != Self.version }.map { "\(root)/v\($0)" }
    }

    /// Removes what other versions have pinned, once this one's programs are in place.
    public func removeOtherVersions() throws {
        for version in versions where version != folder { try Self.removeVersion(version) }
    }

    /// Removes every pin of ours, which frees what nothing else uses, and the root if it is empty then.
    public func remove() throws {
        for version in versions { try Self.removeVersion(version) }
        try removeGuardFolder()
        try? removeFolder(root)
    }

    /// Removes every pin of ours but these maps of the present version.
    public func remove(except maps: [String]) throws {
        try removeOtherVersions()
        for entry in (try? listFolder(links)) ?? [] { try removeFile("\(links)/\(entry.name)") }
        for entry in (try? listFolder(folder)) ?? [] where !entry.isFolder && !maps.contains(entry.name) {
            try removeFile("\(folder)/\(entry.name)")
        }
    }

    /// Removes the pins of some maps; what is not there is no error.
    public func removeMaps(_ names: [String]) throws {
        for name in names { try removeFile(map(name)) }
    }

    /// A version's folder: pins, and the folder of links.
    private static func removeVersion(_ path: String) throws {
        for entry in (try? listFolder("\(path)/links")) ?? [] { try removeFile("\(path)/links/\(entry.name)") }
        try removeFolder("\(path)/links")
        for entry in (try? listFolder(path)) ?? [] { try removeFile("\(path)/\(entry.name)") }
        try removeFolder(path)
    }
}
