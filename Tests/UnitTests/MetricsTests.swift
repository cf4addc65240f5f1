// SPDX-License-Identifier: Apache-2.0

import BPF
import DataplaneMaps
import Flows
import Foundation
import Model
import Testing

@Suite("Metrics and archives")
struct MetricsTests {
    @Test("Prometheus' text and OpenMetrics'")
    func text() {
        var packets = MetricFamily("wgplane_packets_total", .counter, "Packets \\ by\nhook.")
        packets.add(UInt64(7), ["hook": "from_pod", "way": "a \"b\" \\ c\nd"])
        var felix = MetricFamily("wireguard_bytes_sent", .counter, "Bytes.")
        felix.add(1.5)
        var time = MetricFamily("wgplane_pass_seconds", .histogram, "Time.")
        time.add(buckets: [(0.5, 1), (1, 2)], sum: 3.25, count: 3)
        let empty = MetricFamily("wgplane_none", .gauge, "Nothing.")
        let families = [packets, felix, time, empty]
        #expect(
            MetricText.prometheus.render(families) == """
                # HELP wgplane_packets_total Packets \\\\ by\\nhook.
                # TYPE wgplane_packets_total counter
                wgplane_packets_total{hook="from_pod",way="a \\"b\\" \\\\ c\\nd"} 7
                # HELP wgplane_pass_seconds Time.
                # TYPE wgplane_pass_seconds histogram
                wgplane_pass_seconds_bucket{le="0.5"} 1
                wgplane_pass_seconds_bucket{le="1"} 2
                wgplane_pass_seconds_bucket{le="+Inf"} 3
                wgplane_pass_seconds_sum 3.25
                wgplane_pass_seconds_count 3
                # HELP wireguard_bytes_sent Bytes.
                # TYPE wireguard_bytes_sent untyped
                wireguard_bytes_sent 1.5

                """)
        let open = MetricText.openMetrics.render(families)
        #expect(open.contains("# TYPE wgplane_packets counter\nwgplane_packets_total{"))
        #expect(open.contains("# TYPE wireguard_bytes_sent unknown\nwireguard_bytes_sent 1.5\n"))
        #expect(open.hasSuffix("# EOF\n"))
        #expect(MetricText(accept: "application/openmetrics-text; version=1.0.0,text/plain;q=0.5") == .openMetrics)
        #expect(MetricText(accept: "*/*") == .prometheus)
    }

    @Test("bytes as hexadecimal text, both ways; what is none is refused")
    func hex() throws {
        let bytes: [UInt8] = [0, 1, 0x7f, 0x80, 0xab, 0xff]
        #expect(HexBytes(bytes).text == "00017f80abff")
        #expect(HexBytes(text: "00017F80aBff")?.bytes == bytes)
        for text in ["0", "zz", "0g", "00 1"] { #expect(HexBytes(text: text) == nil) }
        #expect(throws: DecodingError.self) { try JSONDecoder().decode([HexBytes].self, from: Data("[\"0\"]".utf8)) }
    }

    @Test("longest prefixes by address")
    func routes() throws {
        let lookup = RouteLookup(
            try ["10.0.0.0/8": 1, "10.48.0.0/16": 5, "10.48.1.7/32": 6, "fd48::/48": 7, "::/0": 8].reduce(into: [:]) {
                $0[try #require(CIDR($1.key))] = $1.value
            })
        for (text, slot) in [
            ("10.48.1.7", 6), ("10.48.1.8", 5), ("10.49.0.1", 1), ("11.0.0.1", DestinationSlot.outside),
            ("fd48::1", 7), ("fd49::1", 8),
        ] {
            #expect(lookup.slot(of: try #require(IPAddress(text))) == slot, "\(text)")
        }
        #expect(lookup.route(to: try #require(IPAddress("10.48.1.8")))?.prefix.description == "10.48.0.0/16")
    }

    @Test("a packet as its sender would make it is read back as it was meant")
    func synthetic() throws {
        for (from, to, transport) in [
            ("10.48.1.1", "10.48.2.1", UInt8(6)), ("10.48.1.1", "10.48.2.1", 17), ("10.48.1.1", "10.48.2.1", 1),
            ("fd48::1", "fd48::2", 6), ("fd48::1", "fd48::2", 17), ("fd48::1", "fd48::2", 58),
            ("10.48.1.1", "10.48.2.1", 132),
        ] {
            let packet = SyntheticPacket(
                source: try #require(IPAddress(from)), destination: try #require(IPAddress(to)), transport: transport,
                sourcePort: 1234, destinationPort: 443)
            guard case .facts(let facts) = ParsedPacket(packet.bytes(ethernet: true), hasEthernet: true) else {
                Issue.record("\(packet) is not read")
                continue
            }
            #expect(facts.source == packet.source && facts.destination == packet.destination)
            #expect(facts.transport == transport && facts.hopLimit == 64)
            if transport == 6 || transport == 17 {
                #expect(facts.sourcePort == 1234 && facts.destinationPort == 443)
                #expect(facts.startsConnection == (transport == 6))
            }
            if facts.isICMP { #expect(facts.isEchoRequest && facts.sourcePort == 1234) }
        }
    }
}
