// SPDX-License-Identifier: Apache-2.0

internal import AsyncHTTPClient
internal import Datastore
internal import Foundation
internal import Logging
internal import Model

/// Follows one kind: a list in pages, then a watch from there, resumed after each break; listed again when the server
/// no longer knows, or does not know yet, where the watch was.
struct KindWatcher: Sendable {
    let kind: ResourceKind
    /// Of pods: only this node's; nil: all.
    let podsOf: String?
    let client: KubernetesClient
    let feed: ChangeFeed
    let health: Health
    let logger: Logger
    let pageSize: Int

    /// How often a kind is asked for whose CustomResourceDefinition is not there.
    let absentPeriod: Duration

    /// Why a watch cannot go on from where it was.
    private struct Expired: Error {}

    private var part: String { kind.plural }

    private var selector: [(name: String, value: String)] {
        podsOf.map { [(name: "fieldSelector", value: "spec.nodeName=\($0)")] } ?? []
    }

    /// Until it is cancelled.
    func run() async {
        var backoff = Backoff()
        var version: String?
        var lastVersion: String?
        /// How many there are, as far as was told.
        var count = 0
        var mayHaveGoneBack = false
        var absences = 0
        while !Task.isCancelled {
            let generation = client.generation
            do {
                // A node's own pods are few, and listed after each break.
                if mayHaveGoneBack, podsOf != nil { version = nil }
                if version == nil {
                    (version, count) = try await list(atLeast: lastVersion)
                } else if let version, mayHaveGoneBack, try await isOther(than: version, count) {
                    throw Expired()
                }
                lastVersion = version
                mayHaveGoneBack = false
                absences = 0
                await health.succeeded(part)
                let began = ContinuousClock.now
                defer { if ContinuousClock.now - began > .seconds(5) { backoff.succeeded() } }
                try await watch(&version, &count)
                // The next one may be another's, with another's content.
                mayHaveGoneBack = true
                // A server that ends watches at once is going.
                if ContinuousClock.now - began < .seconds(5) { await pause(backoff.next()) }
            } catch is CancellationError {
                return
            } catch is Expired {
                logger.info("watch has expired and is listed anew", metadata: ["kind": "\(kind.rawValue)"])
                version = nil
                await pause(backoff.next())
            } catch let error as KubernetesError where error.code == 404 && kind.isCustom {
                version = nil
                // An API server that starts may not know a kind for a moment.
                absences += 1
                guard absences > 3 || lastVersion == nil && absences > 1 else {
                    await pause(.seconds(1))
                    continue
                }
                await noteAbsent()
                await pause(absentPeriod * Double.random(in: 0.75...1.25))
            } catch {
                if Task.isCancelled { return }
                let known = error as? KubernetesError
                if known?.code == 410 { version = nil }
                // A version that the server has not got to: it was restored from an older backup.
                if known?.code == 504 || known?.code == 500, known?.message.contains("resource version") == true {
                    (version, lastVersion) = (nil, nil)
                }
                // A kind in which nothing happens may have no bookmarks either: does the server answer otherwise?
                if Self.isSilence(error), let from = version, let isOther = try? await isOther(than: from, count) {
                    if isOther { version = nil }
                    continue
                }
                // The client's own back-off would go up to a minute, and certificates may be others by now.
                if known == nil { client.renew(generation) }
                mayHaveGoneBack = true
                await health.failed(part, Self.text(error))
                await pause(backoff.next(atLeast: known?.retryAfter ?? .zero))
            }
        }
    }

    private func pause(_ duration: Duration) async { try? await Task.sleep(for: duration) }

    private static func isSilence(_ error: any Error) -> Bool {
        guard let error = error as? HTTPClientError else { return false }
        return [.readTimeout, .deadlineExceeded, .connectTimeout].contains(error)
    }

    static func text(_ error: any Error) -> String {
        error is KubernetesError || error is AccessError ? "\(error)" : "the API server does not answer (\(error))"
    }

    private func noteAbsent() async {
        var changes = ResourceChanges()
        changes.whole = [kind]
        feed.post(changes)
        await health.succeeded(part)
    }

