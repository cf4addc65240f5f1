// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import Glibc
public import Logging
internal import Synchronization
internal import SystemDescriptors

/// The last lines of the agent's log, in two files of its run directory: what an archive takes along when
/// nobody knows where standard error went.
public struct RecentLog: LogHandler {
    public var logLevel: Logger.Level = .info
    public var metadata: Logger.Metadata = [:]
    private let label: String
    private let files: Files

    /// Bytes after which the file becomes the one before, which goes.
    static let limit = 256 * 1024

    static func paths(_ runDirectory: String) -> [String] {
        ["\(runDirectory)/recent.log.1", "\(runDirectory)/recent.log"]
    }

    /// The last lines that an agent has left, oldest first.
    static func read(_ runDirectory: String, lines: Int = 1000) -> [String] {
        let all = paths(runDirectory).flatMap { path in
            ((try? readFile(path)).map { String(decoding: $0, as: UTF8.self) } ?? "").split(separator: "\n")
        }
        return all.suffix(lines).map(String.init)
    }

    private final class Files: Sendable {
        let state: Mutex<Int>
        let paths: [String]

        init(_ runDirectory: String) {
            paths = RecentLog.paths(runDirectory)
            state = Mutex((try? readFile(paths[1]).count) ?? 0)
        }

        /// A line that cannot be written is on standard error all the same.
        func append(_ line: String) {
            let bytes = Array((line + "\n").utf8)
            state.withLock { size in
                if size > RecentLog.limit, (try? renameFile(paths[1], paths[0])) != nil { size = 0 }
                guard let file = try? openFile(paths[1], flags: O_WRONLY | O_CREAT | O_APPEND, mode: 0o600),
                    (try? writeAll(file, bytes)) != nil
                else { return }
                size += bytes.count
            }
        }
    }

    public init(label: String, runDirectory: String) {
        self.label = label
        files = Files(runDirectory)
    }

    public subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    public func log(event: LogEvent) {
        let merged = metadata.merging(event.metadata ?? [:]) { $1 }
        let fields = merged.sorted { $0.key < $1.key }.map { " \($0.key)=\($0.value)" }.joined()
        let time = Date().formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))
        files.append("\(time) \(event.level) \(label):\(fields) [\(event.source)] \(event.message)")
    }
}
