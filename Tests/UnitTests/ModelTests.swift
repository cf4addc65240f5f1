// SPDX-License-Identifier: Apache-2.0

import Model
import OrderedCollections
import Testing

@Suite("Model")
struct ModelTests {
    @Test(
        "addresses are read and written in their canonical form",
        arguments: [
            ("10.0.0.1", "10.0.0.1"), ("255.255.255.255", "255.255.255.255"), ("fd00::1", "fd00::1"),
            ("FD00:0:0:0:0:0:0:1", "fd00::1"), ("::", "::"), ("::1", "::1"), ("1::", "1::"),
            ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"), ("2001:0:0:1:0:0:0:1", "2001:0:0:1::1"),
            ("::ffff:10.1.2.3", "::ffff:a01:203"),
        ])
    func addresses(_ pair: (String, String)) throws {
        let address = try #require(IPAddress(pair.0))
        #expect(address.description == pair.1)
        #expect(IPAddress(pair.1) == address)
        #expect(IPAddress(bytes: address.bytes) == address)
    }

    @Test(
        "what is no address is refused",
        arguments: [
            "", "10.0.0", "10.0.0.256", "10.0.0.01", "10.0.0.1 ", "1.2.3.4.5", ":", ":::", "1:2:3:4:5:6:7:8:9",
            "fd00::1::2",
            "12345::", "g::", "::1%eth0", "+1.2.3.4", "1:2:3:4:5:6:7", "::-1",
        ])
    func badAddresses(_ text: String) { #expect(IPAddress(text) == nil) }

    @Test("prefixes contain, overlap and count")
    func prefixes() throws {
        let block = try #require(CIDR("10.48.1.0/26"))
        #expect(block.contains(try #require(IPAddress("10.48.1.63"))))
        #expect(!block.contains(try #require(IPAddress("10.48.1.64"))))
        #expect(!block.contains(try #require(IPAddress("::1"))))
        #expect(block.address(at: 63)?.description == "10.48.1.63")
        #expect(block.address(at: 64) == nil)
        #expect(block.offset(of: try #require(IPAddress("10.48.1.7"))) == 7)
        #expect(try #require(CIDR("10.48.0.0/16")).overlaps(block))
        #expect(try #require(CIDR("::/0")).contains(try #require(CIDR("fd00::/8"))))
        for bad in ["10.48.1.1/26", "10.48.1.0/33", "10.48.1.0", "10.48.1.0/", "10.48.1.0/-1", "fd00::/129", "/8"] {
            #expect(CIDR(bad) == nil, "\(bad)")
        }
    }

    @Test("keys: 32 bytes of base64, and no point of small order")
    func keys() throws {
        let text = "fpmFbBX4lMh7hH9vT4zgGnLypBcHz1XA81YFB7ZNAX8="
        #expect(try #require(PublicKey(text)).description == text)
        for bad in [
            "", text.dropLast() + "", " " + text, text + "\n", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "fpmFbBX4lMh7hH9vT4zgGnLypBcHz1XA81YFB7ZNAX9=", "!pmFbBX4lMh7hH9vT4zgGnLypBcHz1XA81YFB7ZNAX8=",
            "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
        ] { #expect(PublicKey(bad) == nil, "\(bad)") }
    }

    @Test("base64 round trips, and is strict")
    func base64() {
        for count in 0..<70 {
            let bytes = (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 37 &+ 11) }
            #expect(Base64.decode(Base64.encode(bytes)) == bytes)
        }
        for bad in ["A", "AA", "AAA", "A===", "AB==", "A=AA", "AAAA="] { #expect(Base64.decode(bad) == nil, "\(bad)") }
    }

    @Test("merge patch as RFC 7386 has it")
    func mergePatch() {
        let base: ManifestValue = .object(["a": .object(["b": "c", "d": .integer(1)]), "x": .array(["1"])])
        let patch: ManifestValue = .object(["a": .object(["b": .null, "e": true]), "x": "y"])
        #expect(base.merging(patch) == .object(["a": .object(["d": .integer(1), "e": true]), "x": "y"]))
        #expect(ManifestValue.null.merging(.object(["a": .object(["b": .null])])) == .object(["a": .object([:])]))
    }

    @Test("settings merge field by field, and name what is wrong with each")
    func settings() throws {
        func felix(_ name: String, _ spec: ManifestValue) -> Manifest {
            Manifest(key: ResourceKey(.felixConfiguration, name), content: .object(["spec": spec]))
        }
        var problems: [Problem] = []
        let settings = Settings(
            felix: [
                felix("node.n1", .object(["wireguardListeningPort": .integer(4000), "wireguardEnabledV6": true])),
                felix("default", .object(["wireguardEnabled": true, "wireguardListeningPort": .integer(3000)])),
                felix("node.n2", .object(["wireguardEnabled": false])),
            ], dataplane: [], node: "n1", problems: &problems)
        #expect(problems == [])
        #expect(
            settings.isEnabled(.ipv4) == true && settings.isEnabled(.ipv6) == true
                && settings.ipv4.listeningPort == 4000)
        let equal = Settings(
            felix: [
                felix(
                    "default",
                    .object(["wireguardInterfaceNameV6": "wireguard.cali", "wireguardListeningPort": .integer(51821)]))
            ],
            dataplane: [], node: "n1", problems: &problems)
        #expect(problems.map(\.field).sorted() == ["spec.wireguardInterfaceNameV6", "spec.wireguardListeningPortV6"])
        #expect(equal.ipv6.interfaceName == "wg-v6.cali" && equal.ipv6.listeningPort == 51820)
        problems = []
        _ = Settings(
            felix: [
                felix(
                    "default",
                    .object([
                        "wireguardEnabled": "yes", "wireguardInterfaceName": "a-name-that-is-too-long",
                        "wireguardMTU": .integer(100), "wireguardKeepAlive": "soon", "routeSource": "Guess",
                        "bpfDataIfacePattern": "([", "wireguardEnabeld": true, "logSeverityScreen": "Info",
                    ]))
            ], dataplane: [], node: "n1", problems: &problems)
        let fields = Set(problems.map(\.field))
        #expect(
            fields == [
                "spec.wireguardEnabled", "spec.wireguardInterfaceName", "spec.wireguardMTU", "spec.wireguardKeepAlive",
                "spec.routeSource", "spec.bpfDataIfacePattern", "spec.wireguardEnabeld",
            ])
        for problem in problems {
            #expect(
                problem.resource == "FelixConfiguration/default" && !problem.value.isEmpty && !problem.remedy.isEmpty)
        }
        #expect(problems.first { $0.field == "spec.wireguardEnabeld" }?.remedy == "did you mean wireguardEnabled?")
    }
}
