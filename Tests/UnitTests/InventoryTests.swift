// SPDX-License-Identifier: Apache-2.0

import Datastore
import DesiredState
import Foundation
import Model
import OrderedCollections
import Testing

@testable import Agent

/// What an agent knows of the cluster: whole lists, changes, what is held back, what is remembered.
@Suite("Inventory")
struct InventoryTests {
    private static func node(_ name: String, _ address: String = "10.0.0.1") -> Manifest {
        Manifest(
            key: ResourceKey(.node, name),
            content: .object([
                "apiVersion": "v1", "kind": "Node", "metadata": .object(["name": .string(name)]),
                "status": .object([
                    "addresses": .array([.object(["type": "InternalIP", "address": .string(address)])])
                ]),
            ]))
    }

    private static func whole(_ nodes: [String], kinds: [ResourceKind] = ResourceKind.allCases) -> ResourceChanges {
        var changes = ResourceChanges()
        changes.whole = Set(kinds)
        for name in nodes { changes.put(node(name), own: "n1") }
        return changes
    }

    @Test("nothing is known before every kind has been told whole")
    func readiness() {
        var inventory = Inventory(node: "n1")
        inventory.apply(Self.whole(["n1"], kinds: [.node, .pod]))
        #expect(!inventory.isReady)
        inventory.apply(Self.whole([], kinds: ResourceKind.allCases.filter { $0 != .node && $0 != .pod }))
        #expect(inventory.isReady && inventory.isComplete && inventory.cluster.nodes.count == 1)
        let version = inventory.version
        inventory.apply(Self.whole(["n1"]))
        #expect(inventory.cluster.nodes.count == 1 && inventory.held.isEmpty && inventory.version >= version)
    }

    @Test("short lists are held, deletions one by one are not; a list that is whole again lets go")
    func holding() {
        let names = (1...20).map { "n\($0)" }
        var inventory = Inventory(node: "n1")
        inventory.apply(Self.whole(names))
        var changes = ResourceChanges()
        for name in names.dropFirst(5) { changes.remove(ResourceKey(.node, name)) }
        inventory.apply(changes)
        #expect(inventory.cluster.nodes.count == 5 && inventory.isComplete, "a word for each is believed")
        inventory.apply(Self.whole(names))
        inventory.apply(Self.whole(["n1", "n2"]))
        #expect(inventory.cluster.nodes.count == 20 && !inventory.isComplete)
        #expect(inventory.problems.first?.message.contains("2 of 20") == true)
        // Held, a deletion of its own is believed, a node that comes counts, and one that returns releases no other.
        var later = ResourceChanges()
        later.remove(ResourceKey(.node, "n2"))
        for name in ["n3", "n4", "n5", "n21"] { later.put(Self.node(name), own: "n1") }
        inventory.apply(later)
        #expect(inventory.cluster.nodes.count == 20 && inventory.held[.node]?.gone.count == 15)
        inventory.apply(Self.whole(["n1", "n3", "n4", "n5", "n6", "n7"]))
        #expect(inventory.cluster.nodes.count == 20 && !inventory.isComplete, "a third of it ends no hold")
        inventory.apply(Self.whole(names.dropLast(8)))
        #expect(inventory.cluster.nodes.count == 12 && inventory.isComplete, "half of them is no wonder")
        inventory.apply(Self.whole([]))
        #expect(!inventory.isComplete)
        inventory.apply(ResourceChanges(), acceptsMassDeletion: true)
        #expect(inventory.cluster.nodes.isEmpty && inventory.isComplete && inventory.ownNode == nil)
    }

    @Test("changes that wait are merged: the latest of each, a whole list over what was before it")
    func merging() {
        var waiting = Self.whole(["n1", "n2"])
        var later = ResourceChanges()
        later.remove(ResourceKey(.node, "n1"))
        later.put(Self.node("n3"), own: "n1")
        waiting.merge(later)
        var inventory = Inventory(node: "n1")
        inventory.apply(waiting)
        #expect(inventory.cluster.nodes.keys.sorted() == ["n2", "n3"])
        var again = later
        again.merge(Self.whole(["n2", "n4"]))
        inventory.apply(again)
        #expect(inventory.cluster.nodes.keys.sorted() == ["n2", "n4"])
    }

