// SPDX-License-Identifier: Apache-2.0

import Datastore
import DesiredState
import Foundation
import Lab
import Model
import NIOCore
import OrderedCollections
import Testing

/// What every datastore must do, against real servers.
@Suite("Datastores: conformance", .serialized)
struct ConformanceTests {
    @Test("resources are made, changed, read and deleted, one by one", arguments: StoreKind.allCases)
    func writing(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            let store = rig.direct
            let key = ResourceKey(.node, "n1")
            let nothing = try await store.update(key) { $0 }
            #expect(nothing == nil)
            try await store.put(Make.node("n1"), Make.pod("web", node: "n1", "10.48.1.1"), Make.felix(true))
            var seen = try await store.read()
            #expect(
                Set(seen.manifests.keys) == [
                    key, ResourceKey(.pod, "web"), ResourceKey(.felixConfiguration, "default"),
                ])
            #expect(ClusterState(seen.manifests.values).nodes["n1"]?.addresses[.ipv4] == IPAddress("10.0.0.1"))
            let changed = try await store.update(key) { current in
                var node = current
                node?[["metadata", "annotations", "projectcalico.org/WireguardPublicKey"]] = "key="
                return node
            }
            #expect(changed?[["metadata", "annotations", "projectcalico.org/WireguardPublicKey"]] == "key=")
            seen = try await store.read([.node])
            #expect(seen.manifests.count == 1 && seen.manifests[key]?.annotations.count == 1)
            try await store.delete(.node, "n1")
            #expect(try await store.read([.node]).manifests.isEmpty)
            await #expect(throws: (any Error).self, "a name that is none") {
                try await store.update(ResourceKey(.node, "n2")) { _ in Make.node("n3").content }
            }
        }
    }

    @Test("of writers at the same time none undoes another's change", arguments: StoreKind.allCases)
    func racing(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            try await rig.direct.put(Make.node("n1"))
            let stores = try (0..<4).map { _ in try rig.open() }
            try await withThrowingTaskGroup(of: Void.self) { group in
                for (writer, store) in stores.enumerated() {
                    group.addTask {
                        for number in 0..<5 {
                            try await store.update(ResourceKey(.node, "n1")) { current in
                                var node = current
                                node?[["metadata", "annotations", "w\(writer)-\(number)"]] = "x"
                                return node
                            }
                        }
                    }
                }
                try await group.waitForAll()
            }
            for store in stores { await store.close() }
            let node = try await rig.direct.read([.node]).manifests[ResourceKey(.node, "n1")]
            #expect(node?.annotations.count == 20)
        }
    }

    @Test("a follower is told the state, in pages, and each change after it", arguments: StoreKind.allCases)
    func following(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...23 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            try await rig.direct.put(Make.pool("pool", "10.48.0.0/16"), Make.felix(false))
            try await Follower.run(rig.open(pageSize: 5, idle: .seconds(90))) { follower in
                try #require(await eventually { follower.isReady })
                #expect(follower.nodes.count == 23 && follower.isAvailable)
                #expect(follower.inventory.cluster.pools.count == 1)
                #expect(follower.inventory.ownNode?.key.name == "n1")
                follower.mark()
                try await rig.direct.put(Make.node("n24"), Make.pod("web", node: "n24", "10.48.1.1"), Make.felix(true))
                try await rig.direct.delete(.node, "n7")
                try await rig.direct.put(Make.node("n1", annotations: ["projectcalico.org/WireguardPublicKey": "x"]))
                let isSeen = await eventually {
                    let cluster = follower.inventory.cluster
                    return cluster.nodes["n24"] != nil && cluster.nodes["n7"] == nil && cluster.pods.count == 1
                        && cluster.configurations[ResourceKey(.felixConfiguration, "default")]?.content[[
                            "spec", "wireguardEnabled",
                        ]] == true
                }
                #expect(isSeen)
                // A change of annotations alone is a change.
                #expect(await eventually { follower.inventory.ownNode?.annotations.count == 1 })
                #expect(follower.lists == 0, "nothing was listed again")
            }
        }
    }

    @Test(
        "a follower that wants its own pods is told of those, and of all once it wants them",
        arguments: StoreKind.allCases)
    func scope(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...6 {
                try await rig.direct.put(
                    Make.pod("p\(number)", node: number % 2 == 1 ? "n1" : "n2", "10.48.1.\(number)"))
            }
            try await Follower.run(rig.open(), scope: .own) { follower in
                try #require(await eventually { follower.isReady })
                if kind != .directory {
                    #expect(follower.pods == 3 && follower.inventory.podScope == .own)
                    try await rig.direct.put(Make.pod("p7", node: "n1", "10.48.1.7"))
                    try await rig.direct.put(Make.pod("p8", node: "n2", "10.48.1.8"))
                    #expect(await eventually { follower.pods == 4 })
                }
                follower.feed.podScope = .all
                #expect(await eventually { follower.pods == (kind == .directory ? 6 : 8) })
                #expect(follower.inventory.podScope == .all && follower.inventory.isComplete)
            }
        }
    }

    @Test("away at the start: said, and all is told once it is there, without a restart", arguments: StoreKind.allCases)
    func awayAtStart(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            try await rig.direct.put(Make.node("n1"))
            try await rig.stop()
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.unavailability != nil })
                #expect(!follower.isReady)
                try await rig.start()
                #expect(await eventually { follower.isReady && follower.isAvailable })
                #expect(follower.nodes == ["n1"])
            }
        }
    }

    @Test("away later: what is there stays, and what was changed meanwhile is told", arguments: StoreKind.allCases)
    func awayLater(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...12 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady })
                for round in 1...2 {
                    follower.mark()
                    try await rig.cut()
                    try #require(await eventually { follower.unavailability != nil })
                    if kind != .directory {
                        try await rig.direct.put(Make.node("m\(round)"))
                        try await rig.direct.delete(.node, "n\(round + 4)")
                    }
                    #expect(follower.nodes.count == 12)
                    try await rig.restore()
                    #expect(await eventually { follower.isAvailable })
                    if kind != .directory {
                        #expect(
                            await eventually {
                                let nodes = follower.nodes
                                return nodes.contains("m\(round)") && !nodes.contains("n\(round + 4)")
                            })
                        #expect(follower.lists == 0, "the watch goes on from where it was")
                    }
                    #expect(follower.lowest.nodes >= 11, "nothing has flapped")
                }
            }
        }
    }

    @Test("killed and started again: the watch goes on, nothing flaps", arguments: [StoreKind.etcd, .kubernetes])
    func killed(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...12 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady })
                follower.mark()
                try await rig.stop()
                try #require(await eventually { follower.unavailability != nil })
                try await rig.start()
                try await rig.direct.put(Make.node("n13"))
                #expect(await eventually { follower.nodes.count == 13 && follower.isAvailable })
                #expect(follower.lowest.nodes == 12)
            }
        }
    }

    @Test(
        "silent: noticed by the idle limit, and mended when it speaks again", arguments: [StoreKind.etcd, .kubernetes])
    func frozen(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            try await rig.direct.put(Make.node("n1"))
            try await Follower.run(rig.open(pageSize: 500, idle: .seconds(4))) { follower in
                try #require(await eventually { follower.isReady })
                follower.mark()
                #expect(rig.freeze(true))
                #expect(await eventually { follower.unavailability != nil })
                #expect(follower.nodes == ["n1"])
                #expect(rig.freeze(false))
                #expect(await eventually { (try? await rig.direct.put(Make.node("n2"))) != nil })
                #expect(await eventually { follower.nodes == ["n1", "n2"] && follower.isAvailable })
            }
        }
    }

    @Test(
        "cut in the middle of a list: nothing of it counts, nothing is taken away",
        arguments: [StoreKind.etcd, .kubernetes])
    func cutList(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...40 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            let relay = try #require(rig.relay)
            let store = try rig.open(pageSize: 10, idle: .seconds(10))
            relay.limit(9000)
            try await Follower.run(store) { follower in
                try #require(await eventually { follower.unavailability != nil })
                #expect(follower.nodes.isEmpty && !follower.isReady)
                relay.restore()
                #expect(await eventually { follower.isReady })
                #expect(follower.nodes.count == 40)
                // And again when there is something to lose.
                follower.mark()
                rig.relay?.cut()
                try #require(await eventually { follower.unavailability != nil })
                try await rig.direct.delete(.node, "n3")
                try await rig.forgetHistory()
                let before = relay.received
                relay.restore()
                relay.limit(9000)
                try #require(await eventually { relay.received > before + 4000 || follower.nodes.count == 39 })
                #expect(follower.nodes.count >= 39)
                relay.restore()
                #expect(await eventually { follower.nodes.count == 39 })
                #expect(follower.lowest.nodes == 39)
            }
        }
    }

    @Test(
        "cut five times a second while much changes: nothing flaps, and in the end all is as it is there",
        arguments: [StoreKind.etcd, .kubernetes])
    func cutAgainAndAgain(_ kind: StoreKind) async throws {
        let seconds =
            ProcessInfo.processInfo.environment["WGPLANE_CUT_SECONDS"].flatMap { Double($0) } ?? 8
        let seed = UInt64.random(in: 0...UInt64(UInt32.max))
        print("seed \(seed)")
        try await kind.run { rig in
            for number in 1...40 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            let relay = try #require(rig.relay)
            try await Follower.run(rig.open(pageSize: 10, idle: .seconds(10))) { follower in
                try #require(await eventually { follower.isReady && follower.nodes.count == 40 })
                follower.mark()
                let cutter = Task {
                    while !Task.isCancelled {
                        relay.cut()
                        relay.restore()
                        try await Task.sleep(for: .milliseconds(200))
                    }
                }
                var random = SeededGenerator(seed: seed)
                var there = Set((1...40).map { "n\($0)" })
                let end = ContinuousClock.now + .seconds(seconds)
                var changes = 0
                while ContinuousClock.now < end {
                    // Those that never go: 1 to 20.
                    let name = "n\(Int.random(in: 21...60, using: &random))"
                    if there.contains(name) {
                        try await rig.direct.delete(.node, name)
                        there.remove(name)
                    } else {
                        try await rig.direct.put(Make.node(name, "10.0.1.\(name.dropFirst())"))
                        there.insert(name)
                    }
                    changes += 1
                }
                cutter.cancel()
                _ = try? await cutter.value
                relay.restore()
                let wanted = there.sorted()
                #expect(await eventually { follower.nodes == wanted && follower.isAvailable })
                #expect(follower.lowest.nodes >= 20 && changes > 20, "\(changes) changes")
                #expect(Set((1...20).map { "n\($0)" }).isSubset(of: follower.nodes))
            }
        }
    }

    @Test("slow: complete all the same", arguments: [StoreKind.etcd, .kubernetes])
    func slow(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...40 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            rig.relay?.slow(.milliseconds(80))
            try await Follower.run(rig.open(pageSize: 10, idle: .seconds(90))) { follower in
                #expect(await eventually { follower.isReady })
                #expect(await eventually { follower.nodes.count == 40 && follower.isAvailable })
            }
        }
    }

    @Test("history that is forgotten: a new list, without a flap", arguments: [StoreKind.etcd, .kubernetes])
    func forgotten(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...12 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady })
                follower.mark()
                try await rig.cut()
                try #require(await eventually { follower.unavailability != nil })
                for number in 13...20 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
                try await rig.direct.delete(.node, "n2")
                try await rig.forgetHistory()
                try await rig.restore()
                #expect(await eventually { follower.nodes.count == 19 })
                #expect(follower.lists > 0, "it was listed again")
                #expect(follower.lowest.nodes >= 12)
            }
        }
    }

    @Test(
        "an older backup: what was made since is gone, what was deleted is there, and later changes come",
        arguments: StoreKind.allCases)
    func restored(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...12 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            try await rig.backUp()
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady })
                for number in 13...30 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
                try await rig.direct.delete(.node, "n2")
                try #require(await eventually { follower.nodes.count == 29 })
                follower.mark()
                try await rig.restoreBackup()
                #expect(await eventually(within: .seconds(180)) { follower.nodes.count == 12 })
                #expect(follower.nodes.contains("n2"))
                try await rig.direct.put(Make.node("later"))
                #expect(await eventually { follower.nodes.count == 13 })
            }
        }
    }

    @Test(
        "data that are lost are held back, with an alarm, until they are back or the operator says they are true",
        arguments: StoreKind.allCases)
    func lost(_ kind: StoreKind) async throws {
        try await kind.run { rig in
            for number in 1...12 { try await rig.direct.put(Make.node("n\(number)", "10.0.0.\(number)")) }
            try await rig.direct.put(Make.pool("pool", "10.48.0.0/16"))
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady })
                follower.mark()
                try await rig.loseAll()
                #expect(await eventually(within: .seconds(180)) { follower.inventory.held[.node] != nil })
                #expect(follower.nodes.count == 12 && !follower.inventory.isComplete)
                let problem = follower.inventory.problems.first { $0.resource == "Node" }
                #expect(problem?.message.contains("0 of 12") == true, "\(String(describing: problem))")
                // A node that comes back is there twice, and is one.
                try await rig.direct.put(Make.node("n1", "10.0.0.99"))
                #expect(
                    await eventually {
                        follower.inventory.cluster.nodes["n1"]?.addresses[.ipv4] == IPAddress("10.0.0.99")
                    })
                #expect(follower.nodes.count == 12)
                follower.acceptMassDeletion()
                #expect(follower.nodes == ["n1"] && follower.inventory.isComplete)
            }
        }
    }
}
