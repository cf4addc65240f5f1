// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import Foundation
internal import Glibc
internal import Logging
internal import Synchronization
internal import SystemDescriptors

/// Lines written to a file that is rotated by size, or to standard output.
///
/// A slow disk, or a reader that has stopped, holds up nobody: what waits has a bound, and what is beyond it is
/// counted as lost. All on a thread of its own, which the process does not wait for when it ends.
actor LineFile {
    /// Whole lines, how many they are, and where they go.
    private struct Batch: Sendable {
        var path: String
        /// Bytes after which the file becomes `PATH.1`.
        var limit: Int
        var bytes: [UInt8]
        var lines: Int
    }

    private struct Waiting {
        var batches: Deque<Batch> = []
        var bytes = 0
        /// Somebody writes them.
        var isServed = false
        /// Lines that are being written.
        var writing = 0
        /// Nothing is offered any more, and what becomes of it is no matter of the status.
        var isRetired = false
    }

    private let queue = KernelQueue(label: "flow-export-file")
    private let waiting = Mutex(Waiting())
    private let holder: ExportStateHolder
    private let logger: Logger

    /// Files that are kept beside the one that is written.
    static let kept = 5
    /// Bytes that may wait.
    static let queueLimit = 32 << 20
    /// Bytes of one write.
    static let chunk = 256 << 10

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    /// Folders that are somebody else's to write in.
    private let reserved: [String]

    init(_ holder: ExportStateHolder, reserved: [String] = [], logger: Logger) {
        self.holder = holder
        self.reserved = reserved
        self.logger = logger
    }

    /// Has lines written soon, each with its end; does not wait. `limit`: bytes that the file may have.
    nonisolated func offer(_ lines: [[UInt8]], path: String, limit: Int) {
        var batch = Batch(path: path, limit: limit, bytes: [], lines: 0)
        for line in lines {
            if batch.lines > 0, batch.bytes.count + line.count > min(Self.chunk, limit) {
                offer(batch)
                (batch.bytes, batch.lines) = ([], 0)
            }
            batch.bytes += line
            batch.lines += 1
        }
        if batch.lines > 0 { offer(batch) }
    }

    private nonisolated func offer(_ batch: Batch) {
        let (fits, starts) = waiting.withLock { waiting -> (Bool, Bool) in
            guard waiting.bytes + batch.bytes.count <= Self.queueLimit else { return (false, false) }
            waiting.batches.append(batch)
            waiting.bytes += batch.bytes.count
            defer { waiting.isServed = true }
            return (true, !waiting.isServed)
        }
        if !fits { lose(batch, "what was written before has not got there yet") }
        // Nobody waits for it: a reader that has stopped would hold up the agent's end.
        if starts { Task { await self.serve() } }
    }

    /// Nothing waits.
    nonisolated var isDone: Bool { waiting.withLock { $0.bytes == 0 } }

    private func serve() {
        func next() -> Batch? {
            waiting.withLock { waiting in
                guard let batch = waiting.batches.popFirst() else {
                    waiting.isServed = false
                    return nil
                }
                waiting.writing = batch.lines
                return batch
            }
        }
        while let batch = next() {
            do {
                try append(batch)
                let isRetired = waiting.withLock { $0.isRetired }
                holder.change {
                    $0.fileRecords += UInt64(batch.lines)
                    if !isRetired { $0.fileReason = "" }
                }
            } catch {
                lose(batch, "\(error)")
            }
            waiting.withLock { waiting in
                waiting.bytes -= batch.bytes.count
                waiting.writing = 0
            }
        }
    }

    private nonisolated func lose(_ batch: Batch, _ reason: String) {
        let isRetired = waiting.withLock { $0.isRetired }
        if isRetired || holder.value.fileReason.isEmpty {
            logger.warning(
                "flow records cannot be written", metadata: ["file": "\(batch.path)", "reason": "\(reason)"])
        }
        holder.change {
            $0.fileLost += UInt64(batch.lines)
            if !isRetired { $0.fileReason = "\(batch.path): \(reason)" }
        }
    }

    /// Another path is in force. What waits is still written.
    nonisolated func retire() { waiting.withLock { $0.isRetired = true } }

    /// What waits is lost, and what is being written may be.
    nonisolated func giveUp() {
        let lines = waiting.withLock { waiting in
            defer { (waiting.batches, waiting.writing) = ([], 0) }
            return waiting.batches.reduce(waiting.writing) { $0 + $1.lines }
        }
        guard lines > 0 else { return }
        holder.change { $0.fileLost += UInt64(lines) }
        logger.warning("flow records are lost: the agent stops", metadata: ["lines": "\(lines)"])
    }

    /// Appends whole lines, all or none.
    private func append(_ batch: Batch) throws {
        let (path, lines) = (batch.path, batch.bytes)
        if path == "-" {
            try FileHandle.standardOutput.write(contentsOf: Data(lines))
            return
        }
        // Somebody else may have rotated or removed it, so it is opened each time. A pipe without a reader is refused.
        // The path is the datastore's word: it leads to no file of others, by a link or otherwise.
        let folder = URL(filePath: path).deletingLastPathComponent().resolvingSymlinksInPath().path
        if let owner = reserved.first(where: { folder == $0 || folder.hasPrefix("\($0)/") }) {
            throw Reserved(folder: owner)
        }
        let flags = O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW
        var file = try openFile(path, flags: flags, mode: 0o640)
        guard var size = try regularSize(file) else { throw NotRegular() }
        if size > 0, size + lines.count > batch.limit {
            try rotate(path)
            file = try openFile(path, flags: flags, mode: 0o640)
            size = 0
        }
        do {
            try writeAll(file, lines)
        } catch {
            try? truncate(file, to: size)
            throw error
        }
    }

    private struct Reserved: Error, CustomStringConvertible {
        var folder: String
        var description: String { "\(folder) is no place for logs; take a folder of their own, as /var/log/wgplane" }
    }

    private struct NotRegular: Error, CustomStringConvertible {
        var description: String { "is no regular file; `-` is standard output" }
    }

    private func rotate(_ path: String) throws {
        for number in (1..<Self.kept).reversed() where fileExists("\(path).\(number)") {
            try renameFile("\(path).\(number)", "\(path).\(number + 1)")
        }
        try renameFile(path, "\(path).1")
    }
}
