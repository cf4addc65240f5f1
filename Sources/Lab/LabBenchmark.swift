// SPDX-License-Identifier: Apache-2.0

internal import EtcdDatastore
internal import Foundation
public import Model
internal import OrderedCollections

/// Large clusters for measurements: nodes and pods that nobody runs.
public enum LabBenchmark {
    /// Node `bench-N`, with an address and a key of its own.
    static func node(_ number: Int) -> Manifest {
        var key = [UInt8](repeating: 7, count: 32)
        for index in 0..<8 { key[index] = UInt8(truncatingIfNeeded: number >> (index * 8)) }
        let name = "bench-\(number)"
        return LabResources.manifest(
            .node, name,
            annotations: [NodeAnnotation.publicKey(.ipv4): Data(key).base64EncodedString()],
            [
                "status": .object([
                    "addresses": .array([
                        .object([
                            "type": "InternalIP",
                            "address": .string(
                                IPAddress(family: .ipv4, bits: 0x0aff_0000 + UInt128(number)).description),
                        ])
                    ])
                ])
            ])
    }

    /// The same, with a block of addresses that no pod has yet.
    public static func nodeWithBlock(_ number: Int) -> [Manifest] {
        let node = node(number)
        guard let block = CIDR(masking: podAddress(number * 64), prefixLength: 26) else { return [node] }
        return [node, LabResources.affinity(block, node: node.key.name)]
    }

    /// Of `bench-N`'s pods in turn.
    public static func podAddress(_ number: Int) -> IPAddress {
        IPAddress(family: .ipv4, bits: 0x0a40_0000 + UInt128(number))
    }

    /// A pod on a node, with an address and what a small pod has beside.
    public static func pod(_ name: String, node: String, _ addresses: [IPAddress]) -> Manifest {
        LabResources.manifest(
            .pod, name, namespace: "default",
            [
                "spec": .object([
                    "nodeName": .string(node),
                    "containers": .array([.object(["name": "main", "image": "lab.invalid/pod"])]),
                ]),
                "status": .object([
                    "phase": "Running", "podIP": .string(addresses.first?.description ?? ""),
                    "podIPs": .array(addresses.map { .object(["ip": .string($0.description)]) }),
                ]),
            ])
    }

    /// Writes nodes and pods into a lab's etcd, that of its API server too, past the server.
    public static func fill(_ lab: Lab, nodes: Int, pods: Int) async throws {
        let folder = "\(lab.paths.control)/pki"
        let isKubernetes = lab.spec.datastore == .kubernetes
        let name = isKubernetes ? "client" : "admin"
        let access = try EtcdAccess(
            hosts: "https://127.0.0.1:2379",
            environment: [
                "ETCD_CA_CERT_FILE": "\(folder)/ca.crt", "ETCD_CERT_FILE": "\(folder)/\(name).crt",
                "ETCD_KEY_FILE": "\(folder)/\(name).key",
            ])
        var batch: [(key: [UInt8], value: [UInt8])] = []
        let writer = EtcdBulkWriter(access)
        func add(_ manifest: Manifest) async throws {
            let key = manifest.key
            let place =
                isKubernetes
                ? key.kind == .node ? "/registry/minions/\(key.name)" : "/registry/pods/\(key.namespace)/\(key.name)"
                : "/wgplane/v1/\(key.kind.plural)/"
                    + (key.namespace.isEmpty ? key.name : "\(key.namespace)/\(key.name)")
            var content = manifest.content
            if isKubernetes {
                content[["metadata", "uid"]] = .string(UUID().uuidString.lowercased())
                content[["metadata", "creationTimestamp"]] = "2026-01-01T00:00:00Z"
            }
            batch.append((Array(place.utf8), Array(try JSONEncoder().encode(content))))
            guard batch.count >= 100 else { return }
            try await writer.put(batch)
            batch = []
        }
        do {
            for number in 1...max(1, nodes) where nodes > 0 { try await add(node(number)) }
            for number in 0..<pods {
                try await add(
                    pod("bench-\(number)", node: "bench-\(number % max(1, nodes) + 1)", [podAddress(number)]))
            }
            if !batch.isEmpty { try await writer.put(batch) }
        } catch {
            await writer.close()
            throw error
        }
        await writer.close()
    }

}
