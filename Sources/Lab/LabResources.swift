// SPDX-License-Identifier: Apache-2.0

import Model
import OrderedCollections

/// The manifests of a lab: what kube-apiserver and Calico would hold.
enum LabResources {
    static func node(_ number: Int, families: [AddressFamily], platform: LabPlatform) -> Manifest {
        let addresses: [ManifestValue] = families.map { family in
            .object(["type": "InternalIP", "address": .string(LabAddresses.node(number, family).description)])
        }
        var node = manifest(
            .node, "node\(number)",
            ["status": .object(["addresses": .array(addresses)])])
        if platform != .onPremises { platform.complete(&node.content, number: number, families: families) }
        return node
    }

    static func pool(_ family: AddressFamily) -> Manifest {
        manifest(
            .ipPool, family == .ipv4 ? "default-ipv4-pool" : "default-ipv6-pool",
            ["spec": .object(["cidr": .string(LabAddresses.pool(family).description)])])
    }

    /// `10.48.1.0/26` is named `10-48-1-0-26`.
    static func blockName(_ cidr: CIDR) -> String {
        cidr.description.replacing(".", with: "-").replacing(":", with: "-").replacing("/", with: "-")
    }

    static func block(_ cidr: CIDR, node: String, pods: [LabPod]) -> Manifest {
        var allocations = [ManifestValue](repeating: .null, count: 64)
        var attributes: [ManifestValue] = []
        // Addresses that Calico keeps back: the first of the block.
        func give(_ offset: Int, _ handle: String, _ secondary: ManifestValue) {
            attributes.append(.object(["handle_id": .string(handle), "secondary": secondary]))
            allocations[offset] = .integer(Int64(attributes.count - 1))
        }
        give(0, "reserved", .object(["note": "network address"]))
        for pod in pods {
            for address in pod.addresses {
                guard let offset = cidr.offset(of: address) else { continue }
                give(
                    Int(offset), "k8s-pod-network.\(pod.name)",
                    .object([
                        "namespace": "default", "node": .string("node\(pod.node)"), "pod": .string(pod.name),
                    ]))
            }
        }
        return manifest(
            .ipamBlock, blockName(cidr),
            [
                "spec": .object([
                    "cidr": .string(cidr.description), "affinity": .string("host:\(node)"),
                    "allocations": .array(allocations), "attributes": .array(attributes),
                    "strictAffinity": false, "deleted": false,
                    "unallocated": .array(
                        allocations.enumerated().filter { $0.element == .null }.map { .integer(Int64($0.offset)) }),
                ])
            ])
    }

    static func affinity(_ cidr: CIDR, node: String) -> Manifest {
        manifest(
            .blockAffinity, "\(node)-\(blockName(cidr))",
            [
                "spec": .object([
                    "cidr": .string(cidr.description), "node": .string(node), "state": "confirmed", "deleted": "false",
                ])
            ])
    }

    static func pod(_ pod: LabPod) -> Manifest {
        let addresses: [ManifestValue] = pod.addresses.map { .object(["ip": .string($0.description)]) }
        return manifest(
            .pod, pod.name, namespace: "default",
            [
                "spec": .object([
                    "nodeName": .string("node\(pod.node)"),
                    "containers": .array([.object(["name": "main", "image": "lab.invalid/pod"])]),
                ]),
                "status": .object([
                    "phase": "Running", "podIP": .string(pod.addresses.first?.description ?? ""),
                    "podIPs": .array(addresses),
                ]),
            ])
    }

    static func felix(enabled: Bool, families: [AddressFamily], attachment: AttachmentChoice) -> Manifest {
        var spec = ManifestValue.object([:])
        for family in families {
            spec[family == .ipv4 ? "wireguardEnabled" : "wireguardEnabledV6"] = .bool(enabled)
        }
        if attachment != .auto { spec["bpfAttachType"] = .string(attachment.rawValue) }
        return manifest(.felixConfiguration, "default", ["spec": spec])
    }

    static func dataplane(backend: WireGuardBackendChoice, mode: ModeChoice) -> Manifest {
        manifest(
            .dataplaneConfiguration, "default",
            [
                "spec": .object([
                    "wireguardBackend": .string(backend.rawValue), "mode": .string(mode.rawValue),
                ])
            ])
    }

    static func manifest(
        _ kind: ResourceKind, _ name: String, namespace: String = "", annotations: [String: String] = [:],
        _ fields: KeyValuePairs<String, ManifestValue>
    ) -> Manifest {
        var metadata = ManifestValue.object(["name": .string(name)])
        for (name, value) in annotations { metadata[["annotations", name]] = .string(value) }
        if !namespace.isEmpty { metadata["namespace"] = .string(namespace) }
        var content = ManifestValue.object([
            "apiVersion": .string(kind.apiVersion), "kind": .string(kind.rawValue), "metadata": metadata,
        ])
        for (key, value) in fields { content[key] = value }
        return Manifest(key: ResourceKey(kind, name, namespace: namespace), content: content)
    }
}
