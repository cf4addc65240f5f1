// SPDX-License-Identifier: Apache-2.0

import Flows
import Model
import Testing
import WireGuard

@testable import Agent
@testable import DataplaneMaps

/// What two looks at the programs' counters and WireGuard's say.
@Suite("Audit")
struct AuditTests {
    private let key = PublicKey(bytes: [UInt8](repeating: 7, count: 32))
    private let out = TunnelAudit.Way(.out, .ipv4)
    private let back = TunnelAudit.Way(.in, .ipv4)

    private func sample(
        _ seconds: UInt64, messages: UInt64, slack: UInt64 = 0, later: UInt64 = 0, sent: UInt64, received: UInt64 = 0,
        peers: Int = 1
    ) throws -> TunnelAudit.Sample {
        func count(_ bytes: UInt64) -> TunnelCount {
            TunnelCount(packets: bytes / 1000, bytes: bytes, messageBytes: bytes, slack: slack)
        }
        var transfers: [PublicKey: TunnelAudit.Transfer] = [:]
        for number in 0..<peers {
            let key = try #require(PublicKey(bytes: [UInt8](repeating: UInt8(number + 1), count: 32)))
            transfers[key] = .init(
                received: number == 0 ? received : 0, sent: number == 0 ? sent : 0, handshake: 1)
        }
        return TunnelAudit.Sample(
            time: seconds * 1_000_000_000, before: [out: count(messages), back: count(messages)],
            after: [out: count(messages + later), back: count(messages + later)], transfers: [.ipv4: transfers],
            steered: CounterValue(packets: messages / 1000, bytes: messages),
            steeredAfter: CounterValue(packets: messages / 1000, bytes: messages))
    }

    private func verdicts(_ first: TunnelAudit.Sample, _ second: TunnelAudit.Sample) -> [TunnelAudit.Verdict] {
        TunnelAudit.findings(from: first, to: second).sorted { $0.direction.rawValue > $1.direction.rawValue }
            .map(\.verdict)
    }

    @Test("a difference within handshakes, padding and what is on its way closes; one percent does not")
    func bounds() throws {
        let start = try sample(0, messages: 1000, sent: 500, received: 500)
        let total: UInt64 = 100_000_000
        for (sent, received, wanted) in [
            (total, total, [TunnelAudit.Verdict.closed, .closed]),
            (total + 60_000, total - 60_000, [.closed, .closed]),
            (total / 100 * 99, total, [.missing, .closed]), (total, total / 100 * 101, [.closed, .missing]),
            (total / 100 * 101, total / 100 * 99, [.surplus, .surplus]),
        ] {
            let end = try sample(60, messages: 1000 + total, sent: 500 + sent, received: 500 + received)
            #expect(verdicts(start, end) == wanted, "\(sent) \(received)")
        }
        // Padding that there may be is no surplus; what came between the two looks is none either.
        let padded = try sample(
            60, messages: 1000 + total, slack: 600_000, sent: 500 + total + 600_000, received: total)
        #expect(verdicts(start, padded) == [.closed, .closed])
        let busy = try sample(
            60, messages: 1000 + total, later: 900_000, sent: 500 + total + 900_000, received: 500 + total)
        #expect(verdicts(start, busy) == [.closed, .closed])
    }

    @Test("looks are compared over a window, and where they are farther apart than it, each with the one before")
    func history() throws {
        let loss: UInt64 = 99
        // Seconds from a look to the next: often; on a busy node once a minute, and a little more.
        for period: UInt64 in [10, 60, 78] {
            var history = TunnelAudit.History(seconds: 65)
            for number: UInt64 in 0..<10 {
                let bytes = number * 10_000_000
                let found = history.add(
                    try sample(number * period, messages: bytes, sent: bytes / 100 * loss, received: bytes))
                #expect(found.count == (number == 0 ? 0 : 2), "\(period) \(number)")
                let looks = min(number, max(65 / period, 1))
                for finding in found {
                    #expect(finding.expectedLow == looks * 10_000_000, "\(period) \(number)")
                    #expect(finding.verdict == (finding.direction == .out ? .missing : .closed), "\(period) \(number)")
                }
            }
            history.forget()
            #expect(history.add(try sample(10_000, messages: 1, sent: 1)).isEmpty)
        }
    }

    @Test("peers that went took their counters along, a device that is new has none: nobody knows")
    func peersGone() throws {
        let start = try sample(0, messages: 1000, sent: 500, peers: 2)
        #expect(verdicts(start, try sample(9, messages: 9000, sent: 9000)) == [.unknown, .unknown])
        let later = try sample(9, messages: 90_000_000, sent: 400, received: 0, peers: 2)
        #expect(verdicts(start, later).first == .unknown)
    }