    /// Whether the server has other content than it has told, so that a watch from there would be silent or miss what is
    /// gone: it is behind a version that it has told, or has another number of objects, by a tenth at least. It was
    /// restored from an older backup, or has lost its data and come as far again. Asked after each break.
    private func isOther(than version: String, _ count: Int) async throws -> Bool {
        var request = KubernetesClient.Request(verb: "list", target: kind.plural, path: kind.listPath)
        request.query = selector + [(name: "limit", value: "1")]
        let page = try FieldMask.fields([:]).decoder().decode(ListPage.self, from: Data(try await client.send(request)))
        if Self.isBehind(page.metadata.resourceVersion, version) { return true }
        let isWhole = page.metadata.continue?.isEmpty ?? true
        guard podsOf == nil, let rest = page.metadata.remainingItemCount ?? (isWhole ? 0 : nil) else { return false }
        let present = (page.items?.count ?? 0) + rest
        return abs(present - count) * 10 > max(present, count)
    }

    /// Versions are etcd's revisions, and numbers (KEP 5504).
    private static func isBehind(_ version: String?, _ other: String?) -> Bool {
        guard let version = version.flatMap({ UInt64($0) }), let other = other.flatMap({ UInt64($0) }) else {
            return false
        }
        return version < other
    }

    // MARK: List

    /// Tells the whole list; returns its version, and how many there are. Nothing is told before its last page has come.
    private func list(atLeast version: String?) async throws -> (version: String?, count: Int) {
        var changes = ResourceChanges()
        changes.whole = [kind]
        if kind == .pod { changes.podScope = podsOf == nil ? .all : .own }
        let decoder = FieldMask.followed(kind).decoder()
        var token: String?
        repeat {
            var request = KubernetesClient.Request(verb: "list", target: kind.plural, path: kind.listPath)
            request.query = selector
            if podsOf != nil {
                // Few: from the server's cache, which is at least as new as what was seen.
                request.query.append((name: "resourceVersion", value: version ?? "0"))
            } else {
                request.query.append((name: "limit", value: "\(pageSize)"))
                if let token { request.query.append((name: "continue", value: token)) }
            }
            let page = try decoder.decode(ListPage.self, from: Data(try await client.send(request)))
            for item in page.items ?? [] { note(item.value.named(kind), in: &changes) }
            token = page.metadata.continue.flatMap { $0.isEmpty ? nil : $0 }
            if token == nil {
                feed.post(changes)
                logger.debug(
                    "listed", metadata: ["kind": "\(kind.rawValue)", "count": "\(changes.entries.count)"])
                return (page.metadata.resourceVersion ?? "0", changes.entries.count)
            }
        } while true
    }

    private func note(_ value: ManifestValue, in changes: inout ResourceChanges) {
        do {
            changes.put(try Manifest(value, origin: kind.rawValue), own: feed.node)
        } catch {
            logger.warning("resource cannot be read", metadata: ["error": "\(error)"])
        }
    }

    // MARK: Watch

    private func watch(_ version: inout String?, _ count: inout Int) async throws {
        let seconds = Int.random(in: 300...600)
        var request = KubernetesClient.Request(verb: "watch", target: kind.plural, path: kind.listPath)
        request.query =
            selector + [
                (name: "watch", value: "1"), (name: "allowWatchBookmarks", value: "true"),
                (name: "resourceVersion", value: version ?? "0"), (name: "timeoutSeconds", value: "\(seconds)"),
            ]
        let decoder = FieldMask.followed(kind).decoder()
        var last = version
        var known = count
        defer { (version, count) = (last, known) }
        try await client.stream(request, seconds: seconds) { bytes in
            let line = try decoder.decode(WatchLine.self, from: Data(bytes))
            let object = line.object.value
            var changes = ResourceChanges()
            switch line.type {
            case .added, .modified:
                note(object.named(kind), in: &changes)
                if line.type == .added { known += 1 }
            case .deleted:
                known -= 1
                changes.remove(try Manifest(object.named(kind), origin: kind.rawValue).key)
            case .bookmark: if Self.isBehind(object.resourceVersion, last) { throw Expired() }
            case .error:
                // Comes with HTTP status 200.
                let whole = try JSONDecoder().decode(ErrorLine.self, from: Data(bytes)).object
                guard whole.code != 410, whole.reason != "Expired", whole.reason != "Gone" else { throw Expired() }
                throw KubernetesError(
                    verb: "watch", target: kind.plural, code: whole.code ?? 500, reason: whole.reason ?? "",
                    message: whole.message ?? "")
            }
            if let new = object.resourceVersion { last = new }
            feed.post(changes)
            if line.type == .bookmark { await health.succeeded(part) }
        }
    }

    private struct ErrorLine: Decodable {
        struct Status: Decodable {
            var code: Int?
            var reason: String?
            var message: String?
        }
        var object: Status
    }
}
