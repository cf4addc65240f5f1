// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Datastore
import Foundation
import Lab
import Model
import Netlink
import OrderedCollections
import SystemDescriptors
import Testing
import WireGuard

/// What Calico's Felix shows of its WireGuard, shown of ours: in both modes, for each family and for both.
/// `FelixScenarioTests` has the list that leads from theirs to these.
@Suite("Cluster: as Felix", .serialized)
struct FelixTests {
    struct Way: CustomTestStringConvertible, Sendable {
        var mode: ModeChoice
        var families: [AddressFamily]
        var isRoute: Bool { mode == .route }
        var testDescription: String {
            "\(mode.rawValue), \(families.map(\.description).joined(separator: " and "))"
        }
        static let all = [ModeChoice.ebpf, .route].flatMap { mode in
            [[AddressFamily.ipv4], [.ipv6], [.ipv4, .ipv6]].map { Way(mode: mode, families: $0) }
        }
    }

    private func felix(_ lab: Lab, _ fields: OrderedDictionary<String, ManifestValue>, _ name: String = "default")
        async throws
    {
        try await Cluster.patch(
            lab, .felixConfiguration, name,
            .object([
                "apiVersion": .string(ResourceKind.felixConfiguration.apiVersion),
                "kind": .string(ResourceKind.felixConfiguration.rawValue),
                "metadata": .object(["name": .string(name)]), "spec": .object(fields),
            ]))
    }

    private func shell(_ lab: Lab, _ node: String, _ line: String) async throws -> String {
        try await Cluster.execute(lab, node, ["bash", "-c", line]).output
    }

    private func ip(_ family: AddressFamily) -> String { family == .ipv4 ? "ip" : "ip -6" }
    private func device(_ family: AddressFamily) -> String { DeviceSettings(family).interfaceName }

    /// Whether a pod's questions are answered, and what was seen of them between the nodes.
    private func talk(
        _ lab: Lab, _ source: String, _ target: String, count: Int = 10
    ) async throws -> (answers: Int, seen: CaptureCount) {
        let pods = await lab.state.pods
        let addresses =
            pods.first { $0.name == target }?.addresses
            ?? lab.spec.families.map { LabAddresses.node(Int(target.dropFirst(4)) ?? 0, $0) }
        let server = try EchoServer(
            in: lab.place(target), port: Prober.port, isIPv6: lab.spec.families.map { $0 == .ipv6 })
        defer { server.stop() }
        let prober = Prober(try lab.place(source))
        let lab = lab
        return try await Task.detachedThread {
            let capture = try UnderlayCapture(
                underlay: lab.place("underlay"), pools: lab.spec.families.map(LabAddresses.pool),
                ports: [51820, 51821, 28150, 28151])
            var answers = 0
            for address in addresses {
                for number in 0..<count {
                    let transport: ProbeProtocol = number % 2 == 0 ? .udp : .tcp
                    if prober.ask(transport, address.bytes, identifier: UInt16(number), timeoutMilliseconds: 300) {
                        answers += 1
                    }
                }
            }
            return (answers, capture.stop())
        }
    }

