// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
import DesiredState
import Model
import Testing

@testable import Agent
@testable import Steering
@testable import WireGuard

@Suite("Agent: peers")
struct PeerTableTests {
    static let start = ContinuousClock.now

    func plan(_ node: String, _ key: UInt8, _ cidrs: String...) throws -> PeerPlan {
        PeerPlan(
            node: node, publicKey: Make.key(key),
            endpoint: Endpoint(address: try #require(IPAddress("10.0.0.\(node.dropFirst())")), port: 51820),
            allowedIPs: Set(try cidrs.map { try #require(CIDR($0)) }))
    }

    /// A device that applies changes as WireGuard does.
    struct Device {
        var state = DeviceState(name: "wg", interface: 1, listeningPort: 51820, firewallMark: 0, peers: [:])
        /// Prefixes that had no peer at some moment between two steps.
        var homeless: [CIDR] = []

        mutating func apply(_ changes: [PeerChange]) {
            for change in changes {
                if change.remove {
                    state.peers[change.publicKey] = nil
                    continue
                }
                if change.updateOnly, state.peers[change.publicKey] == nil { continue }
                var peer =
                    state.peers[change.publicKey]
                    ?? PeerState(allowedIPs: [], keepAlive: 0, receivedBytes: 0, sentBytes: 0)
                if change.replaceAllowedIPs {
                    homeless += peer.allowedIPs
                    peer.allowedIPs = []
                }
                if let endpoint = change.endpoint { peer.endpoint = endpoint }
                if let seconds = change.keepAlive { peer.keepAlive = seconds }
                for cidr in change.allowedIPs {
                    for other in state.peers.keys where other != change.publicKey {
                        state.peers[other]?.allowedIPs.remove(cidr)
                    }
                    peer.allowedIPs.insert(cidr)
                }
                peer.allowedIPs.subtract(change.removedAllowedIPs)
                state.peers[change.publicKey] = peer
            }
        }

        mutating func shakeHands(_ key: UInt8) { state.peers[Make.key(key)]?.lastHandshake = 1 }
    }

    /// One pass of the agent.
    func pass(
        _ table: inout PeerTable, _ device: inout Device, _ plans: [PeerPlan], after: Duration = .zero,
        keepAlive: UInt16 = 0
    ) {
        let plan = Dictionary(uniqueKeysWithValues: plans.map { ($0.node, $0) })
        table.observe(device.state, plan, now: Self.start + after)
        let (changes, stamped) = table.changes(device.state, plan, keepAlive: keepAlive, now: Self.start + after)
        device.apply(changes)
        table.note(stamped: stamped)
        table.observe(device.state, plan, now: Self.start + after)
        device.apply(table.removals(now: Self.start + after))
    }

    @Test("a peer carries only after a handshake, which is provoked, and stays ready")
    func handshakeGate() throws {
        var table = PeerTable()
        var device = Device()
        let peer = try plan("n2", 2, "10.48.2.0/26")
        pass(&table, &device, [peer], keepAlive: 25)
        #expect(!table.carries("n2") && device.state.peers[Make.key(2)]?.keepAlive == 1)
        #expect(device.state.peers[Make.key(2)]?.allowedIPs == peer.allowedIPs, "what it sends is accepted at once")
        device.shakeHands(2)
        pass(&table, &device, [peer], keepAlive: 25)
        #expect(table.carries("n2") && device.state.peers[Make.key(2)]?.keepAlive == 25)
        #expect(table.nextLook(["n2": peer], now: Self.start) == nil)
        // Nothing to do is nothing done.
        let none = table.changes(device.state, ["n2": peer], keepAlive: 25, now: Self.start).changes
        #expect(none.isEmpty)
    }

    @Test("the side with the lower key begins the handshake, the other when nothing has come")
    func courtesy() throws {
        for (own, first) in [(UInt8(1), UInt16(1)), (9, 0)] {
            var table = PeerTable()
            var device = Device()
            device.state.publicKey = Make.key(own)
            let peer = try plan("n2", 5, "10.48.2.0/26")
            pass(&table, &device, [peer])
            #expect(device.state.peers[Make.key(5)]?.keepAlive == first)
            pass(&table, &device, [peer], after: .milliseconds(300))
            #expect(device.state.peers[Make.key(5)]?.keepAlive == 1)
        }
    }

    @Test("a handshake that is lost is begun again by the side with the lower key, by a peer made anew")
    func beginAgain() throws {
        for (own, isAnew) in [(UInt8(1), true), (9, false)] {
            var table = PeerTable()
            var device = Device()
            device.state.publicKey = Make.key(own)
            let peer = try plan("n2", 5, "10.48.2.0/26")
            pass(&table, &device, [peer])
            pass(&table, &device, [peer], after: .milliseconds(200))
            device.state.peers[Make.key(5)]?.sentBytes = 148
            pass(&table, &device, [peer], after: .milliseconds(400))
            #expect((device.state.peers[Make.key(5)]?.sentBytes == 0) == isAnew)
            #expect(device.state.peers[Make.key(5)]?.allowedIPs == peer.allowedIPs)
            #expect(device.state.peers[Make.key(5)]?.endpoint == peer.endpoint)
            device.state.peers[Make.key(5)]?.sentBytes = 296
            pass(&table, &device, [peer], after: .milliseconds(500))
            #expect(device.state.peers[Make.key(5)]?.sentBytes == 296, "not at every pass")
            device.shakeHands(5)
            pass(&table, &device, [peer], after: .milliseconds(900))
            #expect(table.carries("n2") && device.state.peers[Make.key(5)]?.sentBytes == 296)
        }
    }

    @Test("a peer that has just spoken is not made anew: it may have a session from our answer")
    func notWhileItSpeaks() throws {
        var table = PeerTable()
        var device = Device()
        device.state.publicKey = Make.key(1)
        let peer = try plan("n2", 5, "10.48.2.0/26")
        pass(&table, &device, [peer])
        device.state.peers[Make.key(5)]?.sentBytes = 92
        device.state.peers[Make.key(5)]?.receivedBytes = 148
        for after in [300, 500, 799] { pass(&table, &device, [peer], after: .milliseconds(after)) }
        #expect(device.state.peers[Make.key(5)]?.sentBytes == 92)
        pass(&table, &device, [peer], after: .milliseconds(800))
        #expect(device.state.peers[Make.key(5)]?.sentBytes == 0, "both have begun, and refuse each other's answer")
    }

    @Test("another key for a node: the old peer carries until the new one has shaken hands")
    func keyChange() throws {
        var table = PeerTable()
        var device = Device()
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")])
        device.shakeHands(2)
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")])
        let changed = try plan("n2", 3, "10.48.2.0/26")
        pass(&table, &device, [changed])
        #expect(table.carries("n2") && table.carrier(of: "n2") == Make.key(2))
        #expect(device.state.peers[Make.key(3)]?.allowedIPs == [] && device.state.peers[Make.key(3)]?.keepAlive == 1)
        #expect(device.state.peers[Make.key(2)]?.allowedIPs == changed.allowedIPs)
        device.shakeHands(3)
        pass(&table, &device, [changed])
        #expect(
            table.carrier(of: "n2") == Make.key(3) && device.state.peers[Make.key(3)]?.allowedIPs == changed.allowedIPs)
        pass(&table, &device, [changed], after: .seconds(1))
        #expect(device.state.peers.keys.sorted() == [Make.key(3)])
        #expect(device.homeless.isEmpty)
    }

    @Test("a prefix that moves is with one peer at every moment; one that goes takes no other along")
    func prefixMoves() throws {
        var table = PeerTable()
        var device = Device()
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26", "10.48.9.0/26"), try plan("n3", 3, "10.48.3.0/26")])
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26"), try plan("n3", 3, "10.48.3.0/26", "10.48.9.0/26")])
        #expect(
            device.state.peers[Make.key(3)]?.allowedIPs.count == 2
                && device.state.peers[Make.key(2)]?.allowedIPs.count == 1)
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26"), try plan("n3", 3, "10.48.3.0/26")])
        #expect(device.state.peers[Make.key(3)]?.allowedIPs.map(\.description) == ["10.48.3.0/26"])
        #expect(device.homeless.isEmpty && device.state.peers.count == 2)
    }

    @Test("a node that goes lingers a moment; a peer of nobody goes too")
    func removal() throws {
        var table = PeerTable()
        var device = Device()
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")])
        device.apply([PeerChange(Make.key(9))])
        pass(&table, &device, [])
        #expect(device.state.peers.count == 2 && table.retiring.count == 2)
        pass(&table, &device, [], after: .milliseconds(200))
        #expect(device.state.peers.count == 2)
        pass(&table, &device, [], after: .milliseconds(350))
        #expect(device.state.peers.isEmpty)
        // And one that comes back within the moment stays.
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")], after: .seconds(1))
        pass(&table, &device, [], after: .seconds(1))
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")], after: .milliseconds(1100))
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")], after: .seconds(3))
        #expect(device.state.peers.keys.sorted() == [Make.key(2)])
    }

    @Test("an endpoint that has roamed is not stamped over")
    func roaming() throws {
        var table = PeerTable()
        var device = Device()
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")])
        let roamed = Endpoint(address: try #require(IPAddress("192.0.2.9")), port: 4000)
        device.state.peers[Make.key(2)]?.endpoint = roamed
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")])
        #expect(device.state.peers[Make.key(2)]?.endpoint == roamed)
        // But the resource's word counts when it changes.
        var moved = try plan("n2", 2, "10.48.2.0/26")
        moved.endpoint?.port = 7
        pass(&table, &device, [moved])
        #expect(device.state.peers[Make.key(2)]?.endpoint == moved.endpoint)
    }

    @Test("a peer or a device that is lost is made anew, and what it carried is not sent in clear meanwhile")
    func lostPeer() throws {
        var device = Device()
        var table = PeerTable()
        let peers = [try plan("n2", 2, "10.48.2.0/26"), try plan("n3", 3, "10.48.3.0/26")]
        pass(&table, &device, peers)
        device.shakeHands(2)
        pass(&table, &device, peers)
        #expect(table.carries("n2") && !table.carries("n3"))
        device.state.peers = [:]
        pass(&table, &device, peers)
        #expect(table.carries("n2") && !table.carries("n3"))
        #expect(table.readiness("n2", planned: Make.key(2)) == .handshaking)
        #expect(device.state.peers.count == 2)
        // What was lost waits anew: the side with the lower key is not in a hurry to begin again.
        #expect(table.nextLook(["n2": peers[0]], now: Self.start + .seconds(1)) == .milliseconds(50))
        // An agent that starts while the peer is lost goes by what the slots say.
        device.state.peers = [:]
        var second = PeerTable()
        second.adopt(
            [
                (SlotOwner(node: "n2", family: .ipv4, publicKey: Make.key(2)), .tunnel),
                (SlotOwner(node: "n3", family: .ipv4, publicKey: Make.key(3)), .clear),
            ], family: .ipv4)
        pass(&second, &device, peers)
        #expect(second.carries("n2") && !second.carries("n3"))
        // Whose WireGuard is gone is carried no longer.
        pass(&second, &device, [peers[1]])
        #expect(!second.carries("n2"))
        pass(&second, &device, peers)
        #expect(!second.carries("n2"))
    }

    @Test("a handshake and another key for the node, seen at once: the old peer carries")
    func handshakeMeetsNewKey() throws {
        var device = Device()
        var table = PeerTable()
        pass(&table, &device, [try plan("n2", 2, "10.48.2.0/26")])
        #expect(!table.carries("n2"))
        device.shakeHands(2)
        pass(&table, &device, [try plan("n2", 3, "10.48.2.0/26")])
        #expect(table.carries("n2") && table.carrier(of: "n2") == Make.key(2))
    }

    @Test("an adopted key carries on")
    func adoption() throws {
        var device = Device()
        var first = PeerTable()
        pass(&first, &device, [try plan("n2", 2, "10.48.2.0/26")])
        device.shakeHands(2)
        var second = PeerTable()
        second.adopt([(SlotOwner(node: "n2", family: .ipv4, publicKey: Make.key(2)), .tunnel)], family: .ipv4)
        pass(&second, &device, [try plan("n2", 3, "10.48.2.0/26")])
        #expect(second.carrier(of: "n2") == Make.key(2) && second.carries("n2"))
    }
}

@Suite("Steering: slots")
struct SlotAssignmentTests {
    @Test("a slot is kept, given back, and not given again at once")
    func slots() {
        var slots = SlotAssignment([7: SlotOwner(node: "n7", family: .ipv4)], count: 12)
        let kept = PeerSlotKey(node: "n7", family: .ipv4)
        #expect(slots.assign(kept) == 7)
        let other = PeerSlotKey(node: "n1", family: .ipv6)
        #expect(slots.assign(other) == DestinationSlot.firstPeer)
        slots.setOwner(DestinationSlot.firstPeer, SlotOwner(node: "n1", family: .ipv6))
        slots.release(other)
        #expect(slots.assign(PeerSlotKey(node: "n2", family: .ipv4)) == DestinationSlot.firstPeer + 1)
    }

    @Test("when all are taken there is none, and nobody is disturbed")
    func full() {
        var slots = SlotAssignment([:], count: DestinationSlot.firstPeer + 3)
        for number in 0..<3 {
            let key = PeerSlotKey(node: "n\(number)", family: .ipv4)
            guard let slot = slots.assign(key) else {
                Issue.record("there is room")
                return
            }
            slots.setOwner(slot, SlotOwner(node: key.node, family: .ipv4))
        }
        #expect(slots.assign(PeerSlotKey(node: "late", family: .ipv4)) == nil)
        slots.release(PeerSlotKey(node: "n1", family: .ipv4))
        #expect(slots.assign(PeerSlotKey(node: "late", family: .ipv4)) != nil)
    }
}
