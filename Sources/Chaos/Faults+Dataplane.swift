// SPDX-License-Identifier: Apache-2.0

internal import Agent
internal import BPF
internal import DataplaneMaps
internal import Foundation
internal import Lab
internal import Model
internal import OrderedCollections
internal import SystemDescriptors

/// What carries packets is taken away by hand: one lock at a time, for the other must hold.
extension Fault {
    static let ofPrograms: [Fault] = [
        Fault("program-detached", "a program is detached from its device", mayInterrupt: true) { site, random in
            guard let node = site.node("ebpf", &random) else { return nil }
            if site.lab.status(node)?.attachment == "tcx" {
                let links = site.layout(node).pinnedLinks().shuffled(using: &random)
                guard let link = links.first else { return nil }
                try BPFTampering.detach(link: link.pin)
                return "\(node), \(link.hook.name) of device \(link.interface)"
            }
            let hooks = site.lab.status(node)?.attachments.filter { !$0.hook.hasPrefix("guard_") } ?? []
            guard let place = hooks.randomElement(using: &random) else { return nil }
            let way = ["to_uplink", "to_wireguard"].contains(place.hook) ? "egress" : "ingress"
            try await site.run(node, "tc filter delete dev \(place.device) \(way) pref \(Attachment.firstPriority)")
            return "\(node), \(place.hook) of \(place.device)"
        },
        Fault("qdisc-deleted", "a clsact qdisc is deleted, with the programs that it has", mayInterrupt: true) {
            site, random in
            guard let node = site.node("ebpf", &random), site.lab.status(node)?.attachment == "clsact" else {
                return nil
            }
            // A pod's or the tunnel's: at an uplink it would take both locks in one.
            let devices = Set(site.lab.status(node)?.attachments.filter { $0.hook == "from_pod" }.map(\.device) ?? [])
            guard let device = devices.sorted().randomElement(using: &random) else { return nil }
            try await site.run(node, "tc qdisc delete dev \(device) clsact")
            return "\(node), \(device)"
        },
        Fault("pins-removed", "all pins of maps and programs are removed", mayInterrupt: true) { site, random in
            guard let node = site.node("ebpf", &random) else { return nil }
            var count = 0
            for folder in [site.layout(node).links, site.layout(node).folder] {
                for entry in try listFolder(folder) where !entry.isFolder {
                    try removeFile("\(folder)/\(entry.name)")
                    count += 1
                }
            }
            return "\(node), \(count) pins"
        },
        Fault("map-emptied", "a map of the data plane is emptied", mayInterrupt: true) { site, random in
            guard let node = site.node("ebpf", &random) else { return nil }
            let folder = site.layout(node).folder
            let names = try listFolder(folder).map(\.name).filter { name in
                FaultSite.steeringMaps.contains { name.contains($0) }
            }
            guard let name = names.randomElement(using: &random) else { return nil }
            let count = try BPFTampering.empty(map: "\(folder)/\(name)")
            return "\(node), \(name), \(count) entries"
        },
        Fault("flows-emptied", "the flow tables are emptied") { site, random in
            guard let node = site.node("ebpf", &random) else { return nil }
            let folder = site.layout(node).folder
            var count = 0
            for name in try listFolder(folder).map(\.name) where name.hasPrefix("flows") {
                count += try BPFTampering.empty(map: "\(folder)/\(name)")
            }
            return "\(node), \(count) entries"
        },
        Fault("second-lock-removed", "strict mode's second lock is removed; the first holds") { site, random in
            let node = site.anyNode(&random)
            let links = site.layout(node).pinnedGuardLinks()
            if links.isEmpty { return nil }
            for link in links { try BPFTampering.detach(link: link.pin) }
            for link in links { try removeFile(link.pin) }
            return "\(node), \(links.count) links"
        },
        Fault("rules-deleted", "route mode's rules are deleted, or its table is emptied", mayInterrupt: true) {
            site, random in
            guard let node = site.node("route", &random), let table = site.lab.status(node)?.routeTable else {
                return nil
            }
            let version = site.anyFamily(&random) == .ipv4 ? "-4" : "-6"
            if Bool.random(using: &random) {
                try await site.run(node, "ip \(version) rule delete table \(table)")
                return "\(node), rule of table \(table), \(version)"
            }
            try await site.run(node, "ip \(version) route flush table \(table)")
            return "\(node), table \(table), \(version)"
        },
    ]