    @Test("device, keys, rule and table; encryption; off, and on again with other names", arguments: Way.all)
    func device(_ way: Way) async throws {
        try await Cluster.run(families: way.families, mode: way.mode) { lab in
            let families = way.families
            // 1: bootstrap. 6: the Node has keys. 2, 3: rule and table.
            let log = try String(contentsOfFile: lab.paths.log("node1"), encoding: .utf8)
            #expect(log.contains("agent starts") && log.contains("data plane"))
            for family in families {
                let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
                let key = try #require(node?.annotations[NodeAnnotation.publicKey(family)])
                #expect(PublicKey(key) != nil)
                let rules = try await shell(lab, "node1", "\(ip(family)) rule")
                let block = LabAddresses.block(2, family)
                if way.isRoute {
                    #expect(rules.contains("99:\tnot from all fwmark 0x20000000/0x20000000 lookup 1"), "\(rules)")
                    let table = try await shell(lab, "node1", "\(ip(family)) route show table 1")
                    #expect(table.contains("\(block) dev \(device(family))"), "\(table)")
                    #expect(table.contains("throw \(LabAddresses.block(1, family))"))
                } else {
                    #expect(!rules.contains("99:"))
                    let maps = try lab.maps("node1")
                    let slot = try maps.routes.slot(of: LabAddresses.pod(2, 1, family))
                    #expect(maps.destinations[slot].action == .tunnel)
                }
                // 7: a forged key heals.
                try await Cluster.patch(
                    lab, .node, "node1",
                    .object([
                        "metadata": .object([
                            "annotations": .object([
                                NodeAnnotation.publicKey(family): .string(
                                    try #require(PrivateKey.generate().publicKey).description)
                            ])
                        ])
                    ]))
                try await lab.wait("the key is written anew") {
                    let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
                    return node?.annotations[NodeAnnotation.publicKey(family)] == key
                }
            }
            try await lab.waitUntilSettled(enabled: true)
            // 8: packets of WireGuard both ways, none of the pods'; wg's transfer.
            let (answers, seen) = try await talk(lab, "node1-pod1", "node2-pod1")
            #expect(answers == 10 * families.count)
            #expect(seen.clearPackets == 0 && seen.wireguardPackets >= 20 * families.count, "\(seen)")
            for family in families {
                let transfer = try await shell(lab, "node1", "wg show \(device(family)) transfer")
                let bytes = transfer.split(separator: "\t").dropFirst().compactMap {
                    Int($0.trimmingCharacters(in: .whitespacesAndNewlines))
                }
                #expect(bytes.count == 2 && bytes.allSatisfy { $0 > 1000 }, "\(transfer)")
            }
            // 4, 14, 15: off: no device, no rule, no key, and yet connected.
            try await Cluster.switchWireGuard(lab, on: false)
            try await lab.waitUntilSettled(enabled: false)
            #expect(try await shell(lab, "node1", "wg") == "")
            let node = try await lab.datastore.read().manifests[ResourceKey(.node, "node1")]
            #expect(node?.annotations.keys.contains { $0.lowercased().contains("wireguard") } == false)
            for family in families {
                #expect(try await !shell(lab, "node1", "\(ip(family)) rule").contains("99:"))
                #expect(try await shell(lab, "node1", "\(ip(family)) route show table 1 2>/dev/null") == "")
                #expect(try await !shell(lab, "node1", "ip -br link").contains(device(family)))
            }
            let off = try await talk(lab, "node1-pod1", "node2-pod1", count: 4)
            #expect(off.answers == 4 * families.count && off.seen.clearPackets > 0 && off.seen.wireguardPackets == 0)
            // 4: on again with other names, MTUs, ports and priority.
            try await felix(
                lab,
                [
                    "wireguardInterfaceName": "wg0", "wireguardInterfaceNameV6": "wg1",
                    "wireguardMTU": .integer(1400), "wireguardMTUV6": .integer(1380),
                    "wireguardListeningPort": .integer(28150), "wireguardListeningPortV6": .integer(28151),
                    "wireguardRoutingRulePriority": .integer(100),
                ])
            try await Cluster.switchWireGuard(lab, on: true)
            try await lab.waitUntilSettled(enabled: true)
            for family in families {
                let (name, mtu, port) = family == .ipv4 ? ("wg0", 1400, 28150) : ("wg1", 1380, 28151)
                #expect(try await shell(lab, "node1", "ip link show \(name)").contains("mtu \(mtu)"))
                let shown = try await shell(lab, "node1", "wg show \(name)")
                #expect(shown.contains("listening port: \(port)") && shown.contains(":\(port)\n"), "\(shown)")
                let hasRule = try await shell(lab, "node1", "\(ip(family)) rule").contains("100:\tnot from all")
                #expect(hasRule == way.isRoute)
            }
            let again = try await talk(lab, "node1-pod1", "node2-pod1", count: 4)
            #expect(again.answers == 4 * families.count && again.seen.clearPackets == 0)
        }
    }

    @Test(
        "threads for the device's packets, where the kernel has them; else said once",
        arguments: [ModeChoice.ebpf, .route])
    func threading(_ mode: ModeChoice) async throws {
        try await Cluster.run(families: [.ipv4], mode: mode) { lab in
            let isKernel = lab.status("node1")?.backend == "kernel"
            let file = "/sys/class/net/wireguard.cali/threaded"
            let has = try await Cluster.execute(lab, "node1", ["test", "-e", file]).status == 0
            for (flag, text) in [(true, "1"), (false, "0")] {
                try await felix(lab, ["wireguardThreadingEnabled": .bool(flag)])
                try await lab.wait("threading is \(flag)") {
                    lab.status("node1")?.settings.first { $0.name == "wireguardThreadingEnabled" }?.value == "\(flag)"
                }
                if isKernel, has {
                    try await lab.wait("the kernel says \(text)") {
                        try await shell(lab, "node1", "cat \(file)").hasPrefix(text)
                    }
                } else if flag {
                    try await lab.wait("status says that it cannot be") {
                        lab.status("node1")?.problems.contains { $0.field == "threaded" } == true
                    }
                }
            }
            try await lab.wait("nothing is complained of") { lab.status("node1")?.problems.isEmpty == true }
            let log = try String(contentsOfFile: lab.paths.log("node1"), encoding: .utf8)
            let said = log.split(separator: "\n").count { $0.contains("threaded") && $0.contains("problem=") }
            #expect(said <= 1, "once, not every second")
        }
    }

    @Test("a host policy that denies WireGuard's port, or all: tunnels come up and stay", arguments: Way.all)
    func hostPolicy(_ way: Way) async throws {
        try await Cluster.run(families: way.families, enabled: false, mode: way.mode) { lab in
            let accept = "meta l4proto { icmp, ipv6-icmp, tcp } accept"
            for (policy, rules) in [
                ("accept", ["udp dport { 51820, 51821 } drop"]),
                ("accept", ["iifname eth0 udp dport { 51820, 51821 } drop"]),
                ("drop", [accept]), ("drop", [accept, "iifname eth0 udp dport { 51820, 51821 } drop"]),
            ] {
                var lines = [
                    "add table inet hostpolicy",
                    "add chain inet hostpolicy input { type filter hook input priority 0; policy \(policy); }",
                ]
                lines += rules.map { "add rule inet hostpolicy input \($0)" }
                for node in lab.nodeNames() {
                    let done = try await Cluster.execute(
                        lab, node,
                        ["bash", "-c", "printf '%s\\n' \(lines.map { "'\($0)'" }.joined(separator: " ")) | nft -f -"])
                    try #require(done.status == 0, "\(done.output)")
                }
                try await Cluster.configure(lab, ["wireguardInputRule": "Auto"])
                try await Cluster.switchWireGuard(lab, on: true)
                try await lab.waitUntilSettled(enabled: true)
                let chain = try await shell(lab, "node1", "nft list chain inet hostpolicy input")
                #expect(chain.contains("wgplane: WireGuard in"), "\(chain)")
                #expect(lab.status("node1")?.firewallExceptions.contains("inet hostpolicy input") == true)
                let (answers, seen) = try await talk(lab, "node1-pod1", "node2-pod1", count: 4)
                #expect(answers == 4 * way.families.count && seen.clearPackets == 0 && seen.wireguardPackets > 0)
                try await Cluster.switchWireGuard(lab, on: false)
                try await lab.waitUntilSettled(enabled: false)
                #expect(try await !shell(lab, "node1", "nft list ruleset").contains("wgplane"))
                for node in lab.nodeNames() { _ = try await shell(lab, node, "nft delete table inet hostpolicy") }
            }
        }
    }

    @Test("a policy that denies what pods send: nothing in the tunnel; allowed again, it goes on", arguments: Way.all)
    func podPolicy(_ way: Way) async throws {
        try await Cluster.run(families: way.families, mode: way.mode) { lab in
            let lines = [
                "add table inet hostpolicy",
                "add chain inet hostpolicy forward { type filter hook forward priority 0; }",
                "add rule inet hostpolicy forward iifname \"cali*\" udp dport \(Prober.port) drop",
                "add rule inet hostpolicy forward iifname \"cali*\" tcp dport \(Prober.port) drop",
            ]
            _ = try await shell(
                lab, "node1", "printf '%s\\n' \(lines.map { "'\($0)'" }.joined(separator: " ")) | nft -f -")
            if !way.isRoute {
                try await lab.wait("pods' packets take the stack") { lab.status("node1")?.steeringPath == "Stack" }
            }
            func sent() async throws -> UInt64 {
                let names = way.families.map(device)
                return try await Cluster.onNode(lab, "node1") {
                    try names.reduce(0) { sum, name in
                        try BackendSelection.state(device: name)?.1.peers.values.reduce(sum) { $0 + $1.sentBytes }
                            ?? sum
                    }
                }
            }
            let before = try await sent()
            let denied = try await talk(lab, "node1-pod1", "node2-pod1", count: 2)
            #expect(denied.answers == 0 && denied.seen.clearPackets == 0)
            #expect(try await sent() - before < 400, "at most a keepalive for each device")
            _ = try await shell(
                lab, "node1",
                "nft insert rule inet hostpolicy forward iifname 'cali*' udp dport \(Prober.port) accept; nft insert rule inet hostpolicy forward iifname 'cali*' tcp dport \(Prober.port) accept"
            )
            let allowed = try await talk(lab, "node1-pod1", "node2-pod1", count: 4)
            #expect(allowed.answers == 4 * way.families.count && allowed.seen.clearPackets == 0)
            #expect(try await sent() - before > 400)
        }
    }

    @Test("three nodes: a borrowed address, one without WireGuard, hosts and pods", arguments: Way.all)
    func threeNodes(_ way: Way) async throws {
        try await Cluster.run(nodes: 3, families: way.families, mode: way.mode) { lab in
            // 18: an address of node3's block, borrowed by node1, is node1's own.
            for family in way.families {
                let address = LabAddresses.pod(3, 9, family)
                let block = LabAddresses.block(3, family)
                let key = try #require(
                    try await lab.datastore.read().manifests(of: .ipamBlock).first {
                        $0.content[["spec", "cidr"]]?.text == block.description
                    }?.key)
                try await lab.datastore.update(key) { current in
                    guard var content = current, case .array(var attributes) = content[["spec", "attributes"]],
                        case .array(var allocations) = content[["spec", "allocations"]]
                    else { return current }
                    attributes.append(
                        .object([
                            "handle_id": "k8s-pod-network.borrower",
                            "secondary": .object(["namespace": "default", "node": "node1", "pod": "borrower"]),
                        ]))
                    allocations[9] = .integer(Int64(attributes.count - 1))
                    content[["spec", "attributes"]] = .array(attributes)
                    content[["spec", "allocations"]] = .array(allocations)
                    return content
                }
                try await lab.wait("the borrower keeps it, the others send it there") {
                    if way.isRoute {
                        let own = try await shell(lab, "node1", "\(ip(family)) route show table 1")
                        let other = try await shell(lab, "node2", "\(ip(family)) route show table 1")
                        return own.contains("throw \(address)") && other.contains("\(address) dev \(device(family))")
                    }
                    let maps = try lab.maps("node2")
                    let slot = try maps.routes.slot(of: address)
                    return try lab.maps("node1").routes.slot(of: address) == DestinationSlot.local
                        && maps.destinations.slotOwners()[slot]?.node == "node1"
                }
            }
            // 19, 21: node3 off: encrypted between the others, in clear to it.
            try await felix(lab, ["wireguardEnabled": false, "wireguardEnabledV6": false], "node.node3")
            try await lab.wait("node3 is off, and the others know") {
                lab.status("node3")?.mode == "disabled"
                    && way.families.allSatisfy { lab.status("node1")?[$0]?.peers.map(\.node) == ["node2"] }
            }
            for (source, target, isEncrypted) in [
                ("node1-pod1", "node2-pod1", true), ("node1-pod1", "node3-pod1", false),
                ("node3-pod1", "node1-pod1", false),
                // 20: from a host to a pod. 21: not if either side is off.
                ("node1", "node2-pod1", true), ("node1", "node3-pod1", false), ("node3", "node1-pod1", false),
                // Within a node.
                ("node1", "node1-pod1", true),
            ] {
                let (answers, seen) = try await talk(lab, source, target, count: 4)
                #expect(answers == 4 * way.families.count, "\(source) to \(target)")
                #expect((seen.clearPackets == 0) == isEncrypted, "\(source) to \(target): \(seen)")
            }
        }
    }

