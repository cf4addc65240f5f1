// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Flows
internal import Model
internal import SystemDescriptors

/// Whether two places of a lab reach each other, and which way the packets went.
public struct PairResult: Sendable, Codable, Equatable {
    public var source: String
    public var destination: String
    /// `icmp`, `tcp`, `udp`.
    public var `protocol`: String
    /// `IPv4`, `IPv6`.
    public var family: String
    public var reachable: Bool
    /// `tunnel`, `local`, `clear`; `none` when no flow was seen.
    public var way: String
    /// Of both directions, as the source's node counted them.
    public var packets: UInt64
}

/// The result of `LabCheck`.
public struct CheckResult: Sendable, Codable {
    public var pairs: [PairResult]
    public var underlay: CaptureCount
}

/// ICMP, TCP and UDP between every two pods, and from each node to the pods of others.
public struct LabCheck: Sendable {
    private let lab: Lab

    public init(_ lab: Lab) { self.lab = lab }

    public func run() async throws -> CheckResult {
        let pods = await lab.state.pods
        let lab = lab
        let families = lab.spec.families
        return try await Task.detachedThread {
            let capture = try UnderlayCapture(
                underlay: lab.place("underlay"), pools: families.map(LabAddresses.pool))
            var servers: [EchoServer] = []
            defer { for server in servers { server.stop() } }
            for pod in pods {
                servers.append(
                    try EchoServer(
                        in: lab.place(pod.name), port: Prober.port, isIPv6: families.map { $0 == .ipv6 }))
            }
            var pairs: [PairResult] = []
            var identifier: UInt16 = 1
            let sources =
                pods.map { ($0.name, $0.node, true) } + lab.nodeNames().enumerated().map { ($1, $0 + 1, false) }
            for (name, node, isPod) in sources {
                let prober = Prober(try lab.place(name))
                let first = pairs.count
                for pod in pods where pod.name != name && (isPod || pod.node != node) {
                    for address in pod.addresses {
                        for transport in ProbeProtocol.allCases {
                            let reachable = prober.ask(transport, address.bytes, identifier: identifier)
                            identifier &+= 1
                            pairs.append(
                                PairResult(
                                    source: name, destination: pod.name, protocol: transport.rawValue,
                                    family: address.family.description, reachable: reachable, way: "none", packets: 0))
                        }
                    }
                }
                // At once: flows of ICMP are forgotten after seconds.
                try Self.addWays(&pairs[first...], lab, lab.nodeNames()[node - 1], node, pods)
            }
            return CheckResult(pairs: pairs, underlay: capture.stop())
        }
    }

    /// Looks the pairs up in the flow tables of their source's node.
    private static func addWays(
        _ pairs: inout ArraySlice<PairResult>, _ lab: Lab, _ node: String, _ number: Int, _ pods: [LabPod]
    ) throws {
        guard let maps = try? lab.maps(node) else { return }
        var names: [IPAddress: String] = [:]
        for pod in pods { for address in pod.addresses { names[address] = pod.name } }
        for family in lab.spec.families { names[LabAddresses.node(number, family)] = node }
        let flows = try FlowReader(maps).biflows(FlowNames(addresses: names))
        for index in pairs.indices {
            let pair = pairs[index]
            let matching = flows.filter {
                $0.sourceName == pair.source && $0.destinationName == pair.destination
                    && $0.source.family.description == pair.family
                    && ($0.transport == pair.protocol || $0.transport == "icmpv6" && pair.protocol == "icmp")
            }
            if let last = matching.max(by: { $0.last < $1.last }) {
                pairs[index].way = last.way
                pairs[index].packets = last.packets + last.reversePackets
            }
        }
    }
}
