// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
import DesiredState
import Model
import WireGuard

/// The peers of one device: which key carries a node's traffic, and whether it may.
///
/// A node's traffic is carried once a handshake has been seen, and never un-steered while
/// the node has WireGuard: not because that was long ago, nor when the peer or the device is
/// lost and made anew. Until the next handshake packets wait in the device, which keeps 128.
/// When a node publishes another key, the new peer is made without allowed IPs; the old one
/// goes on until the new has shaken hands. A key that nobody answers for takes nothing away.
struct PeerTable: Sendable {
    /// Key that a node's allowed IPs are with.
    private var carriers: [String: PublicKey] = [:]
    private var ready: Set<PublicKey> = []
    private var carried: Set<String> = []
    private var stampedEndpoints: [PublicKey: Endpoint] = [:]
    private var waitingSince: [PublicKey: ContinuousClock.Instant] = [:]
    private var attempts: [PublicKey: Int] = [:]
    /// Bytes heard from a peer that has not shaken hands, and since when it is that many.
    private var heard: [PublicKey: (bytes: UInt64, since: ContinuousClock.Instant)] = [:]
    /// Peers that were ready at a device that has been replaced since.
    private var replaced: Set<PublicKey> = []
    /// Peers whose nodes are gone, or have WireGuard no more: kept a moment for what is under way.
    private(set) var retiring: [PublicKey: Retiring] = [:]

    struct Retiring: Sendable {
        var node: String
        var endpoint: Endpoint?
        var until: ContinuousClock.Instant
    }

    static let linger = Duration.milliseconds(300)
    static let courtesy = Duration.milliseconds(150)
    /// A peer that has just spoken may have a session from our answer, and send on the strength of it.
    static let quiet = Duration.milliseconds(500)
    /// Ages of a handshake at which it is begun again; afterwards WireGuard's own five seconds do.
    static let beginAgainLimit = 128
    static let beginAgain: [Duration] = [.milliseconds(300), .milliseconds(800), .milliseconds(1800)]
    /// The same for the first of all handshakes of a new device: who has just been told of its key takes a moment, and
    /// what came before was lost on it.
    static let beginAgainFirst = [.milliseconds(100)] + beginAgain

    /// A peer's state, for status.
    enum Readiness: String, Sendable, Codable, CaseIterable {
        case ready
        case handshaking
        case changingKey
        case retiring
    }

    /// Takes what an earlier agent had in place: owner and action of each slot.
    mutating func adopt(_ slots: [(owner: SlotOwner, action: DestinationAction)], family: AddressFamily) {
        for (owner, action) in slots where owner.family == family {
            if let key = owner.publicKey { carriers[owner.node] = key }
            if action == .tunnel { carried.insert(owner.node) }
        }
    }

    /// Takes what an earlier agent has told of its peers: which carried, and which endpoints it had set, from
    /// which they may have roamed since.
    mutating func adopt(_ peers: [StatusReport.Peer]) {
        for peer in peers where peer.state != Readiness.retiring.rawValue {
            if peer.action == DestinationAction.tunnel.name {
                carriers[peer.node] = carriers[peer.node] ?? peer.carrier ?? peer.publicKey
                carried.insert(peer.node)
            }
            if let endpoint = Endpoint(peer.endpoint) { stampedEndpoints[peer.publicKey] = endpoint }
        }
    }

    /// The device has been made anew with its key: its peers do not know, so this side begins at once.
    mutating func deviceWasReplaced(now: ContinuousClock.Instant) {
        for key in ready.union(waitingSince.keys) { waitingSince[key] = now - Self.courtesy }
        replaced = ready
        ready = []
        attempts = [:]
    }

    /// The device has another key: nobody has shaken hands with that.
    mutating func keyWasRenewed(now: ContinuousClock.Instant) {
        for key in ready { waitingSince[key] = now }
        (ready, replaced, attempts) = ([], [], [:])
    }

