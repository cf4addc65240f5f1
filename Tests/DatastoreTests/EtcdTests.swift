// SPDX-License-Identifier: Apache-2.0

import Datastore
import EtcdDatastore
import DesiredState
import Foundation
import Lab
import Model
import SystemDescriptors
import Testing

/// What only etcd has: users, leases, values that anybody may write.
@Suite("Datastores: etcd", .serialized)
struct EtcdTests {
    private func run(_ body: (EtcdRig) async throws -> Void) async throws {
        let rig = try await EtcdRig()
        do {
            try await body(rig)
        } catch {
            print("---- \(rig.words)")
            await rig.close()
            throw error
        }
        await rig.close()
    }

    /// Opens a store as a user.
    private func open(_ rig: EtcdRig, _ user: String, _ password: String) throws -> EtcdDatastore {
        var environment = rig.server.environment("nobody")
        environment["ETCD_USERNAME"] = user
        environment["ETCD_PASSWORD"] = password
        let store = EtcdDatastore(
            try EtcdAccess(hosts: "http://nowhere.invalid,\(rig.server.endpoint)", environment: environment),
            logger: quiet)
        #expect(store.exposure?.contains("without TLS, the password too") == true)
        return store
    }

    @Test("user and password, the second endpoint where the first is none, a token that has run out, and rights")
    func users() async throws {
        try await run { rig in
            try await rig.direct.put(Make.node("n1"))
            try rig.server.authority.issue("nobody", name: "")
            for words in [
                ["user", "add", "root:rootword"], ["user", "add", "agent2:secret"], ["user", "add", "reader:secret"],
                ["role", "add", "wgplane"], ["role", "add", "reading"],
                ["role", "grant-permission", "--prefix=true", "wgplane", "readwrite", "/wgplane/"],
                ["role", "grant-permission", "--prefix=true", "reading", "read", "/wgplane/"],
                ["user", "grant-role", "root", "root"], ["user", "grant-role", "agent2", "wgplane"],
                ["user", "grant-role", "reader", "reading"], ["auth", "enable"],
            ] { try await rig.etcdctl(words) }
            let agent = try open(rig, "agent2", "secret")
            try #require(await eventually { (try? await agent.read([.node]))?.manifests.count == 1 })
            try await Follower.run(agent) { follower in
                #expect(await eventually { follower.isReady && follower.isAvailable })
                try await agent.put(Make.node("n2"))
                #expect(await eventually { follower.nodes.count == 2 })
                // A token is forgotten with the server's start: the agent asks for another.
                rig.stop()
                try rig.server.process.start()
                #expect(await eventually { (try? await agent.put(Make.node("n3"))) != nil })
                #expect(await eventually { follower.nodes.count == 3 && follower.isAvailable })
            }
            try await expect(try open(rig, "agent2", "wrong"), "authentication failed") { try await $0.read([.node]) }
            try await expect(try open(rig, "reader", "secret"), "permission denied") { store in
                try await store.put(Make.node("n9"))
            }
        }
    }

    private func expect<Result: Sendable>(
        _ store: EtcdDatastore, _ word: String, _ body: (EtcdDatastore) async throws -> Result
    ) async throws {
        var said = ""
        // Its first endpoint is none.
        _ = await eventually(within: .seconds(40)) {
            do {
                _ = try await body(store)
                said = "nothing"
            } catch {
                said = "\(error)"
            }
            return said.contains(word)
        }
        await store.close()
        #expect(said.contains(word), "\(said)")
    }

    @Test("an agent's key says that it lives, and goes with it")
    func liveness() async throws {
        try await run { rig in
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady })
                #expect(
                    await eventually { (try? await rig.etcdctl("get", "/wgplane/live/n1"))?.contains("since") == true })
            }
            #expect(await eventually { (try? await rig.etcdctl("get", "/wgplane/live/n1"))?.contains("since") != true })
        }
    }

    @Test("a value that is no manifest is named, harms no other, and takes nothing away")
    func badValue() async throws {
        try await run { rig in
            try await rig.direct.put(Make.node("n1"), Make.node("n2"))
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady && follower.nodes.count == 2 })
                try await rig.etcdctl("put", "/wgplane/v1/nodes/n2", "{")
                #expect(await eventually { !follower.inventory.isComplete })
                #expect(follower.nodes == ["n1", "n2"], "its last good content stays")
                #expect(follower.inventory.problems.first?.resource == "Node/n2")
                try await rig.etcdctl("put", "/wgplane/v1/nodes/n3", #"{"metadata":{"name":"other"}}"#)
                #expect(await eventually { follower.inventory.problems.count == 2 })
                await #expect(throws: DatastoreError.self) { try await rig.direct.put(Make.node("n2")) }
                try await rig.etcdctl("del", "/wgplane/v1/nodes/n3")
                let text = #"{"metadata":{"name":"n2"}}"#
                try await rig.etcdctl("put", "/wgplane/v1/nodes/n2", text)
                #expect(await eventually { follower.inventory.isComplete && follower.inventory.problems.isEmpty })
            }
        }
    }

    @Test("endpoints and files that are wrong are named")
    func options() throws {
        for hosts in ["", "http://", "10.0.0.1:0", "10.0.0.1:x", "a/b"] {
            #expect(throws: DatastoreError.self, "\(hosts)") { try EtcdAccess(hosts: hosts, environment: [:]) }
        }
        let access = try EtcdAccess(
            hosts: "10.0.0.1,https://[fd00::1]:2380,http://etcd.example:1", environment: ["ETCD_CA_CERT_FILE": "/ca"])
        #expect(
            access.endpoints.map(\.description) == [
                "https://10.0.0.1:2379", "https://[fd00::1]:2380", "http://etcd.example:1",
            ])
        #expect(throws: DatastoreError.self) {
            try EtcdAccess(hosts: "10.0.0.1", environment: ["ETCD_CERT_FILE": "/crt"])
        }
    }
}
