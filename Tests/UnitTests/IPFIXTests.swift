// SPDX-License-Identifier: Apache-2.0

import Foundation
import Model
import Testing

@testable import DataplaneMaps
@testable import Flows

/// Export records as bytes, held against RFC 7011 by a reader of its own.
@Suite("Wire: IPFIX")
struct IPFIXTests {
    /// A data record: values by enterprise and number.
    struct Field: Hashable {
        var enterprise: UInt32
        var number: UInt16
    }

    /// Reads messages as a collector does: by templates alone.
    struct Reader {
        var templates: [UInt16: [(field: Field, length: Int)]] = [:]
        var records: [(template: UInt16, values: [Field: [UInt8]])] = []
        var sequences: [UInt32] = []

        static func number(_ bytes: some Collection<UInt8>) -> UInt64 { bytes.reduce(0) { $0 << 8 | UInt64($1) } }

        mutating func read(_ message: [UInt8]) throws {
            // Version 10, length, export time, sequence, domain.
            #expect(Self.number(message[0..<2]) == 10 && Self.number(message[2..<4]) == message.count)
            sequences.append(UInt32(Self.number(message[8..<12])))
            var offset = 16
            while offset < message.count {
                let set = UInt16(Self.number(message[offset..<offset + 2]))
                let length = Int(Self.number(message[offset + 2..<offset + 4]))
                try #require(length >= 4 && offset + length <= message.count)
                let body = Array(message[offset + 4..<offset + length])
                switch set {
                case 2: readTemplates(body, header: 4)
                case 3: readTemplates(body, header: 6)
                default: try readRecords(body, set)
                }
                offset += length
            }
            #expect(offset == message.count)
        }

        private mutating func readTemplates(_ body: [UInt8], header: Int) {
            var offset = 0
            while offset + header <= body.count {
                let identifier = UInt16(Self.number(body[offset..<offset + 2]))
                let count = Int(Self.number(body[offset + 2..<offset + 4]))
                offset += header
                var fields: [(Field, Int)] = []
                for _ in 0..<count {
                    let number = UInt16(Self.number(body[offset..<offset + 2]))
                    let length = Int(Self.number(body[offset + 2..<offset + 4]))
                    offset += 4
                    var enterprise: UInt32 = 0
                    if number & 0x8000 != 0 {
                        enterprise = UInt32(Self.number(body[offset..<offset + 4]))
                        offset += 4
                    }
                    fields.append((Field(enterprise: enterprise, number: number & 0x7fff), length))
                }
                templates[identifier] = fields
            }
        }

        private mutating func readRecords(_ body: [UInt8], _ set: UInt16) throws {
            let template = try #require(templates[set], "a template comes before its records")
            var offset = 0
            while offset < body.count {
                var values: [Field: [UInt8]] = [:]
                for (field, fixed) in template {
                    var length = fixed
                    if fixed == 65535 {
                        length = Int(body[offset])
                        offset += 1
                        if length == 255 {
                            length = Int(Self.number(body[offset..<offset + 2]))
                            offset += 2
                        }
                    }
                    values[field] = Array(body[offset..<offset + length])
                    offset += length
                }
                records.append((set, values))
            }
            #expect(offset == body.count)
        }
    }

    private func flow(_ family: AddressFamily, _ number: Int = 1, transport: UInt8 = 6) throws -> Biflow {
        let (source, destination) =
            family == .ipv4 ? ("10.48.1.1", "10.48.2.9") : ("fd48:0:0:1::1", "fd48:0:0:2::9")
        return Biflow(
            transport: "tcp", protocolNumber: transport, source: try #require(IPAddress(source)),
            sourcePort: UInt16(40000 + number), destination: try #require(IPAddress(destination)),
            destinationPort: transport == 6 ? 443 : 0x0800, packets: 10, bytes: 1000, reversePackets: 8,
            reverseBytes: 9000, first: 5_000_000_000, last: 9_000_000_000, way: "tunnel", isEncrypted: true,
            sourceName: "web-0", destinationName: "db-0", sourceNode: "node1", destinationNode: "node2", peer: "node2",
            peerKey: PublicKey(bytes: [UInt8](repeating: 7, count: 32)), lane: "wireguard.cali",
            translation: nil, state: "established", tcpFlags: 0x1b, reverseTCPFlags: 0x12, verdict: "tunnel",
            dropReason: nil, device: "cali1")
    }

