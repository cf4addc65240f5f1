// SPDX-License-Identifier: Apache-2.0

import Datastore
import DesiredState
import Foundation
import Logging
import Model
import SystemDescriptors
import Testing

@Suite("Datastore: a folder that changes")
struct FolderWatchTests {
    typealias Folder = DatastoreTests.Folder

    @Test("until what there is has been taken, there is no other tick, and no thread that looks for one")
    func pause() async throws {
        let folder = try await Folder()
        let watch = try FolderWatch()
        try watch.add("\(folder.path)/nodes")
        var ticks = watch.ticks.makeAsyncIterator()
        await ticks.next()
        try folder.write("nodes/a.yaml", "")
        await ticks.next()
        // Readable all the time: a source that fired again and again would take a whole processor.
        let (began, before) = (monotonicNanoseconds(), processorNanoseconds())
        try await Task.sleep(for: .milliseconds(300))
        let share = Double(processorNanoseconds() - before) / Double(monotonicNanoseconds() - began)
        #expect(share < 0.3, "other suites take some; a busy source takes all of one")
        #expect(watch.take().names["\(folder.path)/nodes"]?.contains("a.yaml") == true)
        try folder.write("nodes/b.yaml", "")
        await ticks.next()
        #expect(watch.take().names["\(folder.path)/nodes"]?.contains("b.yaml") == true)
    }

    @Test("files that come and go, stand beside the kinds' folders, or come by hundreds are told as they are")
    func everyWay() async throws {
        let folder = try await Folder()
        try folder.write("nodes/n1.yaml", "kind: Node\nmetadata: {name: n1}\n")
        let feed = ChangeFeed(node: "n1")
        let store = folder.store
        let follower = Task { await store.follow(feed) }
        defer { follower.cancel() }
        var inventory = Inventory(node: "n1")
        func wait(_ what: String, _ condition: (Inventory) -> Bool) async throws {
            let deadline = monotonicNanoseconds() + 20_000_000_000
            while true {
                inventory.apply(feed.take())
                if inventory.isReady, condition(inventory) { return }
                try #require(monotonicNanoseconds() < deadline, "\(what) within 20 s")
                try await Task.sleep(for: .milliseconds(5))
            }
        }
        try await wait("the first state") { $0.cluster.nodes.keys.sorted() == ["n1"] }
        // Beside the folders of the kinds, which looks at single files must bear.
        try folder.write("lone.yaml", "kind: Node\nmetadata: {name: n2}\n")
        try await wait("a manifest in the folder itself") { $0.cluster.nodes["n2"] != nil }
        try folder.write("nodes/n3.yaml", "kind: Node\nmetadata: {name: n3}\n")
        try await wait("one beside it") { $0.cluster.nodes["n3"] != nil }
        try removeFile("\(folder.path)/lone.yaml")
        try await wait("it is gone") { $0.cluster.nodes["n2"] == nil }
        for number in 0..<50 {
            try folder.write("pods/gone-\(number).yaml", "kind: Pod\nmetadata: {name: gone-\(number)}\n")
            try removeFile("\(folder.path)/pods/gone-\(number).yaml")
        }
        // As many as are read on several threads.
        for number in 0..<300 {
            try folder.write("nodes/many-\(number).yaml", "kind: Node\nmetadata: {name: many-\(number)}\n")
        }
        try await wait("all of many") { $0.cluster.nodes.count == 302 }
        try folder.write("nodes/many-7.yaml", "kind: Node\nmetadata: {name: other}\n")
        try await wait("a file that holds another resource now") {
            $0.cluster.nodes["many-7"] == nil && $0.cluster.nodes["other"] != nil
        }
        #expect(inventory.problems.isEmpty)
    }

    @Test("a folder that is emptied file by file is held back as a whole, and comes back; one Node that goes is gone")
    func emptied() async throws {
        let folder = try await Folder()
        func write(_ number: Int) throws {
            try folder.write("nodes/n\(number).yaml", "kind: Node\nmetadata: {name: n\(number)}\n")
        }
        for number in 0..<12 { try write(number) }
        let feed = ChangeFeed(node: "n1")
        let store = folder.store
        let follower = Task { await store.follow(feed) }
        defer { follower.cancel() }
        var inventory = Inventory(node: "n1")
        var fewest = Int.max
        func wait(_ what: String, _ condition: (Inventory) -> Bool) async throws {
            let deadline = monotonicNanoseconds() + 20_000_000_000
            while true {
                inventory.apply(feed.take())
                if inventory.isReady { fewest = min(fewest, inventory.cluster.nodes.count) }
                if inventory.isReady, condition(inventory) { return }
                try #require(monotonicNanoseconds() < deadline, "\(what) within 20 s")
                try await Task.sleep(for: .milliseconds(2))
            }
        }
        try await wait("the first state") { $0.cluster.nodes.count == 12 }
        // A file each ten milliseconds. Where this process was kept waiting meanwhile, it was not that, and is done again.
        var longest = UInt64.max
        for attempt in 1...20 where longest > 60_000_000 {
            (longest, fewest) = (0, .max)
            var last = monotonicNanoseconds()
            for number in 0..<12 {
                try removeFile("\(folder.path)/nodes/n\(number).yaml")
                try await Task.sleep(for: .milliseconds(10))
                let now = monotonicNanoseconds()
                (longest, last) = (max(longest, now - last), now)
            }
            try await wait("all is told, attempt \(attempt)") {
                $0.held[.node] != nil || longest > 60_000_000 && $0.cluster.nodes.isEmpty
            }
            if longest <= 60_000_000 { #expect(fewest == 12) }
            for number in 0..<12 { try write(number) }
            try await wait("all are there again") { $0.held.isEmpty && $0.cluster.nodes.count == 12 }
        }
        #expect(longest <= 60_000_000 && fewest == 12)
        try removeFile("\(folder.path)/nodes/n3.yaml")
        try await wait("one is gone") { $0.cluster.nodes.count == 11 }
    }

    @Test("a folder read on several threads: the same problems and resources, in the same order")
    func threads() async throws {
        let folder = try await Folder()
        for number in 0..<400 {
            let text = number % 50 == 7 ? "kind: Nod\n" : "kind: Node\nmetadata: {name: n\(number)}\n"
            try folder.write("nodes/n\(number).yaml", text)
        }
        let first = try await folder.store.read()
        let second = try await DirectoryDatastore(path: folder.path, logger: DatastoreTests.logger).read()
        #expect(first.manifests.count == 392 && first.problems.count == 8)
        #expect(first.problems == second.problems)
        #expect(!first.isComplete)
    }
}
