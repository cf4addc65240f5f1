// SPDX-License-Identifier: Apache-2.0

import Foundation
import Model
import Netlink
import SystemDescriptors
import WireGuard

/// Peers of a WireGuard device: all, one change, read back, beside wg(8).
struct PeersBenchmark: Benchmark {
    static let name = "peers"
    static let text = "1,000 and 5,000 peers with 8 allowed IPs: set, one changed, read, beside wg"

    // Sockets of wireguard-go are the machine's: by this process's number, so that runs do not meet.
    private static let own = "b\(ProcessInfo.processInfo.processIdentifier)-0"
    private static let other = "b\(ProcessInfo.processInfo.processIdentifier)-1"

    static func run(_ context: BenchmarkContext) async throws -> [Result] {
        try await Task.detachedThread {
            try inNewNetworkNamespace {
                try RouteSession().setLink(1, up: true)
                let backend = try BackendSelection.backend(context.wireguard == "kernel" ? .kernel : .userspace)
                defer { for device in [own, other] { try? backend.delete(device: device) } }
                for device in [own, other] { try backend.create(device: device, mtu: 1420) }
                let counts = context.effort.pick([1000, 5000], quick: [1000])
                return try counts.flatMap { try measure(backend, $0, context) }
            }
        }
    }

    private static func measure(_ backend: any WireGuardBackend, _ count: Int, _ context: BenchmarkContext) throws
        -> [Result]
    {
        let folder = "/run/wgplane-bench-\(ProcessInfo.processInfo.processIdentifier)-peers"
        try makeFolders(folder, mode: 0o700)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let key = PrivateKey.generate()
        let peers = try (0..<count).map(peer)
        var moved = peers
        moved[count / 2].allowedIPs[0] = try prefix("10.200.0.1/32")
        try Tools.run(["wg", "genkey"], output: "\(folder)/key")
        let otherKey = try String(contentsOfFile: "\(folder)/key", encoding: .utf8)
        for (file, list) in [("all", peers), ("moved", moved), ("none", [])] {
            try configuration(list, key: otherKey).write(
                toFile: "\(folder)/\(file)", atomically: false, encoding: .utf8)
        }
        try backend.apply(DeviceChange(privateKey: key, listeningPort: 51820), to: own)
        func empty() throws {
            let state = try backend.state(device: own)
            let removals = (state?.peers.keys).map { keys in
                keys.map { key in
                    var change = PeerChange(key)
                    change.remove = true
                    return change
                }
            }
            try backend.apply(DeviceChange(peers: removals ?? []), to: own)
        }
        var isMoved = false
        var isOtherMoved = false
        var turns = Alternation()
        turns.add("set") {
            try empty()
            isMoved = false
            return try Tools.milliseconds { try backend.apply(DeviceChange(peers: peers), to: own) }
        }
        turns.add("setconf") {
            try Tools.run(["wg", "setconf", other, "\(folder)/none"])
            isOtherMoved = false
            return try Tools.milliseconds { try Tools.run(["wg", "setconf", other, "\(folder)/all"]) }
        }
        turns.add("change") {
            isMoved.toggle()
            var change = PeerChange(peers[count / 2].publicKey)
            change.updateOnly = true
            var removal = change
            let (old, new) = (peers[count / 2].allowedIPs[0], moved[count / 2].allowedIPs[0])
            change.allowedIPs = [isMoved ? new : old]
            removal.removedAllowedIPs = [isMoved ? old : new]
            let changes = [change, removal]
            return try Tools.milliseconds { try backend.apply(DeviceChange(peers: changes), to: own) }
        }
        turns.add("syncconf") {
            isOtherMoved.toggle()
            return try Tools.milliseconds {
                try Tools.run(["wg", "syncconf", other, "\(folder)/\(isOtherMoved ? "moved" : "all")"])
            }
        }
        turns.add("wg set") {
            isOtherMoved.toggle()
            let wanted = (isOtherMoved ? moved : peers)[count / 2]
            let prefixes = wanted.allowedIPs.map(\.description).joined(separator: ",")
            return try Tools.milliseconds {
                try Tools.run(["wg", "set", other, "peer", "\(wanted.publicKey)", "allowed-ips", prefixes])
            }
        }
        turns.add("read") {
            try check(backend, own, isMoved ? moved : peers)
            try check(backend, other, isOtherMoved ? moved : peers)
            var found = 0
            let time = try Tools.milliseconds { found = try backend.state(device: own)?.peers.count ?? 0 }
            guard found == count else { throw BenchmarkError("\(found) peers instead of \(count)") }
            return time
        }
        turns.add("dump") {
            try Tools.milliseconds {
                try Tools.run(["wg", "show", other, "dump"], output: "\(folder)/dump")
                try? removeFile("\(folder)/dump")
            }
        }
        let values = try turns.run(repeats: min(5, context.effort.repeats))
        let starts = "wg starts, and reads its file"
        let of = "\(context.wireguard), \(Figure.text(Double(count))) peers"
        return [
            try Result(
                name, "\(of): all set", values["set"] ?? [], "ms", yardstick: ("wg setconf", values["setconf"] ?? []),
                goal: .ratioAtMost(1), note: starts),
            try Result(
                name, "\(of): one changed", values["change"] ?? [], "ms",
                yardstick: ("wg syncconf", values["syncconf"] ?? []), goal: .ratioAtMost(0.02),
                note: starts),
            try Result(
                name, "\(of): one changed, beside one command", values["change"] ?? [], "ms",
                yardstick: ("wg set", values["wg set"] ?? []), note: "wg starts"),
            try Result(
                name, "\(of): read back", values["read"] ?? [], "ms",
                yardstick: ("wg show dump", values["dump"] ?? [])),
        ]
    }

    /// That a device has these peers, and these allowed IPs.
    private static func check(_ backend: any WireGuardBackend, _ device: String, _ peers: [PeerChange]) throws {
        let found = try backend.state(device: device)?.peers ?? [:]
        guard found.count == peers.count, peers.allSatisfy({ found[$0.publicKey]?.allowedIPs == Set($0.allowedIPs) })
        else { throw BenchmarkError("\(device) has not the \(peers.count) peers that it was told of") }
    }

    private static func prefix(_ text: String) throws -> CIDR {
        guard let prefix = CIDR(text) else { throw BenchmarkError("\(text) is no prefix") }
        return prefix
    }

    private static func peer(_ number: Int) throws -> PeerChange {
        var bytes = [UInt8](repeating: 7, count: 32)
        for index in 0..<4 { bytes[index] = UInt8(truncatingIfNeeded: number >> (8 * index)) }
        guard let key = PublicKey(bytes: bytes) else { throw BenchmarkError("no key") }
        var change = PeerChange(key)
        change.endpoint = Endpoint(
            address: IPAddress(family: .ipv4, bits: 0x0a01_0000 + UInt128(number)), port: 51820)
        change.replaceAllowedIPs = true
        change.allowedIPs = try (0..<8).map { try prefix("10.\(64 + number >> 8).\(number & 255).\($0 * 32)/27") }
        return change
    }

    /// As wg(8) reads it.
    private static func configuration(_ peers: [PeerChange], key: String) -> String {
        var text = "[Interface]\nListenPort = 51821\nPrivateKey = \(key)\n"
        for peer in peers {
            text += "[Peer]\nPublicKey = \(peer.publicKey)\n"
            if let endpoint = peer.endpoint { text += "Endpoint = \(endpoint)\n" }
            text += "AllowedIPs = \(peer.allowedIPs.map(\.description).joined(separator: ", "))\n"
        }
        return text
    }
}