    @Test("what an earlier agent has known is used, said to be stale, and held against what is told first")
    func memory() async throws {
        let folder = "/tmp/wgplane-cache-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let options = AgentOptions(node: "n1", stateDirectory: folder)
        let cache = ResourceCache(options, location: "etcd:x", logger: DatastoreTests.logger)
        var inventory = Inventory(node: "n1")
        let names = (1...1200).map { "n\($0)" }
        inventory.apply(Self.whole(names))
        #expect(cache.read() == nil)
        await cache.keep(inventory.cluster, podScope: .own, version: inventory.version)
        let content = try #require(cache.read())
        #expect(content.head.podScope == .own && content.resources.count == 1200)
        let attributes = try FileManager.default.attributesOfItem(atPath: ResourceCache.path(options))
        #expect(attributes[.posixPermissions] as? Int == 0o600)
        // Another's is none.
        #expect(ResourceCache(options, location: "etcd:y", logger: DatastoreTests.logger).read() == nil)
        var other = options
        other.node = "n2"
        #expect(ResourceCache(other, location: "etcd:x", logger: DatastoreTests.logger).read() == nil)
        var text = try String(contentsOfFile: ResourceCache.path(options), encoding: .utf8)
        // Each byte counts, the digest's too.
        let bytes = [UInt8](text.utf8)
        for place in stride(from: 0, to: bytes.count, by: bytes.count / 60) + [bytes.count - 9, bytes.count - 1] {
            var damaged = bytes
            damaged[place] ^= 1 << UInt8(place % 7)
            try Data(damaged).write(to: URL(filePath: ResourceCache.path(options)))
            #expect(cache.read() == nil, "byte \(place)")
        }
        text.removeLast(40)
        try text.write(toFile: ResourceCache.path(options), atomically: true, encoding: .utf8)
        #expect(cache.read() == nil, "half a file is none")

        var next = Inventory(node: "n1")
        next.remember(content.resources, podScope: content.head.podScope)
        var fresh = next
        let isRecalled = next.recall()
        #expect(isRecalled && next.isReady && !next.isComplete && next.cluster.nodes == inventory.cluster.nodes)
        next.apply(Self.whole([], kinds: [.node]))
        #expect(next.cluster.nodes.count == 1200 && next.held[.node] != nil)
        next.apply(Self.whole(names))
        #expect(next.isComplete && next.stale.isEmpty)
        // Not recalled, it is what first lists are held against.
        fresh.apply(Self.whole([], kinds: [.node]))
        fresh.apply(Self.whole([], kinds: ResourceKind.allCases.filter { $0 != .node }))
        #expect(fresh.isReady && !fresh.isComplete && fresh.cluster.nodes.count == 1200)
        await cache.forget()
        #expect(!FileManager.default.fileExists(atPath: ResourceCache.path(options)))
    }

    @Test("what is written quickly is written soon, what takes long each half minute, or for a hundredth of the time")
    func pace() {
        #expect(ResourceCache.period(after: .milliseconds(1)) == .seconds(2))
        #expect(ResourceCache.period(after: .milliseconds(20)) == .seconds(10))
        #expect(ResourceCache.period(after: .milliseconds(200)) == .seconds(30))
        #expect(ResourceCache.period(after: .seconds(1)) == .seconds(100))
    }

