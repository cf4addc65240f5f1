// SPDX-License-Identifier: Apache-2.0

import Datastore
import DesiredState
import Foundation
import Logging
import Model
import OrderedCollections
import SystemDescriptors
import Testing

@Suite("Datastore: directory")
struct DatastoreTests {
    static let logger = Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }

    /// A folder that goes with the test.
    final class Folder: Sendable {
        let path = "/tmp/wgplane-datastore-\(UUID().uuidString)"
        let store: DirectoryDatastore
        init() async throws {
            store = DirectoryDatastore(path: path, writingTime: .seconds(2), logger: DatastoreTests.logger)
            try await store.create()
        }
        deinit { try? FileManager.default.removeItem(atPath: path) }

        func write(_ file: String, _ text: String) throws {
            try text.write(toFile: "\(path)/\(file)", atomically: true, encoding: .utf8)
        }
    }

    static func node(_ name: String) -> ManifestValue {
        .object(["apiVersion": "v1", "kind": "Node", "metadata": .object(["name": .string(name)])])
    }

    @Test("what is written is read, fields that nobody knows and their order included")
    func roundTrip() async throws {
        let folder = try await Folder()
        var content = Self.node("n1")
        content[["metadata", "labels"]] = .object(["zone": "b", "a": "yes", "number": "12", "empty": ""])
        content["future"] = .object([
            "list": .array([.integer(1), .bool(true), .null, .number(1.5), "text: with colon"])
        ])
        let written = content
        try await folder.store.update(ResourceKey(.node, "n1")) { _ in written }
        let fresh = DirectoryDatastore(path: folder.path, logger: Self.logger)
        #expect(try await fresh.read().manifests[ResourceKey(.node, "n1")]?.content == content)
        try await folder.store.update(ResourceKey(.node, "n1")) { _ in nil }
        #expect(try await fresh.read().manifests.isEmpty)
        #expect(try FileManager.default.contentsOfDirectory(atPath: "\(folder.path)/nodes").isEmpty)
    }

    @Test("many writers at once lose no change")
    func concurrency() async throws {
        let folder = try await Folder()
        let stores = (0..<4).map { _ in DirectoryDatastore(path: folder.path, logger: Self.logger) }
        try await folder.store.update(ResourceKey(.node, "n1")) { _ in Self.node("n1") }
        try await withThrowingTaskGroup(of: Void.self) { group in
            for (index, store) in stores.enumerated() {
                group.addTask {
                    for number in 0..<25 {
                        try await store.update(ResourceKey(.node, "n1")) { current in
                            var content = current ?? .object([:])
                            content[["metadata", "annotations", "w\(index)-\(number)"]] = "x"
                            return content
                        }
                    }
                }
            }
            try await group.waitForAll()
        }
        #expect(try await folder.store.read().manifests.values.first?.annotations.count == 100)
    }

    @Test("a file that breaks keeps its last good content; the others go on")
    func brokenFile() async throws {
        let folder = try await Folder()
        try folder.write("nodes/n1.yaml", "kind: Node\nmetadata:\n  name: n1\n")
        try folder.write("nodes/n2.yaml", "kind: Node\nmetadata: {name: n2}\n")
        #expect(try await folder.store.read().manifests.count == 2)
        try folder.write("nodes/n1.yaml", "kind: Node\nmetadata:\n  name: [n1\nstatus: }\n")
        let broken = try await folder.store.read()
        #expect(broken.manifests.count == 2, "nothing is lost")
        let problem = try #require(broken.problems.first)
        #expect(problem.resource == "nodes/n1.yaml" && problem.message.contains("line "), "\(problem)")
        #expect(problem.message.contains("last good content"))
        // The half of one may be YAML.
        try folder.write("nodes/n2.yaml", "kind: Node\nmetadata: {name: n2}\nstatus:")
        let half = try await folder.store.read()
        #expect(half.manifests.count == 2 && half.problems.contains { $0.message.contains("ends within a line") })
        // JSON ends where it ends; half of it is none.
        try folder.write("nodes/n2.yaml", #"{"kind": "Node", "metadata": {"name": "n2", "labels": {"a": "b"}}}"#)
        #expect(try await folder.store.read().problems.map(\.resource) == ["nodes/n1.yaml"])
        try folder.write("nodes/n2.yaml", "kind: Node\nmetadata: {name: n2}\n")
        #expect(try await folder.store.read().problems.map(\.resource) == ["nodes/n1.yaml"])
        // Who writes without the end of a line is believed in time.
        try folder.write("nodes/n2.yaml", "kind: Node\nmetadata: {name: n2, annotations: {a: c}}")
        #expect(try await folder.store.read().manifests[ResourceKey(.node, "n2")]?.annotations == [:])
        let deadline = ContinuousClock.now + .seconds(30)
        var late = try await folder.store.read()
        while late.problems.count > 1, .now < deadline {
            try await Task.sleep(for: .milliseconds(200))
            late = try await folder.store.read()
        }
        #expect(late.manifests[ResourceKey(.node, "n2")]?.annotations == ["a": "c"])
        try folder.write("nodes/n2.yaml", "kind: Node\nmetadata: {name: n2}\n")
        try folder.write("nodes/n1.yaml", "kind: Node\nmetadata:\n  name: n1\n  annotations: {a: b}\n")
        let mended = try await folder.store.read()
        #expect(mended.problems.isEmpty && mended.manifests[ResourceKey(.node, "n1")]?.annotations == ["a": "b"])
    }

    @Test(
        "manifests that are none are named, with file, field and remedy",
        arguments: [
            ("kind: Nod\nmetadata: {name: a}", "kind", "Nod"),
            ("kind: Node\nmetadata: {name: ../a}", "metadata.name", "../a"),
            ("kind: Node", "metadata.name", ""), ("[1, 2]", "", ""),
            ("kind: Pod\nmetadata: {name: a, namespace: 'x/y'}", "metadata.namespace", "x/y"),
            ("a: 1\n---\nb: 2", "", ""),
        ])
    func badManifests(_ text: String, _ field: String, _ value: String) async throws {
        let folder = try await Folder()
        try folder.write("nodes/bad.yaml", text)
        try folder.write("nodes/good.json", #"{"kind": "Node", "metadata": {"name": "good"}}"#)
        let snapshot = try await folder.store.read()
        #expect(snapshot.manifests.keys.map(\.name) == ["good"])
        let problem = try #require(snapshot.problems.first)
        #expect(problem.resource == "nodes/bad.yaml" && problem.field == field && problem.value == value, "\(problem)")
        #expect(!problem.remedy.isEmpty)
    }

    @Test("one name in two files: the first counts, the second is named")
    func twice() async throws {
        let folder = try await Folder()
        try folder.write("nodes/a.yaml", "kind: Node\nmetadata: {name: n1, annotations: {from: a}}")
        try folder.write("nodes/b.yaml", "kind: Node\nmetadata: {name: n1, annotations: {from: b}}")
        let snapshot = try await folder.store.read()
        #expect(snapshot.manifests.values.map(\.annotations) == [["from": "a"]])
        #expect(snapshot.problems.map(\.resource) == ["nodes/b.yaml"])
    }

    @Test("an empty folder is no cluster without resources, a pipe is no file, and a broken file is not overwritten")
    func guards() async throws {
        let empty = "/tmp/wgplane-empty-\(UUID().uuidString)"
        try makeFolders(empty)
        defer { try? removeFolder(empty) }
        let store = DirectoryDatastore(path: empty, logger: Self.logger)
        let error = await #expect(throws: DatastoreError.self) { try await store.read() }
        #expect(error?.message == "holds no folder of resources")
        let folder = try await Folder()
        #expect(mkfifo("\(folder.path)/nodes/pipe.yaml", 0o600) == 0)
        try folder.write("nodes/n1.yaml", "{")
        let snapshot = try await folder.store.read()
        #expect(!snapshot.isComplete && snapshot.problems.map(\.resource) == ["nodes/n1.yaml"])
        await #expect(throws: DatastoreError.self) {
            try await folder.store.update(ResourceKey(.node, "n1")) { _ in Self.node("n1") }
        }
        await #expect(throws: ProblemsError.self) {
            try await folder.store.update(ResourceKey(.node, "n2")) { _ in Self.node("n3") }
        }
    }

    @Test("a watcher is told the state at once, and each change")
    func watching() async throws {
        let folder = try await Folder()
        let writer = DirectoryDatastore(path: folder.path, logger: Self.logger)
        try await writer.update(ResourceKey(.node, "n1")) { _ in Self.node("n1") }
        let seen = try await Self.follow(folder.store) { count in
            if count == 1 { try await writer.update(ResourceKey(.node, "n2")) { _ in Self.node("n2") } }
            if count == 2 { try await writer.update(ResourceKey(.node, "n1")) { _ in nil } }
        }
        #expect(seen == [["n1"], ["n1", "n2"], ["n2"]])
    }

    /// Distinct states as they come, three at most; `react` is called after each new one.
    private static func follow(
        _ store: DirectoryDatastore, _ react: (Int) async throws -> Void
    ) async throws -> [[String]] {
        let feed = ChangeFeed(node: "n1")
        let follower = Task { await store.follow(feed) }
        defer { follower.cancel() }
        var inventory = Inventory(node: "n1")
        var seen: [[String]] = []
        for await _ in feed.signals {
            inventory.apply(feed.take())
            let names = inventory.cluster.nodes.keys.sorted()
            if !inventory.isReady || seen.last == names { continue }
            seen.append(names)
            if seen.count == 3 { break }
            try await react(seen.count)
        }
        return seen
    }

    @Test("a full disk: the write fails in words, and nothing of the old content is touched")
    func fullDisk() async throws {
        let path = "/tmp/wgplane-full-\(UUID().uuidString)"
        try makeFolders(path)
        try mountFileSystem("tmpfs", on: path, options: "size=64k")
        defer {
            detachMount(path)
            try? removeFolder(path)
        }
        let store = DirectoryDatastore(path: path, logger: Self.logger)
        try await store.create()
        try await store.update(ResourceKey(.node, "n1")) { _ in Self.node("n1") }
        var large = Self.node("n1")
        large["filler"] = .string(String(repeating: "x", count: 200_000))
        let content = large
        let error = await #expect(throws: DatastoreError.self) {
            try await store.update(ResourceKey(.node, "n1")) { _ in content }
        }
        #expect(
            error?.location.hasSuffix("nodes/n1.yaml") == true && error?.remedy.contains("free space") == true,
            "\(String(describing: error))")
        let fresh = DirectoryDatastore(path: path, logger: Self.logger)
        #expect(try await fresh.read().manifests[ResourceKey(.node, "n1")]?.content == Self.node("n1"))
        #expect(
            try FileManager.default.contentsOfDirectory(atPath: "\(path)/nodes") == ["n1.yaml"], "no torn file is left")
    }
}