    static let ofDevices: [Fault] = [
        Fault("device-deleted", "a WireGuard device is deleted", mayInterrupt: true) { site, random in
            let node = site.anyNode(&random)
            guard let device = site.device(node, site.anyFamily(&random)) else { return nil }
            try await site.run(node, "ip link delete dev \(device)")
            return "\(node), \(device)"
        },
        Fault(
            "all-devices-deleted", "all nodes' WireGuard devices are deleted at once: all keys change",
            mayInterrupt: true
        ) { site, random in
            let family = site.anyFamily(&random)
            for node in site.lab.nodeNames() {
                if let device = site.device(node, family) { try await site.run(node, "ip link delete dev \(device)") }
            }
            return "\(family)"
        },
        Fault("device-altered", "a WireGuard device's port, mark, MTU, address or state is changed", mayInterrupt: true)
        { site, random in
            let node = site.anyNode(&random)
            guard let report = site.lab.status(node)?[site.anyFamily(&random)], let address = report.address else {
                return nil
            }
            let device = report.device
            let commands = [
                "wg set \(device) listen-port 4711", "wg set \(device) fwmark 0x77",
                "ip link set dev \(device) mtu 1300",
                "ip link set dev \(device) down",
                "ip address delete \(address)/\(address.family.bitWidth) dev \(device)",
            ]
            let command = commands[Int.random(in: 0..<commands.count, using: &random)]
            try await site.run(node, command)
            return "\(node), \(command)"
        },
        Fault("peer-altered", "a peer is removed, or its allowed IPs are given to another", mayInterrupt: true) {
            site, random in
            let node = site.anyNode(&random)
            guard let report = site.lab.status(node)?[site.anyFamily(&random)], report.peers.count > 1 else {
                return nil
            }
            let peers = report.peers.shuffled(using: &random)
            let other = site.lab.nodeNames().firstIndex(of: peers[1].node) ?? 0
            let family: AddressFamily = report.address?.family ?? .ipv4
            let commands = [
                "wg set \(report.device) peer \(peers[0].publicKey) remove",
                "wg set \(report.device) peer \(peers[0].publicKey) allowed-ips \(LabAddresses.block(other + 1, family))",
                "wg set \(report.device) peer \(peers[0].publicKey) endpoint \(family == .ipv4 ? "192.0.2.1:9" : "[2001:db8::1]:9")",
            ]
            let command = commands[Int.random(in: 0..<commands.count, using: &random)]
            try await site.run(node, command)
            return "\(node), \(command)"
        },
        Fault("wireguard-killed", "wireguard-go is killed, and its device goes with it", mayInterrupt: true) {
            site, random in
            let node = site.anyNode(&random)
            guard site.lab.status(node)?.backend == "userspace", let device = site.device(node, site.anyFamily(&random))
            else { return nil }
            let processes = try site.lab.place(node).processes().filter {
                let words = ((try? readFile("/proc/\($0.identifier)/cmdline")) ?? []).split(separator: 0)
                return words.count > 1 && words[0].elementsEqual("wireguard-go".utf8)
                    && words.last?.elementsEqual(device.utf8) == true
            }
            if processes.isEmpty { return nil }
            for process in processes { process.signal(SIGKILL) }
            return "\(node), \(device)"
        },
    ]

    /// Fields of the FelixConfiguration that `settings-changed` sets, and to what.
    static let changedSettings: [(String, [ManifestValue])] = [
        ("wireguardMTU", [.integer(0), .integer(1400), .integer(1380)]),
        ("wireguardKeepAlive", ["25s", "0s"]),
        ("wireguardRoutingRulePriority", [.integer(99), .integer(150)]),
        ("bpfLogLevel", ["Info", "Off"]),
    ]

    static let ofNodes: [Fault] = [
        Fault("node-reboots", "a node has what it has after a reboot: other keys, no programs", mayInterrupt: true) {
            site, random in
            let node = site.anyNode(&random)
            // The network comes up behind the guard, as at a boot.
            try await site.run("underlay", "ip link set dev \(node) down")
            try await site.lab.reboot(node)
            try await site.run(node, "\(site.lab.program) guard")
            try await site.run("underlay", "ip link set dev \(node) up")
            let time = try await site.pause(100...2000, &random)
            try await site.lab.startAgent(node)
            return "\(node), \(time) ms"
        },
        Fault("mode-changed", "a node goes from eBPF to route mode, or back", changesHoldings: true) {
            site, random in
            let node = site.anyNode(&random)
            let mode = site.lab.status(node)?.mode == "ebpf" ? "Route" : "EBPF"
            try await site.patch(.dataplaneConfiguration, "node.\(node)", .object(["mode": .string(mode)]))
            try await site.lab.wait("\(node) is in mode \(mode)") { site.lab.status(node)?.mode == mode.lowercased() }
            return "\(node) to \(mode)"
        },
        Fault("settings-changed", "an option is changed while traffic goes on", changesHoldings: true) {
            site, random in
            let (field, values) = changedSettings[Int.random(in: 0..<changedSettings.count, using: &random)]
            let value = values[Int.random(in: 0..<values.count, using: &random)]
            try await site.patch(.felixConfiguration, "default", .object([field: value]))
            try await site.lab.wait("\(field) is \(value.text)", within: Chaos.mendTime) {
                site.lab.nodeNames().allSatisfy { node in
                    site.lab.status(node)?.settings.first { $0.name == field }?.value == value.text
                }
            }
            return "\(field) \(value.text)"
        },
        Fault("uplink-down", "a node's uplink has no carrier for a moment", mayInterrupt: true) { site, random in
            let node = site.anyNode(&random)
            try await site.run("underlay", "ip link set dev \(node) down")
            let time = try await site.pause(200...1500, &random)
            try await site.run("underlay", "ip link set dev \(node) up")
            return "\(node), \(time) ms"
        },
    ]
}