    @Test("addresses of pods as the source of routes, with host encryption", arguments: Way.all)
    func workloadAddresses(_ way: Way) async throws {
        try await Cluster.run(families: way.families, mode: way.mode) { lab in
            // 22.
            try await felix(lab, ["routeSource": "WorkloadIPs", "wireguardHostEncryptionEnabled": true])
            try await lab.wait("nodes and pods are peers' addresses") {
                for family in way.families {
                    let allowed = try await shell(lab, "node1", "wg show \(device(family)) allowed-ips")
                    let wanted = [LabAddresses.pod(2, 1, family), LabAddresses.node(2, family)]
                    guard wanted.allSatisfy({ allowed.contains("\($0)/\(family.bitWidth)") }),
                        lab.status("node1")?[family]?.address == LabAddresses.node(1, family),
                        lab.status("node2")?[family]?.address == LabAddresses.node(2, family)
                    else { return false }
                }
                return true
            }
            try await lab.waitUntilSettled(enabled: true)
            if way.isRoute {
                for family in way.families {
                    let table = try await shell(lab, "node1", "\(ip(family)) route show table 1")
                    for address in [LabAddresses.pod(2, 1, family), LabAddresses.node(2, family)] {
                        #expect(table.contains("\(address) dev \(device(family))"), "\(table)")
                    }
                }
                let chain = try await shell(lab, "node1", "nft list chain inet wgplane prerouting")
                #expect(chain.contains("iifname \"eth0\"") && chain.contains("| 0x20000000"), "\(chain)")
                let valid = try await shell(lab, "node1", "cat /proc/sys/net/ipv4/conf/all/src_valid_mark")
                #expect(valid.hasPrefix("1"))
            }
            for (source, target) in [
                ("node1-pod1", "node2-pod1"), ("node1", "node2-pod1"), ("node1-pod1", "node2"), ("node1", "node2"),
                ("node1", "node1-pod1"),
            ] {
                let (answers, seen) = try await talk(lab, source, target, count: 4)
                #expect(answers == 4 * way.families.count, "\(source) to \(target)")
                #expect(seen.clearPackets == 0, "\(source) to \(target): \(seen)")
                let crosses = target != "node1-pod1"
                #expect(seen.wireguardPackets > 0 || !crosses)
            }
            // A client outside the cluster is answered.
            for family in way.families {
                let server = try EchoServer(
                    in: lab.place("node1-pod1"), port: Prober.port, isIPv6: [family == .ipv6])
                defer { server.stop() }
                let outside = Prober(try lab.place("underlay"))
                _ = try await shell(
                    lab, "underlay",
                    "\(ip(family)) route replace \(LabAddresses.block(1, family)) via \(LabAddresses.node(1, family))")
                let address = LabAddresses.pod(1, 1, family).bytes
                let answered = try await Task.detachedThread { outside.ask(.tcp, address, identifier: 1) }
                #expect(answered, "\(family)")
            }
        }
    }
}
