// SPDX-License-Identifier: Apache-2.0

import Datastore
import DesiredState
import Foundation
import KubernetesDatastore
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing

/// What only Kubernetes has: rights, tokens, kubeconfigs, definitions that are not there.
@Suite("Datastores: Kubernetes", .serialized)
struct KubernetesTests {
    /// Rules of the shipped role: what each verb on each resource is needed for.
    private static let verbs: [(resource: String, verbs: [String])] = [
        ("nodes", ["get", "list", "watch"]), ("nodes/status", ["patch"]), ("pods", ["list", "watch"]),
        ("felixconfigurations", ["list", "watch"]), ("ippools", ["list", "watch"]),
        ("blockaffinities", ["list", "watch"]), ("ipamblocks", ["get", "list", "watch", "patch"]),
        ("dataplaneconfigurations", ["list", "watch"]),
    ]

    @Test("the shipped role grants what the agent does and no more: without any one verb, an error that names it")
    func rights() async throws {
        try await KubernetesRig.run { rig in
            try await rig.direct.put(
                Make.node("n1"), Make.pool("pool", "10.48.0.0/16"),
                Make.resource(.ipamBlock, "10-48-1-0-26", ["spec": .object(["cidr": "10.48.1.0/26"])]))
            let granted = try await role(rig)
            let wanted = Set(Self.verbs.flatMap { resource, verbs in verbs.map { "\($0) \(resource)" } })
            #expect(Set(granted) == wanted, "the role as it is shipped")
            try await expectAll(rig)
            for line in granted.sorted() {
                try await setRole(rig, without: line)
                let words = line.split(separator: " ").map(String.init)
                #expect(try await refusal(rig, words[0], words[1])?.contains(line) == true, "without \(line)")
                try await setRole(rig, without: nil)
            }
        }
    }

    private struct Role: Decodable {
        struct Rule: Codable {
            var apiGroups: [String]
            var resources: [String]
            var verbs: [String]
        }
        var rules: [Rule]
    }

    private func rules(_ rig: KubernetesRig) async throws -> [Role.Rule] {
        let text = try await rig.kubectl(
            "create", "--dry-run=client", "-o", "json", "-f", "\(KubernetesRig.deploy)/base/rbac.yaml")
        // Several documents come as several objects.
        let pieces = text.replacing("}\n{", with: "}\u{1}{").split(separator: "\u{1}")
        return pieces.compactMap { try? JSONDecoder().decode(Role.self, from: Data($0.utf8)) }.flatMap(\.rules)
    }

    private func role(_ rig: KubernetesRig) async throws -> [String] {
        try await rules(rig).flatMap { rule in rule.resources.flatMap { name in rule.verbs.map { "\($0) \(name)" } } }
    }

    private func setRole(_ rig: KubernetesRig, without line: String?) async throws {
        var single: [Role.Rule] = []
        for rule in try await rules(rig) {
            for resource in rule.resources {
                let verbs = rule.verbs.filter { "\($0) \(resource)" != line }
                if !verbs.isEmpty {
                    single.append(.init(apiGroups: rule.apiGroups, resources: [resource], verbs: verbs))
                }
            }
        }
        let patch = String(decoding: try JSONEncoder().encode(["rules": single]), as: UTF8.self)
        try await rig.kubectl("patch", "clusterrole", "wgplane", "--type=merge", "-p", patch)
    }

    /// What the agent does: follows all, writes its Node's annotations and condition, takes an address.
    private func expectAll(_ rig: KubernetesRig) async throws {
        try await Follower.run(rig.open()) { follower in
            #expect(await eventually { follower.isReady && follower.isAvailable })
        }
        let store = try rig.open()
        try await write(store, "projectcalico.org/WireguardPublicKey", "x")
        try await block(store)
        await store.close()
    }

