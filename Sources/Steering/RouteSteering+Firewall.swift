// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Model
public import Netlink

/// What route mode has in the node's firewall.
extension RouteSteering {
    static func chains(_ plan: SteeringPlan, _ routing: RoutingPlan) -> FirewallChains {
        var chains = allowChains(routing)
        let ports = plan.config.masqueradePorts
        for name in routing.devices.sorted(by: { $0.key < $1.key }).flatMap(\.value.names) {
            for (protocolName, number) in [("TCP", UInt8(6)), ("UDP", 17)] {
                chains[.postrouting, default: []].append(
                    FirewallRule(
                        "wgplane: masquerade \(protocolName) into \(name) by \(ports.lowerBound)-\(ports.upperBound)",
                        [.output(name), .transport(number), .sourceIsForeignAtOutput, .sourceIsLocal],
                        .masquerade(ports: ports)))
            }
            chains[.postrouting, default: []].append(
                FirewallRule(
                    "wgplane: masquerade into \(name)", [.output(name), .sourceIsForeignAtOutput, .sourceIsLocal],
                    .masquerade(ports: nil)))
        }
        if plan.config.encryptsHosts {
            // WireGuard's own packets come from addresses that the table leads into the tunnel: their reverse
            // path is looked up with the mark.
            let mark = plan.config.firewallMark | plan.config.oldFirewallMark
            let text = "0x" + String(mark, radix: 16)
            for uplink in Set(plan.hooks.filter { $0.hook == .toUplink }.map(\.device)).sorted() {
                for (family, device) in routing.devices.sorted(by: { $0.key < $1.key }) {
                    for port in [device.listeningPort, device.otherPort] where port != 0 {
                        chains[.prerouting, default: []].append(
                            FirewallRule(
                                "wgplane: mark \(text) from \(uplink), \(family) port \(port)",
                                [.input(uplink), .family(family), .transport(17), .destinationPort(port)], .mark(mark)))
                    }
                }
            }
        }
        return chains
    }

    /// What lets WireGuard's packets past the node's firewall in eBPF mode, where something there would drop
    /// them.
    public static func exceptions(_ routing: RoutingPlan) throws -> FirewallChains {
        guard routing.makesExceptions else { return [:] }
        let isNeeded = try [FirewallHook.input, .output].contains { try !FirewallExceptions.dropping($0).isEmpty }
        let hasLegacy = try FirewallKind.inUse() == .iptablesLegacy
        guard isNeeded || hasLegacy else { return [:] }
        return allowChains(routing).filter { $0.key != .prerouting }
    }

    /// WireGuard's port, in and out; and, while it changes, each of the two led to the other unless somebody
    /// listens there.
    static func allowChains(_ routing: RoutingPlan) -> FirewallChains {
        var chains: FirewallChains = [:]
        for (family, device) in routing.devices.sorted(by: { $0.key < $1.key }) {
            let ports = [device.listeningPort, device.otherPort].filter { $0 != 0 }
            for port in ports {
                let what: [FirewallMatch] = [.family(family), .transport(17)]
                chains[.input, default: []].append(
                    FirewallRule(
                        "wgplane: WireGuard in, \(family) port \(port)",
                        what + [.destinationPort(port), .destinationIsLocal], .accept))
                chains[.output, default: []].append(
                    FirewallRule(
                        "wgplane: WireGuard out, \(family) port \(port)", what + [.sourcePort(port), .sourceIsLocal],
                        .accept))
            }
            guard ports.count == 2 else { continue }
            for (from, to) in [(ports[0], ports[1]), (ports[1], ports[0])] {
                let what: [FirewallMatch] = [
                    .family(family), .transport(17), .destinationPort(from), .destinationIsLocal,
                ]
                chains[.prerouting, default: []] += [
                    FirewallRule("wgplane: \(family) port \(from) is there", what + [.hasListener], .leave),
                    FirewallRule("wgplane: \(family) port \(from) to \(to)", what, .destinationPort(to)),
                ]
            }
        }
        return chains
    }
}