    private func record(_ flow: Biflow) -> FlowRecord {
        FlowRecord(
            flow, .active, packets: 3, bytes: 300, reversePackets: 2, reverseBytes: 2000, start: 1_700_000_000_123,
            end: 1_700_000_004_123)
    }

    @Test("a record of each family, read back by its template")
    func fields() throws {
        for (family, enterprise) in [(AddressFamily.ipv4, UInt32?.some(32473)), (.ipv6, nil)] {
            var exporter = IPFIX(domain: 77, enterprise: enterprise, maximumLength: 1400)
            let flow = try flow(family)
            let message = try #require(
                exporter.messages(
                    [exporter.encoded(record(flow))], time: 1_700_000_005, withTemplates: true, statistics: .init()
                ).first)
            // The header, byte by byte: version 10, length, time 0x6553f105, sequence 0, domain 77.
            #expect(Array(message.bytes[0..<2]) == [0, 10])
            #expect(Array(message.bytes[4..<16]) == [0x65, 0x53, 0xf1, 0x05, 0, 0, 0, 0, 0, 0, 0, 77])
            var reader = Reader()
            try reader.read(message.bytes)
            let (template, values) = try #require(reader.records.last)
            #expect(template == (family == .ipv4 ? 256 : 257))
            func value(_ number: UInt16, _ enterprise: UInt32 = 0) -> [UInt8]? {
                values[Field(enterprise: enterprise, number: number)]
            }
            func count(_ number: UInt16, _ enterprise: UInt32 = 0) -> UInt64? {
                value(number, enterprise).map { Reader.number($0) }
            }
            #expect(value(family == .ipv4 ? 8 : 27) == flow.source.bytes)
            #expect(value(family == .ipv4 ? 12 : 28) == flow.destination.bytes)
            #expect(count(7) == 40001 && count(11) == 443 && count(4) == 6)
            #expect(count(1) == 300 && count(2) == 3 && count(85) == 1000 && count(86) == 10)
            let reverse = IPFIX.reverseEnterprise
            #expect(reverse == 29305 && count(1, reverse) == 2000 && count(2, reverse) == 2)
            #expect(count(85, reverse) == 9000 && count(86, reverse) == 8)
            #expect(count(6) == 0x1b && count(6, reverse) == 0x12)
            #expect(count(152) == 1_700_000_000_123 && count(153) == 1_700_000_004_123)
            #expect(count(136) == 2 && count(239) == 1 && value(82) == Array("cali1".utf8))
            if let enterprise {
                #expect(count(1, enterprise) == 1 && value(2, enterprise) == Array("node2".utf8))
                #expect(value(3, enterprise) == [UInt8](repeating: 7, count: 32))
                #expect(value(5, enterprise) == Array("web-0".utf8) && value(9, enterprise) == [])
            } else {
                #expect(!values.keys.contains { ![0, reverse].contains($0.enterprise) })
            }
            // What was sent and lost comes before.
            let statistics = try #require(reader.records.first)
            #expect(statistics.template == 258 && reader.records.count == 2)
            #expect(statistics.values[Field(enterprise: 0, number: 149)] == [0, 0, 0, 77])
            // As IANA has them: exported messages and records, flows, packets and octets that were not sent.
            #expect(statistics.values.keys.map(\.number).sorted() == [41, 42, 149, 166, 167, 168])
        }
    }

    @Test("an echo has its type and code where ports would be")
    func icmp() throws {
        var exporter = IPFIX(domain: 1, enterprise: nil, maximumLength: 1400)
        var echo = try flow(.ipv4, transport: 1)
        echo.state = nil
        let message = try #require(
            exporter.messages([exporter.encoded(record(echo))], time: 1, withTemplates: true, statistics: .init()).first
        )
        var reader = Reader()
        try reader.read(message.bytes)
        let values = try #require(reader.records.last?.values)
        #expect(
            values[Field(enterprise: 0, number: 32)] == [8, 0] && values[Field(enterprise: 0, number: 7)] == [0, 0])
    }

    @Test("messages are no longer than may be, sequence numbers count data records, nothing is missing")
    func splitting() throws {
        var exporter = IPFIX(domain: 1, enterprise: 32473, maximumLength: 1200)
        var reader = Reader()
        var total = 0
        for (round, size) in [1, 0, 57, 300].enumerated() {
            let records = try (0..<size).map {
                exporter.encoded(record(try flow($0 % 3 == 0 ? .ipv6 : .ipv4, $0)))
            }
            let messages = exporter.messages(
                records, time: 9, withTemplates: round == 0, statistics: .init())
            for message in messages {
                #expect(message.bytes.count <= 1200)
                let before = reader.records.count
                try reader.read(message.bytes)
                #expect(reader.sequences.last == UInt32(before), "as many data records came before it")
                #expect(reader.records.count - before == message.records.count + (before == 0 ? 1 : 0))
            }
            #expect(messages.flatMap(\.records).elementsEqual(0..<size))
            total += size
        }
        #expect(reader.records.count == total + 1 && exporter.sequence == UInt32(total + 1))
    }

    private func entry(_ packets: UInt64, _ first: UInt64, _ last: UInt64, flags: UInt8 = 0x1b) -> FlowEntry {
        FlowEntry(
            packets: packets, bytes: packets * 100, first: first, last: last, slot: 3, hook: .fromPod, tcpFlags: flags,
            isTunnelled: true, isClear: false, isFromHost: false, isPassed: false, isPromised: true, takesStack: false,
            isExempt: false, masqueradePort: 0, dropReason: nil)
    }

    private func key(_ from: String, _ to: String, _ transport: UInt8, _ interface: UInt32 = 5) throws -> FlowKey {
        FlowKey(
            source: try #require(IPAddress(from)), destination: try #require(IPAddress(to)), sourcePort: 40001,
            destinationPort: 443, transport: transport, interface: interface)
    }

    private static let second: UInt64 = 1_000_000_000

    @Test("records when they are due: active, idle, at TCP's end, at the exporter's; each packet is told once")
    func cache() throws {
        var cache = FlowCache(.init(active: .seconds(60), idle: .seconds(15)))
        let second = Self.second
        let (there, back) = (try key("10.48.1.1", "10.48.2.9", 6), try key("10.48.2.9", "10.48.1.1", 6, 7))
        func flow(_ packets: UInt64, _ reverse: UInt64, _ last: UInt64, flags: UInt8 = 0x1a) -> FlowPair {
            FlowPair(
                there, entry(packets, 100 * second, last * second, flags: flags), reverseKey: back,
                reverse: entry(reverse, 100 * second, 101 * second, flags: flags))
        }
        var told: [FlowCache.Due] = []
        func look(_ at: UInt64, _ flows: [FlowPair], gone: [FlowPair] = [], last: Bool = false) -> [FlowEndReason] {
            let new = cache.records(flows, gone: gone, now: at * second, wall: at * 1000, isLast: last)
            told += new
            return new.map(\.reason)
        }
        #expect(look(105, [flow(10, 8, 101)]).isEmpty, "neither time-out has passed")
        #expect(look(117, [flow(10, 8, 101)]) == [.idle])
        #expect(told.last?.packets == 10 && told.last?.start == 100_000 && told.last?.end == 101_000)
        #expect(look(200, [flow(10, 8, 101)]).isEmpty, "nothing new, nothing to tell")
        #expect(look(211, [flow(15, 9, 210)]) == [.active], "the last record is long ago")
        #expect(told.last?.packets == 5 && told.last?.reversePackets == 1)
        #expect(look(213, [flow(17, 9, 212, flags: 0x1b)]) == [.end] && told.last?.packets == 2)
        #expect(look(214, [flow(17, 9, 212, flags: 0x1b)]).isEmpty)
        #expect(look(215, [], gone: [flow(18, 9, 212, flags: 0x1b)]) == [.end], "taken out with a packet more")
        #expect(told.last?.packets == 1 && cache.count == 0)
        let other = FlowPair(try key("fd48::1", "fd48::2", 17), entry(10, 300 * second, 301 * second))
        #expect(look(302, [other], last: true) == [.forced])
        #expect(told.reduce(0) { $0 + $1.packets } == 18 + 10)
    }

    @Test("what records have told outlives the exporter; what is no memory, or cut off, is none")
    func memory() throws {
        let second = Self.second
        let flows = [
            FlowPair(try key("10.48.1.1", "10.48.2.9", 6), entry(10, 100 * second, 101 * second)),
            FlowPair(try key("fd48::1", "fd48::2", 17), entry(7, 100 * second, 102 * second)),
        ]
        var first = FlowCache()
        #expect(first.records(flows, now: 200 * second, wall: 1).count == 2)
        let memory = first.memory
        var next = FlowCache()
        let isTaken = next.remember(memory)
        #expect(isTaken && next.count == 2)
        #expect(next.records(flows, now: 201 * second, wall: 2).isEmpty, "nothing is told twice")
        var more = flows
        more[1].entry = entry(9, 100 * second, 201 * second)
        #expect(next.records(more, now: 230 * second, wall: 3).map(\.packets) == [2])
        var none = FlowCache()
        for length in [0, 5, 17, memory.count - 1] {
            let isTaken = none.remember(Array(memory.prefix(length)))
            #expect(!isTaken, "\(length)")
        }
        #expect(none.count == 0)
    }

    @Test("of many flows that are due at once, so many in a look; those that go are told in any case")
    func burst() throws {
        let second = Self.second
        let flows = try (1...200).map { number in
            FlowPair(try key("10.48.1.\(number)", "10.48.2.9", 17), entry(1, 100 * second, 101 * second))
        }
        var cache = FlowCache()
        var counts: [Int] = []
        for round in 0..<5 {
            let gone = round == 0 ? Array(flows[150...]) : []
            let new = cache.records(
                Array(flows[..<150]), gone: gone, now: (200 + UInt64(round)) * second, wall: 1, limit: 60)
            counts.append(new.count)
        }
        #expect(counts == [110, 60, 30, 0, 0])
        // Who has waited longest comes first: all flows have a packet more at each look.
        var told: [FlowKey: Int] = [:]
        for round in 0..<9 {
            let now = (300 + 60 * UInt64(round)) * second
            var busy = flows
            for index in busy.indices { busy[index].entry = entry(UInt64(round) + 5, 100 * second, now - second) }
            for due in cache.records(busy, now: now, wall: 1, limit: 70) { told[due.pair.key, default: 0] += 1 }
        }
        #expect(told.count == 200 && told.values.allSatisfy { $0 >= 3 }, "\(told.values.sorted())")
    }

    @Test("a flow that is made anew under an old key is told of from its beginning")
    func again() throws {
        let second = Self.second
        let name = try key("10.48.1.1", "10.48.2.9", 17)
        var cache = FlowCache()
        let old = FlowPair(name, entry(10, 100 * second, 101 * second))
        #expect(cache.records([old], now: 150 * second, wall: 1).map(\.packets) == [10])
        var next = FlowCache()
        next.remember(cache.memory)
        let new = FlowPair(name, entry(12, 160 * second, 161 * second))
        #expect(next.records([new], now: 200 * second, wall: 1).map(\.packets) == [12])
    }

    @Test("directions of a flow find each other, whatever their devices; the one that began first is forward")
    func pairing() throws {
        let second = Self.second
        let echo = { (key: FlowKey, port: UInt16) -> FlowKey in
            var key = key
            (key.sourcePort, key.destinationPort, key.transport) = (77, port, 1)
            return key
        }
        let question = echo(try key("10.48.1.1", "10.48.2.9", 1), 0x0800)
        let answer = echo(try key("10.48.2.9", "10.48.1.1", 1, 7), 0)
        var back = try key("10.48.2.9", "10.48.1.1", 6, 7)
        (back.sourcePort, back.destinationPort) = (443, 40001)
        let there = try key("10.48.1.1", "10.48.2.9", 6)
        let alone = try key("fd48::1", "fd48::2", 17)
        let pairs = FlowPair.pairs([
            (answer, entry(1, 5 * second, 6 * second)), (back, entry(2, 4 * second, 6 * second)),
            (question, entry(3, 5 * second, 6 * second)), (alone, entry(4, 1, 2)),
            (there, entry(5, 3 * second, 6 * second)),
        ]).sorted { $0.entry.packets < $1.entry.packets }
        #expect(pairs.map(\.entry.packets) == [3, 4, 5])
        #expect(pairs[0].reverseKey == answer && pairs[1].reverseKey == nil && pairs[2].reverseKey == back)
        #expect(pairs[2].bytes == 700 && pairs[2].first == 3 * second)
        // Answers come by another device from now on, one of a lower number: the pair stays what it was.
        var moved = back
        moved.interface = 2
        let after = FlowPair.pairs([
            (moved, entry(9, 8 * second, 9 * second)), (back, entry(2, 4 * second, 6 * second)),
            (there, entry(6, 3 * second, 9 * second)),
        ])
        #expect(after.contains { $0.key == there && $0.reverseKey == back } && after.contains { $0.key == moved })
    }
}