@Suite("Datastore: text")
struct ManifestTextTests {
    @Test(
        "plain text has the type that JSON gives it; what YAML 1.1 adds is text",
        arguments: [
            ("1", .integer(1)), ("-7", .integer(-7)), ("1.5", .number(1.5)), ("1e3", .number(1000)),
            ("true", .bool(true)),
            ("null", .null), ("~", .null), ("yes", .string("yes")), ("10:30", .string("10:30")),
            (".inf", .string(".inf")),
            ("1:1:1:1:1:1:1:1:1:1:1", .string("1:1:1:1:1:1:1:1:1:1:1")),
            ("9223372036854775807:00", .string("9223372036854775807:00")),
            ("0x20000000", .string("0x20000000")), ("99999999999999999999", .number(1e20)),
            ("10.0.0.1", .string("10.0.0.1")),
        ] as [(String, ManifestValue)])
    func scalars(_ text: String, _ value: ManifestValue) throws {
        #expect(try ManifestText.parse("a: \(text)", origin: "test") == .object(["a": value]))
        // And text stays text through writing and reading.
        let quoted: ManifestValue = .object(["a": .string(text), "list": .array([.string(text)])])
        #expect(try ManifestText.parse(try ManifestText.yaml(quoted), origin: "test") == quoted)
    }

