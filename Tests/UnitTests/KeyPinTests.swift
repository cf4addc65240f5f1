// SPDX-License-Identifier: Apache-2.0

import Agent
import DesiredState
import Foundation
import Model
import OrderedCollections
import SystemDescriptors
import Testing

@Suite("Keys that are pinned")
struct KeyPinTests {
    private func plan(
        _ choice: String, _ nodes: [Manifest], pins: KeyPins = KeyPins(), strict: Bool = true,
        history: [PublicKey: String] = [:], ownKeys: [AddressFamily: PublicKey] = [:]
    ) -> NodePlan {
        let settings = Make.manifest(
            .dataplaneConfiguration, "default",
            .object([
                "spec": .object([
                    "wireguardKeyPinning": .string(choice), "wireguardStrictMode": strict ? "Enabled" : "Disabled",
                ])
            ]))
        return NodePlan(
            ClusterState(nodes + [settings]), node: "n1", ownKeys: ownKeys, keyOwners: history, keyPins: pins)
    }

    /// Of an agent; goes with this.
    private final class StateFolder {
        let path = NSTemporaryDirectory() + "wgplane-pins-\(UUID().uuidString)"
        var options: AgentOptions { AgentOptions(node: "n1", stateDirectory: path) }

        deinit { try? FileManager.default.removeItem(atPath: path) }
    }

    private let own = Make.node("n1", "10.0.0.1", key: Make.key(1))

