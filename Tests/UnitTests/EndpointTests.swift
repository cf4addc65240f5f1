// SPDX-License-Identifier: Apache-2.0

import DesiredState
import Model
import OrderedCollections
import Testing

@Suite("Endpoints")
struct EndpointTests {
    private func node(_ annotations: OrderedDictionary<String, ManifestValue>) throws -> Manifest {
        try Manifest(
            .object([
                "kind": "Node", "metadata": .object(["name": "n2", "annotations": .object(annotations)]),
                "status": .object([
                    "addresses": .array(
                        ["10.0.0.2", "fd00::2"].map {
                            .object(["type": "InternalIP", "address": .string($0)])
                        })
                ]),
            ]), origin: "test")
    }

    @Test(
        "an operator's word for where a node is reached",
        arguments: [
            ("198.51.100.7", AddressFamily.ipv4, "198.51.100.7:4444"), ("198.51.100.7:9", .ipv4, "198.51.100.7:9"),
            ("2001:db8::7", .ipv6, "[2001:db8::7]:4445"), ("[2001:db8::7]", .ipv6, "[2001:db8::7]:4445"),
            ("[2001:db8::7]:9", .ipv6, "[2001:db8::7]:9"), ("none", .ipv4, ""), ("none", .ipv6, ""),
            // What cannot be read is named, and the node's own address holds.
            ("198.51.100.7:0", .ipv4, "10.0.0.2:4444"), ("2001:db8::7", .ipv4, "10.0.0.2:4444"),
            ("host:5", .ipv4, "10.0.0.2:4444"), ("[2001:db8::7]:x", .ipv6, "[fd00::2]:4445"),
            ("", .ipv4, "10.0.0.2:4444"),
        ])
    func choice(_ text: String, _ family: AddressFamily, _ expected: String) throws {
        let key = try #require(PublicKey(bytes: [UInt8](repeating: 7, count: 32)))
        let manifest = try node([
            NodeAnnotation.endpoint(family): .string(text), NodeAnnotation.publicKey(family): .string(key.description),
            NodeAnnotation.listeningPort(.ipv4): "4444", NodeAnnotation.listeningPort(.ipv6): "4445",
        ])
        let plan = NodePlan(ClusterState([manifest]), node: "n1")
        let peer = try #require(plan[family].peers["n2"])
        #expect(peer.endpoint?.description ?? "" == expected)
        #expect(peer.address == IPAddress(family == .ipv4 ? "10.0.0.2" : "fd00::2"))
        let isNamed = plan.problems.contains { $0.resource == "Node/n2" && $0.field.contains("wireguard-endpoint") }
        let isBad = !["none"].contains(text) && !expected.hasPrefix(family == .ipv4 ? "198" : "[2001")
        #expect(isNamed == isBad, "\(plan.problems)")
    }

    @Test("endpoints as text, both ways")
    func text() throws {
        for text in ["10.0.0.1:51820", "[fd00::1]:51821"] { #expect(Endpoint(text)?.description == text) }
        for text in ["", "10.0.0.1", "fd00::1:5", "[10.0.0.1]:5", "10.0.0.1:70000", "a:1"] {
            #expect(Endpoint(text) == nil)
        }
    }
}