    @Test("texts that grow by aliases, or nest without end, are refused")
    func bombs() {
        var text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        for level in 1..<10 {
            text += "a\(level): &a\(level) [\((0..<10).map { _ in "*a\(level - 1)" }.joined(separator: ", "))]\n"
        }
        let bomb = text
        #expect(throws: ProblemsError.self) { try ManifestText.parse(bomb, origin: "test") }
        let deep = String(repeating: "[", count: 200) + String(repeating: "]", count: 200)
        #expect(throws: ProblemsError.self) { try ManifestText.parse(deep, origin: "test") }
    }

    @Test(
        "JSON is read as JSON where it says the same as YAML: a key twice is refused, numbers and words keep their types"
    )
    func json() throws {
        #expect(throws: ProblemsError.self) {
            try ManifestText.parse(#"{"a": {"mode": "Enabled", "mode": "Disabled"}}"#, origin: "a.json")
        }
        let deep = String(repeating: #"{"a":"#, count: 70) + "1" + String(repeating: "}", count: 70)
        #expect(throws: ProblemsError.self) { try ManifestText.parse(deep, origin: "deep.json") }
        let text = #"{"text": "a: \"b\": c", "yes": true, "one": 1, "half": 0.5, "none": null, "list": ["1", 2]}"#
        let value = try ManifestText.parse(text, origin: "b.json")
        #expect(value["text"] == #"a: "b": c"#)
        #expect(value["yes"] == true && value["one"] == .integer(1) && value["half"] == .number(0.5))
        #expect(value["none"] == .null && value["list"] == .array(["1", .integer(2)]))
    }
}
