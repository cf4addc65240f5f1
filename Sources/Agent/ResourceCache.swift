// SPDX-License-Identifier: Apache-2.0

internal import Crypto
internal import DesiredState
internal import Foundation
internal import Logging
internal import Model
internal import SystemDescriptors

/// Keeps what the agent knows of the cluster on disk, for an agent that starts while the datastore is away.
///
/// A file of JSON lines in the state folder, for root alone: a head, then one resource a line, as the agent keeps them,
/// and the digest of all that, for a disk may give back other bytes than it was given. What resources hold beside that,
/// and private keys, are never in it.
actor ResourceCache {
    /// First line: whose it is, and how it is to be read.
    struct Head: Codable, Equatable {
        /// Another number: another agent's, which is not read.
        var schema = Head.current
        var node: String
        var datastore: String
        var podScope: PodScope
        /// Unix time in seconds.
        var written: Int64

        static let current = 3
    }

    /// Last line: SHA-256 (FIPS 180-4) of all before it, as hexadecimal digits.
    struct Seal: Codable {
        var sha256: String

        init(_ digest: SHA256Digest) {
            sha256 = digest.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
        }
    }

    struct Line: Codable {
        var key: ResourceKey
        var entry: ResourceEntry
    }

    struct Content {
        var head: Head
        var resources: [ResourceKey: ResourceEntry]
    }

    private let path: String
    private let folder: String
    private let node: String
    private let location: String
    private let logger: Logger
    private let queue = KernelQueue(label: "resource-cache")
    private var lastVersion: Int?
    private var nextAt = ContinuousClock.now
    private var lastFailure: String?

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    init(_ options: AgentOptions, location: String, logger: Logger) {
        folder = options.stateDirectory
        path = Self.path(options)
        node = options.node
        self.location = location
        self.logger = logger
    }

    static func path(_ options: AgentOptions) -> String { "\(options.stateDirectory)/resources.jsonl" }

    /// Between two writings: what is written quickly soon, for an agent may be killed at any moment; what takes long a
    /// 500th of the time, yet each half minute, or a hundredth of the time.
    static func period(after cost: Duration) -> Duration {
        min(max(.seconds(2), cost * 500), max(.seconds(30), cost * 100))
    }

    /// Writes it, where there is something new and it is time. `isDue`: it is time. True: the file has this now.
    @discardableResult
    func keep(_ cluster: ClusterState, podScope: PodScope, version: Int, isDue: Bool = false) -> Bool {
        guard version != lastVersion, isDue || ContinuousClock.now >= nextAt else { return version == lastVersion }
        let began = ContinuousClock.now
        do {
            let head = Head(
                node: node, datastore: location, podScope: podScope, written: Int64(Date().timeIntervalSince1970))
            try makeOwnFolders(folder)
            try replaceFile(path, with: try Pieces(head, cluster), mode: 0o600)
            lastVersion = version
            lastFailure = nil
            nextAt = .now + Self.period(after: .now - began)
            return true
        } catch {
            if lastFailure != "\(error)" {
                logger.warning("what is known of the cluster cannot be kept", metadata: ["error": "\(error)"])
            }
            lastFailure = "\(error)"
            nextAt = .now + .seconds(30)
            return false
        }
    }

    /// There is nothing to be kept for.
    func forget() {
        lastVersion = nil
        try? removeFile(path)
    }

    /// What an earlier agent of this node has known of this datastore; nil: nothing that can be used.
    nonisolated func read() -> Content? {
        do {
            try requireOwn(folder)
            try requireOwn(path)
        } catch {
            logger.warning("what an earlier agent has kept is not used", metadata: ["reason": "\(error)"])
            return nil
        }
        guard let bytes = try? readFile(path, limit: 512 << 20) else { return nil }
        var lines = bytes.split(separator: 0x0a)
        let decoder = JSONDecoder()
        guard let first = lines.first, let head = try? decoder.decode(Head.self, from: Data(first)),
            head.node == node, head.datastore == location
        else { return nil }
        guard head.schema == Head.current else {
            logger.notice("what another version has kept is not used", metadata: ["schema": "\(head.schema)"])
            return nil
        }
        guard bytes.last == 0x0a, let last = lines.popLast(),
            let seal = try? decoder.decode(Seal.self, from: Data(last)),
            seal.sha256 == Seal(SHA256.hash(data: bytes.dropLast(last.count + 1))).sha256
        else {
            logger.warning("what an earlier agent has kept is damaged, and is not used", metadata: ["file": "\(path)"])
            return nil
        }
        var resources: [ResourceKey: ResourceEntry] = [:]
        for line in lines.dropFirst() {
            // One that is not whole is as bad as none.
            guard let line = try? decoder.decode(Line.self, from: Data(line)) else {
                logger.warning("what an earlier agent has kept cannot be read, and is not used")
                return nil
            }
            resources[line.key] = line.entry
        }
        return Content(head: head, resources: resources)
    }

    /// The file, some resources at a time.
    private struct Pieces: Sequence, IteratorProtocol {
        private var keys: [ResourceKey]
        private let cluster: ClusterState
        private var head: [UInt8]?
        private var hash = SHA256()
        private var isSealed = false
        private let encoder = JSONEncoder()

        init(_ head: Head, _ cluster: ClusterState) throws {
            self.cluster = cluster
            keys = ResourceKind.allCases.flatMap { cluster.keys(of: $0) }
            self.head = Array(try encoder.encode(head)) + [0x0a]
        }

        mutating func next() -> [UInt8]? {
            guard !isSealed else { return nil }
            guard let piece = nextLines() else {
                isSealed = true
                return (try? encoder.encode(Seal(hash.finalize()))).map { Array($0) + [0x0a] }
            }
            hash.update(data: piece)
            return piece
        }

        private mutating func nextLines() -> [UInt8]? {
            if let head {
                self.head = nil
                return head
            }
            guard !keys.isEmpty else { return nil }
            var piece: [UInt8] = []
            for key in keys.suffix(500) {
                guard let entry = cluster[key], let line = try? encoder.encode(Line(key: key, entry: entry)) else {
                    continue
                }
                piece += line
                piece.append(0x0a)
            }
            keys.removeLast(Swift.min(500, keys.count))
            return piece
        }
    }
}