    @Test("by annotation: the key that it names, and no other; without one, none")
    func annotation() {
        let pin = [NodeAnnotation.pinnedKey(.ipv4): Make.key(2).description]
        let good = plan("Annotation", [own, Make.node("n2", "10.0.0.2", key: Make.key(2), annotations: pin)])
        #expect(good.ipv4.peers["n2"]?.publicKey == Make.key(2) && good.problems.isEmpty)
        let other = plan("Annotation", [own, Make.node("n2", "10.0.0.2", key: Make.key(3), annotations: pin)])
        #expect(
            other.ipv4.peers.isEmpty && other.problems.contains { $0.message.contains("is not the key that is pinned") }
        )
        let none = plan("Annotation", [own, Make.node("n2", "10.0.0.2", key: Make.key(2))])
        #expect(none.ipv4.peers.isEmpty && none.problems.contains { $0.message.contains("is not pinned") })
        // A key that is refused is one all the same: the node is no node without WireGuard.
        let exempt = [NodeAnnotation.strictModeExempt: "true"]
        let refused = plan("Annotation", [own, Make.node("n2", "10.0.0.2", key: Make.key(2), annotations: exempt)])
        #expect(refused.ipv4.peers.isEmpty && refused.ipv4.exempt.isEmpty)
        let keyless = plan("Annotation", [own, Make.node("n2", "10.0.0.2", annotations: exempt)])
        #expect(keyless.ipv4.exempt == ["n2"])
        let torn = exempt.merging([NodeAnnotation.publicKey(.ipv4): "torn"]) { first, _ in first }
        #expect(plan("Disabled", [own, Make.node("n2", "10.0.0.2", annotations: torn)]).ipv4.exempt.isEmpty)
        let off = plan("Disabled", [own, Make.node("n2", "10.0.0.2", key: Make.key(3), annotations: pin)])
        #expect(off.ipv4.peers.count == 1)
    }

    @Test("by first use: the first stays, whatever the datastore says later, until it is forgotten")
    func firstUse() {
        let first = plan("FirstUse", [own, Make.node("n2", "10.0.0.2", key: Make.key(2))])
        #expect(first.ipv4.peers.count == 1 && first.keyPins.ipv4 == ["n2": Make.key(2)])
        #expect(first.keyPins.choice == .firstUse)
        let changed = [own, Make.node("n2", "10.0.0.2", key: Make.key(3))]
        let lied = plan("FirstUse", changed, pins: first.keyPins)
        #expect(lied.ipv4.peers.isEmpty && lied.keyPins == first.keyPins)
        #expect(lied.problems.contains { $0.resource == "Node/n2" && $0.remedy.contains("wgplane trust n2") })
        var forgotten = first.keyPins
        forgotten.ipv4["n2"] = nil
        #expect(plan("FirstUse", changed, pins: forgotten).ipv4.peers["n2"]?.publicKey == Make.key(3))
        // Who can write the key can write the annotation beside it, and the exemption too.
        let words = [NodeAnnotation.pinnedKey(.ipv4): Make.key(3).description, NodeAnnotation.strictModeExempt: "true"]
        let liar = [own, Make.node("n2", "10.0.0.2", key: Make.key(3), annotations: words)]
        let said = plan("FirstUse", liar, pins: first.keyPins)
        #expect(said.ipv4.peers.isEmpty && said.ipv4.exempt.isEmpty)
        // A word that is gone takes nothing back.
        let unsaid = NodePlan(ClusterState(changed), node: "n1", keyPins: first.keyPins)
        #expect(unsaid.ipv4.peers.isEmpty)
        let torn = [NodeAnnotation.pinnedKey(.ipv4): "short"]
        #expect(
            plan("FirstUse", [own, Make.node("n2", "10.0.0.2", key: Make.key(2), annotations: torn)]).ipv4.peers.isEmpty
        )
        #expect(plan("FirstUse", changed, strict: false).problems.contains { $0.message.contains("go in clear") })
    }

    @Test("they are kept in a file; one that cannot be read is not overwritten, and lets no key be the first")
    func file() throws {
        let state = StateFolder()
        let (folder, options) = (state.path, state.options)
        var keeper = KeyPinKeeper(options)
        #expect(keeper.current() == KeyPins())
        var pins = KeyPins()
        pins.ipv6["n2"] = Make.key(4)
        keeper.keep(pins)
        var next = KeyPinKeeper(options)
        #expect(next.current() == pins && keeper.problem == nil)
        let path = "\(folder)/pinned-keys.json"
        try Data("{".utf8).write(to: URL(fileURLWithPath: path))
        var third = KeyPinKeeper(options)
        let unknown = third.current()
        #expect(third.problem?.resource == path && !unknown.mayLearn)
        third.keep(pins)
        #expect(try readFile(path) == Array("{".utf8))
        #expect(
            plan("FirstUse", [own, Make.node("n2", "10.0.0.2", key: Make.key(2))], pins: unknown).ipv4.peers.isEmpty)
    }

    @Test("what an operator changes while an agent learns is not overwritten; a key may be told")
    func changed() throws {
        let state = StateFolder()
        let (folder, options) = (state.path, state.options)
        var agent = KeyPinKeeper(options)
        var pins = agent.current()
        pins.ipv4 = ["n2": Make.key(2)]
        agent.keep(pins)
        var learned = agent.current()
        learned.ipv4["n3"] = Make.key(3)
        // In between: `wgplane trust n2 --key`.
        var operatorsOwn = KeyPinKeeper(options)
        try operatorsOwn.change { $0.ipv4["n2"] = Make.key(9) }
        agent.keep(learned)
        #expect(agent.current().ipv4 == ["n2": Make.key(9)])
        learned = agent.current()
        learned.ipv4["n3"] = Make.key(3)
        agent.keep(learned)
        var next = KeyPinKeeper(options)
        #expect(next.current().ipv4 == ["n2": Make.key(9), "n3": Make.key(3)])
        // Somebody else's folder says nothing, and is not taken for an empty one.
        try FileManager.default.setAttributes([.posixPermissions: 0o777], ofItemAtPath: folder)
        var foreign = KeyPinKeeper(options)
        #expect(!foreign.current().mayLearn && foreign.problem?.message.contains("written by others") == true)
    }

    @Test("of two nodes that claim a key the one has it for which it is pinned, also when nobody remembers")
    func duplicated() {
        let claims = [
            own, Make.node("n2", "10.0.0.2", key: Make.key(2)), Make.node("a9", "10.0.0.9", key: Make.key(2)),
        ]
        #expect(plan("FirstUse", claims).ipv4.peers.isEmpty)
        var pins = KeyPins()
        pins.ipv4["n2"] = Make.key(2)
        #expect(plan("FirstUse", claims, pins: pins).ipv4.peers.keys.sorted() == ["n2"])
        // What an operator says is later than what was before; but this node's own key is its own.
        let before = [Make.key(2): "a9"]
        #expect(plan("FirstUse", claims, pins: pins, history: before).ipv4.peers.keys.sorted() == ["n2"])
        // A node that is gone may come back; an annotation that another one has copied says nothing.
        pins.ipv4 = ["a0": Make.key(2)]
        #expect(plan("FirstUse", claims, pins: pins, history: before).ipv4.peers.isEmpty)
        let pin = [NodeAnnotation.pinnedKey(.ipv4): Make.key(2).description]
        let copied = [
            own, Make.node("n2", "10.0.0.2", key: Make.key(2), annotations: pin),
            Make.node("a9", "10.0.0.9", key: Make.key(2), annotations: pin),
        ]
        #expect(plan("Annotation", copied, history: [Make.key(2): "n2"]).ipv4.peers.keys.sorted() == ["n2"])
        // A node that publishes no key for a moment keeps the one that is pinned for it.
        let moment = [own, Make.node("n2", "10.0.0.2"), Make.node("a9", "10.0.0.9", key: Make.key(2))]
        pins.ipv4 = ["n2": Make.key(2)]
        let other = plan("FirstUse", moment, pins: pins)
        #expect(other.ipv4.peers.isEmpty && other.keyPins.ipv4 == pins.ipv4)
        #expect(other.problems.contains { $0.message.contains("pinned for n2") })
        let without = plan("FirstUse", [own, moment[2]], pins: pins)
        #expect(without.ipv4.peers.isEmpty && without.keyPins.ipv4 == pins.ipv4, "not even where its Node is gone")
        pins.ipv4 = ["n2": Make.key(1)]
        let thief = [own, Make.node("n2", "10.0.0.2", key: Make.key(1))]
        #expect(plan("FirstUse", thief, pins: pins, ownKeys: [.ipv4: Make.key(1)]).ipv4.peers.isEmpty)
    }
}