    private func write(_ store: any Datastore, _ name: String, _ value: String) async throws {
        try await store.update(ResourceKey(.node, "n1")) { current in
            var node = current
            node?[["metadata", "annotations", name]] = .string(value)
            node?[["status", "conditions"]] = .array([
                .object(["type": "WireGuardReady", "status": "True", "reason": "EBPF", "message": .string(value)])
            ])
            return node
        }
    }

    private func block(_ store: any Datastore) async throws {
        try await store.update(ResourceKey(.ipamBlock, "10-48-1-0-26")) { current in
            var block = current
            block?[["spec", "affinity"]] = .string("host:n\(UInt32.random(in: 0...UInt32.max))")
            return block
        }
    }

    /// What the agent says where a verb is missing.
    private func refusal(_ rig: KubernetesRig, _ verb: String, _ resource: String) async throws -> String? {
        if verb == "list" || verb == "watch" {
            var said: String?
            try await Follower.run(rig.open()) { follower in
                _ = await eventually(within: .seconds(40)) { follower.unavailability?.contains(resource) == true }
                said = follower.unavailability
            }
            return said
        }
        let store = try rig.open()
        var said: String?
        do {
            if resource == "ipamblocks" {
                try await block(store)
            } else {
                try await write(store, "projectcalico.org/WireguardPublicKey", "\(UInt32.random(in: 0...UInt32.max))")
            }
        } catch {
            said = "\(error)"
        }
        await store.close()
        return said
    }