    /// Notes handshakes and decides who carries; call it with the device as it is, before `changes`.
    /// `mayRetire`: the plan is complete, so that a node that is not in it is gone.
    mutating func observe(
        _ device: DeviceState, _ plan: [String: PeerPlan], now: ContinuousClock.Instant, mayRetire: Bool = true
    ) {
        // A peer that is lost waits anew, with all courtesy.
        let lost = ready.subtracting(device.peers.keys)
        replaced.formIntersection(device.peers.filter { $0.value.lastHandshake == nil }.keys)
        waitingSince = plan.values.reduce(into: [:]) {
            $0[$1.publicKey] = lost.contains($1.publicKey) ? now : waitingSince[$1.publicKey] ?? now
        }
        for (key, peer) in device.peers where peer.lastHandshake != nil { ready.insert(key) }
        ready.formIntersection(device.peers.keys)
        let unheard = device.peers.filter { $0.value.receivedBytes > 0 && !ready.contains($0.key) }
        heard = unheard.reduce(into: [:]) { result, peer in
            let bytes = peer.value.receivedBytes
            if let before = heard[peer.key], before.bytes == bytes {
                result[peer.key] = before
            } else {
                result[peer.key] = (bytes, now)
            }
        }
        for (node, peer) in plan {
            retiring[peer.publicKey] = nil
            let carrier = carriers[node]
            if let carrier, ready.contains(carrier) { carried.insert(node) }
            if let carrier, carrier != peer.publicKey, ready.contains(carrier), !ready.contains(peer.publicKey) {
                continue
            }
            if let carrier, carrier != peer.publicKey, device.peers[carrier] != nil {
                retire(carrier, node: node, device.peers[carrier]?.endpoint, now)
            }
            carriers[node] = peer.publicKey
            if ready.contains(peer.publicKey) { carried.insert(node) }
        }
        guard mayRetire else { return }
        for (node, key) in carriers where plan[node] == nil {
            retire(key, node: node, device.peers[key]?.endpoint, now)
            carriers[node] = nil
        }
        carried.formIntersection(plan.keys)
        let wanted = Set(plan.values.map(\.publicKey)).union(carriers.values)
        for (key, peer) in device.peers where !wanted.contains(key) && retiring[key] == nil {
            retire(key, node: "", peer.endpoint, now)
        }
        retiring = retiring.filter { device.peers[$0.key] != nil && !wanted.contains($0.key) }
    }

    private mutating func retire(
        _ key: PublicKey, node: String, _ endpoint: Endpoint?, _ now: ContinuousClock.Instant
    ) {
        if retiring[key] == nil {
            retiring[key] = Retiring(node: node, endpoint: endpoint, until: now + Self.linger)
        }
    }

    /// What makes the device carry the plan, and with it addresses by node. `mayRemove`: the plan is complete, so that what
    /// it does not name is to go. Nothing is taken from a peer before the one that gets it has it.
    mutating func changes(
        _ device: DeviceState, _ plan: [String: PeerPlan], workloads: [String: Set<CIDR>] = [:], keepAlive: UInt16,
        now: ContinuousClock.Instant,
        mayRemove: Bool = true
    ) -> (changes: [PeerChange], stamped: [PublicKey: Endpoint]) {
        var result: [PeerChange] = []
        var stamped = stampedEndpoints
        // One whose endpoint is learned must begin itself: made anew it would not be found.
        let learned = Set(plan.values.filter { $0.endpoint == nil }.map(\.publicKey))
        let again = keysToBeginAgain(device, now).subtracting(learned)
        var moves = AllowedIPMoves()
        for (node, peer) in plan.sorted(by: { $0.key < $1.key }) {
            let carrier = carriers[node] ?? peer.publicKey
            for key in Set([peer.publicKey, carrier]).sorted() {
                var present = device.peers[key]
                if again.contains(key) {
                    var removal = PeerChange(key)
                    removal.remove = true
                    result.append(removal)
                    present = nil
                }
                var change = PeerChange(key)
                change.updateOnly = present != nil
                change.allowedIPs = moves.note(
                    key, present?.allowedIPs ?? [], key == carrier ? peer.allowedIPs : [],
                    key == carrier ? workloads[node] ?? [] : [])
                // Provokes a handshake; the configured interval comes back with it.
                let interval = ready.contains(key) ? keepAlive : mayProvoke(key, device.publicKey, now) ? 1 : 0
                if present?.keepAlive != interval { change.keepAlive = interval }
                if key == peer.publicKey, let endpoint = peer.endpoint, stamped[key] != endpoint || present == nil {
                    if present?.endpoint != endpoint { change.endpoint = endpoint }
                    stamped[key] = endpoint
                }
                let isNothing =
                    present != nil && change.allowedIPs.isEmpty && change.keepAlive == nil && change.endpoint == nil
                if !isNothing { result.append(change) }
            }
        }
        return (result + (mayRemove ? moves.removals : []), stamped)
    }

