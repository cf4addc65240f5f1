// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import SystemDescriptors
internal import SystemPackage

/// Lines written to a file that is rotated by size, or to standard output. On a thread of its own: a slow disk
/// holds up nobody.
actor LineFile {
    private let queue = KernelQueue(label: "flow-export-file")
    private var path = ""
    /// Bytes after which the file becomes `PATH.1`.
    private var limit = 100 << 20
    private var size = 0

    /// Files that are kept beside the one that is written.
    static let kept = 5

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    func configure(path: String, limit: Int) {
        if path != self.path { size = -1 }
        (self.path, self.limit) = (path, limit)
    }

    /// Appends whole lines, in one write.
    func append(_ lines: [UInt8]) throws {
        if path == "-" {
            try FileHandle.standardOutput.write(contentsOf: Data(lines))
            return
        }
        if size < 0 { size = (try? fileSize(path)) ?? 0 }
        if size > 0, size + lines.count > limit { try rotate() }
        let file = try openFile(path, flags: O_WRONLY | O_CREAT | O_APPEND, mode: 0o640)
        try writeAll(file, lines)
        size += lines.count
    }

    private func rotate() throws {
        for number in (1..<Self.kept).reversed() where fileExists("\(path).\(number)") {
            try renameFile("\(path).\(number)", "\(path).\(number + 1)")
        }
        try renameFile(path, "\(path).1")
        size = 0
    }
}