    @Test("annotations and the condition show as kubectl shows them, and a patch by kubectl is seen")
    func kubectl() async throws {
        try await KubernetesRig.run { rig in
            try await rig.direct.put(Make.node("n1"), Make.felix(false))
            let store = try rig.open()
            try await write(store, "projectcalico.org/WireguardPublicKey", "abc=")
            await store.close()
            let text = try await rig.kubectl("get", "nodes", "-o", "yaml")
            #expect(
                text.contains("projectcalico.org/WireguardPublicKey: abc=") && text.contains("type: WireGuardReady"))
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady })
                let patch = #"{"spec":{"wireguardEnabled":true}}"#
                try await rig.kubectl("patch", "felixconfiguration", "default", "--type=merge", "-p", patch)
                let key = ResourceKey(.felixConfiguration, "default")
                #expect(
                    await eventually {
                        follower.inventory.cluster.configurations[key]?.content[["spec", "wireguardEnabled"]] == true
                    })
                // Ours is checked by its schema.
                await #expect(throws: (any Error).self) {
                    let wrong = Make.resource(.dataplaneConfiguration, "default", ["spec": .object(["mode": "Turbo"])])
                    try await rig.direct.put(wrong)
                }
            }
        }
    }

    @Test("a token that is refused is read again from its file; followers go on")
    func tokens() async throws {
        try await KubernetesRig.run { rig in
            try await rig.direct.put(Make.node("n1"))
            let good = try readFile(rig.tokenFile)
            try await Follower.run(rig.open()) { follower in
                try #require(await eventually { follower.isReady })
                try replaceFile(rig.tokenFile, with: Array("no token".utf8))
                // Connections anew, with what the file has now.
                let other = try rig.open()
                let error = await #expect(throws: DatastoreError.self) { try await other.read([.node]) }
                #expect(error?.message.contains("401") == true, "\(String(describing: error))")
                try replaceFile(rig.tokenFile, with: good)
                let read = try await other.read([.node])
                #expect(read.manifests.count == 1)
                await other.close()
                try await rig.direct.put(Make.node("n2"))
                #expect(await eventually { follower.nodes.count == 2 })
            }
        }
    }

    @Test("a server that refuses for its load, or for a size, is asked as seldom as it says; nothing is taken away")
    func busy() async throws {
        let refusals = [
            ("429 Too Many Requests", "Retry-After: 2\r\n", #"{"reason":"TooManyRequests","message":"slow down"}"#),
            ("503 Service Unavailable", "Retry-After: 2\r\n", ""),
            ("504 Gateway Timeout", "", #"{"reason":"Timeout","message":"Too large resource version: 7, current: 3"}"#),
            ("413 Request Entity Too Large", "", "no JSON"),
        ]
        for (status, header, body) in refusals {
            let server = try await BusyServer()
            let access = KubernetesAccess(server: "http://127.0.0.1:\(server.port)", authorities: nil, identity: .none)
            let store = KubernetesDatastore(access, idle: .seconds(90), pageSize: 500, logger: quiet)
            #expect(store.exposure?.contains("without TLS") == true)
            do {
                try await Follower.run(store) { follower in
                    try #require(await eventually { follower.isReady && follower.nodes == ["n1", "n2"] })
                    follower.mark()
                    server.refuse(status, header: header, body: body)
                    try #require(
                        await eventually { follower.reasons.contains { $0.contains(status.prefix(3)) } }, "\(status)")
                    if !header.isEmpty {
                        _ = server.takeRequests()
                        let began = ContinuousClock.now
                        _ = await eventually { ContinuousClock.now - began > .seconds(3) }
                        // Each kind once in two seconds at most.
                        let requests = server.takeRequests()
                        #expect(requests > 0 && requests <= 2 * ResourceKind.allCases.count, "\(status): \(requests)")
                    }
                    server.refuse(nil)
                    #expect(await eventually { follower.isAvailable }, "\(status)")
                    #expect(follower.lowest.nodes == 2 && follower.inventory.isComplete, "\(status)")
                }
            } catch {
                await server.close()
                throw error
            }
            await server.close()
        }
    }

    @Test("kubeconfigs: certificates in files and in place, tokens, a credential plugin, and what is wrong said")
    func kubeconfigs() async throws {
        try await KubernetesRig.run { rig in
            try await rig.direct.put(Make.node("n1"))
            let token = String(decoding: try readFile(rig.tokenFile), as: UTF8.self)
            let plugin = "\(rig.root)/plugin"
            let script = """
                #!/bin/sh
                [ -n "$KUBERNETES_EXEC_INFO" ] && [ "$WHO" = agent ] && [ "$1" = get-token ] || exit 3
                echo '{"kind":"ExecCredential","status":{"token":"\(token)","expirationTimestamp":"2099-01-01T00:00:00Z"}}'
                """
            try replaceFile(plugin, with: Array(script.utf8), mode: 0o700)
            func data(_ name: String) throws -> String {
                Data(try readFile("\(rig.root)/pki/\(name)")).base64EncodedString()
            }
            let users = [
                "    token: \(token)", "    tokenFile: token",
                "    client-certificate: pki/admin.crt\n    client-key: pki/admin.key",
                "    client-certificate-data: \(try data("admin.crt"))\n    client-key-data: \(try data("admin.key"))",
                """
                    exec:
                      apiVersion: client.authentication.k8s.io/v1
                      command: ./plugin
                      args: [get-token]
                      env: [{name: WHO, value: agent}]
                """,
            ]
            for user in users {
                #expect(try await read(rig, user: user).manifests.count == 1, "\(user)")
            }
            let wrong: [(user: String, authority: String?, word: String)] = [
                ("    token: none", nil, "401"),
                ("    exec: {command: ./plugin, args: [no]}", nil, "credential plugin"),
                ("    exec: {command: ./nothing}", nil, "credential plugin"),
                ("    username: root", nil, "no longer a way"),
                ("    tokenFile: nothing", nil, "cannot be read"),
                ("    token: \(token)", "pki/etcd.crt", "does not answer"),
            ]
            for (user, authority, word) in wrong {
                let error = await #expect(throws: (any Error).self) {
                    try await read(rig, user: user, authority: authority)
                }
                #expect(error.map { "\($0)".contains(word) } == true, "\(user): \(error.map { "\($0)" } ?? "")")
            }
        }
    }

    private func read(_ rig: KubernetesRig, user: String, authority: String? = nil) async throws -> Snapshot {
        let file = "\(rig.root)/kubeconfig"
        let text = rig.server.configuration(user: user, authority: authority)
        try replaceFile(file, with: Array(text.utf8))
        let store = KubernetesDatastore(try KubernetesAccess.found(file: file, environment: [:]), logger: quiet)
        let result: Result<Snapshot, any Error>
        do {
            result = .success(try await store.read([.node]))
        } catch {
            result = .failure(error)
        }
        await store.close()
        return try result.get()
    }

    @Test("a block keeps its free addresses, wherever they are, through a change and back")
    func blocks() async throws {
        try await KubernetesRig.run { rig in
            let allocations: [ManifestValue] = [.null, .integer(0), .null, .null, .integer(1)]
            let attributes: [ManifestValue] = [.object(["handle_id": "a"]), .object(["handle_id": "b"])]
            try await rig.direct.put(
                Make.resource(
                    .ipamBlock, "10-48-1-0-29",
                    [
                        "spec": .object([
                            "cidr": "10.48.1.0/29", "affinity": "host:n1", "allocations": .array(allocations),
                            "attributes": .array(attributes),
                        ])
                    ]))
            let store = try rig.open()
            let key = ResourceKey(.ipamBlock, "10-48-1-0-29")
            let given = try await store.update(key) { current in
                current.flatMap { AddressAllocation.allocate(in: $0, node: "n1", family: .ipv4)?.block }
            }
            #expect(given?[["spec", "allocations"]] == .array([.integer(2)] + allocations.dropFirst()))
            let back = try await store.update(key) { current in
                current.flatMap { AddressAllocation.release(in: $0, node: "n1", family: .ipv4) }
            }
            #expect(back?[["spec", "allocations"]] == .array(allocations))
            let read = try await store.read([.ipamBlock]).manifests[key]
            await store.close()
            #expect(read?.content[["spec", "allocations"]] == .array(allocations))
        }
    }

    @Test("in a pod: the service account's files say where and who")
    func inCluster() async throws {
        try await KubernetesRig.run { rig in
            try await rig.direct.put(Make.node("n1"))
            let folder = "\(rig.root)/account"
            try makeFolders(folder)
            try replaceFile("\(folder)/token", with: readFile(rig.tokenFile))
            try replaceFile("\(folder)/ca.crt", with: readFile(rig.server.authorityFile))
            let environment = ["KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "\(rig.server.port)"]
            let access = try #require(KubernetesAccess.inCluster(environment, folder: folder))
            let store = KubernetesDatastore(access, logger: quiet)
            let nodes = try await store.read([.node])
            await store.close()
            #expect(nodes.manifests.count == 1)
            #expect(KubernetesAccess.inCluster([:], folder: folder) == nil)
        }
    }

    @Test("kinds whose definitions are not there are empty, and are found when they come")
    func definitions() async throws {
        try await KubernetesRig.run(prepared: false) { rig in
            try await rig.direct.put(Make.node("n1"))
            let store = KubernetesDatastore(
                try KubernetesAccess.found(file: rig.server.adminConfiguration, environment: [:]),
                absentPeriod: .seconds(1), logger: quiet)
            try await Follower.run(store) { follower in
                #expect(await eventually { follower.isReady && follower.isAvailable })
                for file in ["base/crd.yaml", "calico-crds/crds.yaml"] {
                    try await rig.kubectl("apply", "-f", "\(KubernetesRig.deploy)/\(file)")
                }
                try await rig.kubectl("wait", "--for=condition=Established", "--timeout=120s", "crd", "--all")
                try await rig.direct.put(Make.felix(true), Make.pool("pool", "10.48.0.0/16"))
                #expect(await eventually { follower.inventory.cluster.pools.count == 1 })
                #expect(await eventually { follower.inventory.cluster.configurations.count == 1 })
            }
        }
    }
}