    /// A pod's address that has another node.
    struct Move: Sendable {
        var address: CIDR
        /// Whose it was; nil: nobody's.
        var from: String?
        var to: String?
    }

    /// The same of some pods' addresses alone, where all else is as it should be: costs what the moves cost, however
    /// many addresses the peers have.
    func allowedIPChanges(
        _ device: DeviceState, _ plan: [String: PeerPlan], _ moves: [Move], mayRemove: Bool = true
    ) -> [PeerChange] {
        var gained: [PublicKey: [CIDR]] = [:]
        var lost: [PublicKey: [CIDR]] = [:]
        for move in moves where move.from != move.to {
            var isTaken = false
            if let node = move.to, plan[node] != nil, let key = carriers[node], let present = device.peers[key] {
                // Whoever had it has it no more then.
                isTaken = true
                if !present.allowedIPs.contains(move.address) { gained[key, default: []].append(move.address) }
            }
            guard !isTaken, mayRemove, let node = move.from, let peer = plan[node], let key = carriers[node],
                device.peers[key]?.allowedIPs.contains(move.address) == true, !peer.allowedIPs.contains(move.address)
            else { continue }
            lost[key, default: []].append(move.address)
        }
        func change(_ key: PublicKey, _ edit: (inout PeerChange) -> Void) -> PeerChange {
            var change = PeerChange(key)
            change.updateOnly = true
            edit(&change)
            return change
        }
        return gained.sorted { $0.key < $1.key }.map { entry in
            change(entry.key) { $0.allowedIPs = entry.value.sorted() }
        }
            + lost.sorted { $0.key < $1.key }.map { entry in
                change(entry.key) { $0.removedAllowedIPs = entry.value.sorted() }
            }
    }

    /// Allowed IPs that peers get and lose.
    private struct AllowedIPMoves {
        private var given: Set<CIDR> = []
        private var surplus: [(key: PublicKey, allowedIPs: Set<CIDR>)] = []

        /// Returns those that a peer lacks, of its own and its node's pods'.
        mutating func note(
            _ key: PublicKey, _ present: Set<CIDR>, _ own: Set<CIDR>, _ workloads: Set<CIDR>
        ) -> [CIDR] {
            var lacking: [CIDR] = []
            var found = 0
            func look(_ cidr: CIDR) { if present.contains(cidr) { found += 1 } else { lacking.append(cidr) } }
            for cidr in own where !workloads.contains(cidr) { look(cidr) }
            for cidr in workloads { look(cidr) }
            given.formUnion(lacking)
            if found < present.count {
                surplus.append((key, present.filter { !own.contains($0) && !workloads.contains($0) }))
            }
            return lacking.sorted()
        }

        /// What nobody gets goes from who has it.
        var removals: [PeerChange] {
            surplus.sorted { $0.key < $1.key }.compactMap { key, allowedIPs in
                var change = PeerChange(key)
                change.updateOnly = true
                change.removedAllowedIPs = allowedIPs.filter { !given.contains($0) }.sorted()
                return change.removedAllowedIPs.isEmpty ? nil : change
            }
        }
    }

