// SPDX-License-Identifier: Apache-2.0

public import DesiredState
internal import Foundation
public import Model
internal import SystemDescriptors

/// Other nodes' keys as they were seen first, in a file of the state folder: what an operator forgets there, an agent
/// learns anew (`wgplane trust`).
public struct KeyPinKeeper {
    private struct Content: Codable {
        var schema = 1
        /// What was said last.
        var choice: KeyPinningChoice?
        /// By node, then by family: `IPv4`, `IPv6`.
        var nodes: [String: [String: PublicKey]] = [:]
    }

    private let folder: String
    private var path: String { "\(folder)/pinned-keys.json" }
    private var lockPath: String { "\(folder)/pinned-keys.lock" }
    private var seen: FolderEntry?
    private var pins = KeyPins()
    /// They could not be written yet.
    private var isPending = false
    /// Why nothing is known.
    public private(set) var problem: Problem?

    public init(_ options: AgentOptions) { folder = options.stateDirectory }

    /// Forgets all of them.
    static func remove(_ options: AgentOptions) throws {
        let keeper = KeyPinKeeper(options)
        try removeFile(keeper.path)
        try removeFile(keeper.lockPath)
    }

    /// As the file has them; read where it has changed.
    public mutating func current() -> KeyPins {
        guard !isPending else {
            // What is learned counts, whether the disk takes it or not.
            keep(pins)
            return pins
        }
        do {
            guard let entry = try entry() else {
                if seen != nil || problem != nil { pins = KeyPins() }
                (seen, problem) = (nil, nil)
                return pins
            }
            guard entry != seen || problem != nil else { return pins }
            pins = try Self.read(path)
            (seen, problem) = (entry, nil)
        } catch {
            // What is known stays, and is not overwritten; what was seen before this agent nobody knows.
            if seen == nil {
                pins.mayLearn = false
                pins.choice = pins.choice ?? .firstUse
            }
            problem = Problem(
                resource: path, message: "cannot be read: \(error)",
                remedy: "mend it, or remove it to believe the keys that nodes have now")
        }
        return pins
    }

    /// Nil: there is no file. A link is none of ours, and what cannot be looked at is not taken for absent.
    private func entry() throws -> FolderEntry? {
        try requireOwn(folder)
        try requireOwn(path)
        return try presentEntry("pinned-keys.json", in: folder)
    }

    /// Keeps what was learned, unless somebody has changed the file meanwhile: that counts then, and the same is learned
    /// again.
    public mutating func keep(_ learned: KeyPins) {
        guard learned != pins || isPending else { return }
        guard problem == nil || isPending else {
            // The file is not to be overwritten.
            pins = learned
            return
        }
        do {
            try makeOwnFolders(folder)
            try withFileLock(lockPath) {
                guard try entry() == seen else {
                    isPending = false
                    return
                }
                pins = learned
                try write(learned)
            }
        } catch {
            pins = learned
            isPending = true
            problem = Problem(
                resource: path, message: "cannot be written: \(error)",
                remedy:
                    "free space, or see who made the folder; until then an agent's restart forgets what it has learned")
        }
    }

    /// Changes the file as it is, while no agent does.
    public mutating func change(_ body: (inout KeyPins) throws -> Void) throws {
        try makeOwnFolders(folder)
        try withFileLock(lockPath) {
            var changed = current()
            if let problem { throw ProblemsError(problem) }
            try body(&changed)
            guard changed != pins else { return }
            pins = changed
            try write(changed)
        }
    }

    private mutating func write(_ learned: KeyPins) throws {
        var content = Content(choice: learned.choice)
        for family in AddressFamily.allCases {
            for (node, key) in learned[family] { content.nodes[node, default: [:]][family.description] = key }
        }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted, .withoutEscapingSlashes]
        try replaceFile(path, with: Array(try encoder.encode(content)), mode: 0o600)
        seen = try entry()
        (isPending, problem) = (false, nil)
    }

    private static func read(_ path: String) throws -> KeyPins {
        let content = try JSONDecoder().decode(Content.self, from: Data(try readFile(path)))
        var pins = KeyPins()
        pins.choice = content.choice
        for (node, keys) in content.nodes {
            for family in AddressFamily.allCases { pins[family][node] = keys[family.description] }
        }
        return pins
    }
}