    @Test(
        "what a peer without a session makes WireGuard drop is no theft, where the device says so; wireguard-go does not"
    )
    func lapsed() throws {
        // No handshake at all; one that has lapsed meanwhile; one that has lapsed and come back; a session that holds.
        let cases: [(before: Int64, after: Int64, waits: Bool)] = [
            (0, 0, true), (900, 900, true), (900, 1090, true), (990, 990, false), (990, 1050, false),
        ]
        let total: UInt64 = 10_000_000
        for isUserspace in [false, true] {
            for (before, after, waits) in cases {
                for dropped: UInt64 in [0, 200] {
                    var start = try sample(0, messages: 0, sent: 1000)
                    // More than a TUN device holds.
                    let missing: UInt64 = isUserspace ? 1_000_000 : 300_000
                    var end = try sample(60, messages: total, sent: total - missing)
                    (start.wall, end.wall) = (1030, 1090)
                    for (key, _) in start.transfers[.ipv4] ?? [:] {
                        start.transfers[.ipv4]?[key]?.handshake = before
                        end.transfers[.ipv4]?[key]?.handshake = after
                    }
                    let device = TunnelAudit.Device(isUserspace: isUserspace, mtu: 1420, dropped: 5, errors: 0)
                    (start.devices[.ipv4], end.devices[.ipv4]) = (device, device)
                    end.devices[.ipv4]?.dropped += dropped
                    // 128 wait at most, so 100,000 bytes are dropped ones.
                    let wanted: TunnelAudit.Verdict =
                        dropped > 0 ? .closed : waits && isUserspace ? .unknown : .missing
                    #expect(verdicts(start, end).first == wanted, "\(isUserspace) \(before) \(after) \(dropped)")
                }
            }
        }
    }

    @Test("packets that were sent to a device and have not come there")
    func before() throws {
        let start = try sample(0, messages: 0, sent: 0)
        var end = try sample(9, messages: 5_000_000, sent: 5_000_000)
        #expect(TunnelAudit.lostBefore(from: start, to: end) == 0)
        end.steered.packets += 70
        #expect(TunnelAudit.lostBefore(from: start, to: end) == 70)
    }

    @Test("a stalled peer: sent to, silent, and without a handshake that counts")
    func stalls() throws {
        let key = try #require(key)
        var watch = StallWatch()
        func look(_ seconds: UInt64, sent: UInt64, received: UInt64, age: Int64?) -> [StallWatch.Stall] {
            watch.look(
                [
                    .init(
                        family: .ipv6, key: key, node: "n2", transfer: .init(received: received, sent: sent),
                        handshakeAge: age)
                ], now: seconds * 1_000_000_000)
        }
        #expect(look(0, sent: 0, received: 0, age: nil).isEmpty)
        #expect(look(100, sent: 0, received: 0, age: nil).isEmpty, "nobody has sent anything")
        #expect(look(110, sent: 1000, received: 5, age: 1).isEmpty)
        #expect(look(150, sent: 2000, received: 5, age: 41).isEmpty, "the handshake still counts")
        #expect(look(300, sent: 3000, received: 5, age: 191).map(\.seconds) == [190])
        #expect(look(310, sent: 4000, received: 6, age: 1).isEmpty)
        #expect(look(320, sent: 4032, received: 6, age: 11).isEmpty)
        #expect(look(900, sent: 4032, received: 6, age: 591).isEmpty, "idle: a keep-alive has answered the last data")
        #expect(look(910, sent: 4180, received: 6, age: 601).count == 1, "a handshake is asked for")
        // The clock went back: a little, by a day.
        #expect(look(920, sent: 6000, received: 6, age: -30).isEmpty)
        #expect(look(930, sent: 8000, received: 6, age: -86_400).map(\.handshakeAge) == [nil])
    }

    @Test("by how much handshakes lie ahead of the clock")
    func lead() throws {
        func state(_ times: [Int64?]) throws -> DeviceState {
            var state = DeviceState(name: "wg0", interface: 1, listeningPort: 1, firewallMark: 0, peers: [:])
            for (number, time) in times.enumerated() {
                let key = try #require(PublicKey(bytes: [UInt8](repeating: UInt8(number + 1), count: 32)))
                state.peers[key] = PeerState(
                    allowedIPs: [], keepAlive: 0, lastHandshake: time, receivedBytes: 0, sentBytes: 0)
            }
            return state
        }
        #expect(try state([]).handshakeLead(1000) == 0 && state([nil, 900, 1000]).handshakeLead(1000) == 0)
        #expect(try state([nil, 1061, 900]).handshakeLead(1000) == DeviceState.harmlessLead + 1)
    }
}