    /// Two sides that begin at once refuse each other's answers, and try again after five
    /// seconds. So the one with the lower key begins, and the other when nothing has come.
    private func mayProvoke(_ key: PublicKey, _ own: PublicKey?, _ now: ContinuousClock.Instant) -> Bool {
        guard let own, key < own, !replaced.contains(key) else { return true }
        return now - (waitingSince[key] ?? now) >= Self.courtesy
    }

    /// When a handshake that this side has begun is lost, or met one from the other side, the
    /// peer is made anew, which begins another at once.
    private mutating func keysToBeginAgain(_ device: DeviceState, _ now: ContinuousClock.Instant) -> Set<PublicKey> {
        attempts = attempts.filter { waitingSince[$0.key] != nil && !ready.contains($0.key) }
        let due = keysDueAgain(device, now)
        for key in due { attempts[key, default: 0] += 1 }
        guard due.count > Self.beginAgainLimit else { return due }
        // Where many wait they are away, or there is too much to do: those that have come last are begun again.
        let latest = due.sorted { (waitingSince[$0] ?? now, $0) > (waitingSince[$1] ?? now, $1) }
        return Set(latest.prefix(Self.beginAgainLimit))
    }

    private func keysDueAgain(_ device: DeviceState, _ now: ContinuousClock.Instant) -> Set<PublicKey> {
        guard let own = device.publicKey else { return [] }
        return Set(
            waitingSince.filter { key, since in
                guard own < key || replaced.contains(key), !ready.contains(key), device.peers[key] != nil else {
                    return false
                }
                if let heard = heard[key], now - heard.since < Self.quiet { return false }
                let attempt = attempts[key] ?? 0
                let ages = ready.isEmpty && carriers.isEmpty ? Self.beginAgainFirst : Self.beginAgain
                return attempt < ages.count && now - since >= ages[attempt]
            }.keys)
    }

    /// Whether `changes` would make a peer anew: look at the device once more before, for the handshake may
    /// have come since, and the other side may send on the strength of it.
    func isDueAgain(_ device: DeviceState, now: ContinuousClock.Instant) -> Bool { !keysDueAgain(device, now).isEmpty }

    mutating func note(stamped: [PublicKey: Endpoint]) { stampedEndpoints = stamped }

    /// Removal of the peers whose time is over.
    func removals(now: ContinuousClock.Instant) -> [PeerChange] {
        retiring.filter { $0.value.until <= now }.keys.sorted().map {
            var change = PeerChange($0)
            change.remove = true
            return change
        }
    }

    /// Whether a peer has not shaken hands for so long that something may be in the way.
    func isWaitingLong(now: ContinuousClock.Instant) -> Bool {
        waitingSince.contains { !ready.contains($0.key) && now - $0.value > .seconds(5) }
    }

    func carrier(of node: String) -> PublicKey? { carriers[node] }

    func node(of key: PublicKey) -> String? { carriers.first { $0.value == key }?.key }

    func carries(_ node: String) -> Bool { carried.contains(node) }

    func readiness(_ node: String, planned: PublicKey) -> Readiness {
        guard let carrier = carriers[node] else { return .handshaking }
        if carrier != planned { return .changingKey }
        return ready.contains(carrier) ? .ready : .handshaking
    }

    /// How soon to look again for a handshake or a removal; nil: nothing is waited for. `cost`: what a look takes.
    func nextLook(_ plan: [String: PeerPlan], now: ContinuousClock.Instant, cost: Duration = .zero) -> Duration? {
        if !retiring.isEmpty { return .milliseconds(50) }
        let waiting = plan.values.filter { !ready.contains($0.publicKey) }
        guard let age = waiting.map({ now - (waitingSince[$0.publicKey] ?? now) }).min() else { return nil }
        // Quick at first; a node that is down must not keep this one busy, nor many a large one.
        if age < .seconds(3) { return max(.milliseconds(50), cost) }
        return age < .seconds(60) ? max(.milliseconds(500), cost * 5) : max(.seconds(2), cost * 1000)
    }
}