    @Test("a key that cannot be read takes none away")
    func tornKey() throws {
        func node(_ key: String) -> ResourceChanges {
            var manifest = Self.node("n2")
            manifest.content[["metadata", "annotations"]] = .object([
                .init(NodeAnnotation.publicKey(.ipv4)): .string(key)
            ])
            var changes = ResourceChanges()
            changes.put(manifest, own: "n1")
            return changes
        }
        var inventory = Inventory(node: "n1")
        inventory.apply(Self.whole(["n1", "n2"]))
        inventory.apply(node("short"))
        #expect(inventory.cluster.nodes["n2"]?.publicKeys[.ipv4] == nil)
        inventory.apply(node(Make.key(2).description))
        inventory.apply(node("short"))
        inventory.apply(node("shorter"))
        #expect(inventory.cluster.nodes["n2"]?.publicKeys[.ipv4] == Make.key(2))
        func problems() -> [Problem] { inventory.cluster[ResourceKey(.node, "n2")]?.problems ?? [] }
        #expect(problems().contains { $0.message.contains("last good value") && $0.value == "shorter" })
        inventory.apply(node(Make.key(3).description))
        #expect(inventory.cluster.nodes["n2"]?.publicKeys[.ipv4] == Make.key(3) && problems().isEmpty)
        // An agent that starts has it from an earlier one: of what that kept, or of its traces, which are newer.
        let key = ResourceKey(.node, "n2")
        let kept = [key: try #require(inventory.cluster[key])]
        let cases: [([AddressFamily: [String: PublicKey]], PublicKey)] = [
            ([:], Make.key(3)), ([.ipv4: ["n2": Make.key(4)]], Make.key(4)),
        ]
        for (traces, expected) in cases {
            for isAway in [false, true] {
                var next = Inventory(node: "n1")
                next.remember(kept, podScope: .own)
                next.rememberKeys(traces)
                if isAway { _ = next.recall() } else { next.apply(node("short")) }
                #expect(next.cluster.nodes["n2"]?.publicKeys[.ipv4] == expected)
                next.apply(Self.whole(["n1", "n2"]))
                next.apply(node("short"))
                #expect(next.cluster.nodes["n2"]?.publicKeys[.ipv4] == nil, "it was taken back in between")
            }
        }
    }

    @Test("what has gone is kept in mind at once where it would be held against an earlier memory")
    func lost() {
        var inventory = Inventory(node: "n1")
        inventory.apply(Self.whole((1...5).map { "n\($0)" }))
        #expect(!inventory.hasLostHalf(of: 10, .node) && inventory.hasLostHalf(of: 11, .node))
        #expect(!inventory.hasLostHalf(of: 9, .node), "a handful may go one by one")
        #expect(inventory.hasLostHalf(of: 1, .dataplaneConfiguration) && !inventory.hasLostHalf(of: 0, .ipPool))
    }

    @Test("merge patches make one value of another (RFC 7386)")
    func patches() {
        let old = ManifestValue.object(["a": "1", "b": .object(["c": "2", "d": "3"]), "e": .array(["x"])])
        let new = ManifestValue.object(["a": "1", "b": .object(["c": "4"]), "e": .array(["x", "y"]), "f": true])
        let patch = old.mergePatch(to: new)
        #expect(
            patch
                == .object(["b": .object(["c": "4", "d": .null]), "e": .array(["x", "y"]), "f": true]))
        #expect(patch.map { old.merging($0) } == new)
        #expect(new.mergePatch(to: new) == nil)
    }

    @Test("followed resources keep the fields that are looked at, whatever their types are")
    func masks() throws {
        let text = """
            {"metadata":{"name":"p","managedFields":[1,2],"labels":{"k8s-app":"calico-node","x":"y"},
            "ownerReferences":[{"kind":"ReplicaSet","name":"r","uid":"u"}]},
            "spec":{"nodeName":7,"containers":[{"name":"c"}]},"status":{"podIPs":"no","phase":"Running"}}
            """
        let value = try FieldMask.followed(.pod).decoder().decode(MaskedValue.self, from: Data(text.utf8)).value
        #expect(value[["metadata", "managedFields"]] == nil && value[["spec", "containers"]] == nil)
        #expect(value[["metadata", "labels"]] == .object(["k8s-app": "calico-node"]))
        #expect(
            value[["metadata", "ownerReferences"]] == .array([.object(["kind": "ReplicaSet", "name": "r"])]))
        #expect(value[["spec", "nodeName"]] == .integer(7) && value[["status", "podIPs"]] == "no")
    }
}
