// SPDX-License-Identifier: Apache-2.0

internal import FoundationEssentials
internal import SystemDescriptors

/// Settings of the kernel (`/proc/sys`) that are the node's own: what they were is kept in a file until
/// they are so again.
public struct KernelSettings {
    let folder: String
    private let file: String
    private var before: [String: String]?

    /// `file` in `folder` keeps them; no two may share one.
    public init(folder: String, file: String = "kernel-settings.json") {
        self.folder = folder
        self.file = file
    }

    /// That the kernel's WireGuard changes by itself when a device comes up: `wg_open` switches the sending
    /// of redirects off for the whole network namespace.
    public static func ofWireGuard(folder: String) -> KernelSettings {
        KernelSettings(folder: folder, file: "wireguard-settings.json")
    }

    /// To be remembered of it.
    public static let sendRedirects = "net/ipv4/conf/all/send_redirects"

    private var path: String { "\(folder)/\(file)" }

    private mutating func known() -> [String: String] {
        if let before { return before }
        let read = (try? readFile(path)).flatMap { try? JSONDecoder().decode([String: String].self, from: Data($0)) }
        before = read ?? [:]
        return read ?? [:]
    }

    private mutating func keep(_ values: [String: String]) throws {
        guard values != known() else { return }
        if values.isEmpty {
            try removeFile(path)
        } else {
            try makeOwnFolders(folder)
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.sortedKeys]
            try replaceFile(path, with: Array(try encoder.encode(values)), mode: 0o600)
        }
        before = values
    }

    static func value(_ name: String) -> String? {
        (try? readFile("\(kernelSettings)/\(name)")).map {
            String(decoding: $0.prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
        }
    }

    /// Keeps a value that somebody else is about to change.
    public mutating func remember(_ name: String) throws {
        var values = known()
        guard values[name] == nil, let present = Self.value(name) else { return }
        values[name] = present
        try keep(values)
    }

    /// Sets a value; nil: as it was before.
    mutating func set(_ name: String, _ wanted: String?) throws {
        var values = known()
        guard let wanted else {
            guard let old = values[name] else { return }
            if Self.value(name) != nil { try writeExistingFile("\(kernelSettings)/\(name)", old) }
            values[name] = nil
            return try keep(values)
        }
        guard let present = Self.value(name), present != wanted else { return }
        // Kept first: a crash between the two restores what is there.
        if values[name] == nil {
            values[name] = present
            try keep(values)
        }
        try writeExistingFile("\(kernelSettings)/\(name)", wanted)
    }

    /// Whether some are not as they were.
    var isChanged: Bool { mutating get { !known().isEmpty } }

    /// All as they were.
    public mutating func restore() throws {
        for name in known().keys { try set(name, nil) }
    }
}
