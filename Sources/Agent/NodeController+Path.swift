// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
internal import DesiredState
internal import Model
internal import Netlink
internal import Steering
internal import SystemDescriptors

/// Whether pods' packets may be led around netfilter.
extension NodeController {
    /// The steering path in force, and why. The same throughout a pass.
    func path(_ plan: NodePlan) -> (path: SteeringPathChoice, reason: String) {
        let path = pathOfPass ?? inspect(plan)
        pathOfPass = path
        return path
    }

    private func inspect(_ plan: NodePlan) -> (path: SteeringPathChoice, reason: String) {
        let choice = plan.settings.steeringPath
        guard choice == .auto else { return (choice, "wireguardSteeringPath is set") }
        let found: FirewallInspection.Findings
        do {
            guard let inspected else { return (.stack, "the devices of pods are not known yet") }
            found = try FirewallInspection.inspect(devices: inspected.names)
        } catch {
            return (.stack, "netfilter cannot be inspected: \(error)")
        }
        if !found.filters.isEmpty {
            let shown = found.filters.prefix(3).joined(separator: "; ")
            let more = found.filters.count > 3 ? " and \(found.filters.count - 3) more" : ""
            return (.stack, "a policy may hold for forwarded packets: \(shown)\(more)")
        }
        if let device = foreignPrograms() {
            return (.stack, "another program looks at what pods send, at device \(device)")
        }
        if found.hasNAT {
            // Without it nobody can tell which packets a service's rewriting waits for.
            guard steering?.canAskConntrack == true else {
                return (.stack, "services are rewritten by netfilter, and this kernel's programs cannot ask conntrack")
            }
            return (.direct, "nothing filters forwarded packets; what conntrack has rewritten takes the stack")
        }
        return (.direct, "nothing in netfilter filters forwarded packets")
    }

    /// A pod's device where somebody else's program would be led around: a filter of clsact, which
    /// comes after ours of tcx, or one of tcx. Looked at once a second at most.
    private func foreignPrograms() -> String? {
        if let last = lastForeignLook, ContinuousClock.now - last.at < .seconds(1) {
            owesForeignLook = true
            return last.device
        }
        owesForeignLook = false
        var found: String?
        for link in inspected?.pods ?? [] {
            let pin = options.layout.link(hook: .fromPod, interface: link.index)
            let own = (try? Attachment.link(pin: pin))?.interface == link.index ? 1 : 0
            let filters = (try? session().foreignFilters(interface: link.index, own: Attachment.priorities)) ?? 0
            if filters > 0 || Attachment.tcxPrograms(interface: link.index, direction: .ingress).count > own {
                found = link.name
                break
            }
        }
        lastForeignLook = (.now, found)
        return found
    }

    /// In strict mode: other people's programs that come before the second lock and may end the chain, so
    /// that it is never asked.
    func noteEarlierFilters(_ plan: NodePlan, _ uplinks: [Link], _ problems: inout [Problem]) {
        guard isStrict(plan), let last = Attachment.priorities.max() else { return }
        let byLink = lockMechanism == .tcx
        let ours = options.layout.pinnedLinks() + options.layout.pinnedGuardLinks()
        let own = Set(ours.compactMap { try? Attachment.link(pin: $0.pin)?.program })
        for link in uplinks {
            let isBehind = [AttachmentDirection.egress, .ingress].contains { direction in
                // Programs of tcx come before filters of clsact.
                let chain = Attachment.tcxPrograms(interface: link.index, direction: direction)
                let isOther = { (program: UInt32) in !own.contains(program) }
                if byLink {
                    return chain.lastIndex { own.contains($0) }.map { chain[..<$0].contains(where: isOther) } ?? false
                }
                let found = try? session().foreignFilters(
                    interface: link.index, isEgress: direction == .egress, own: Attachment.priorities, before: last)
                return chain.contains(where: isOther) || (found ?? 0) > 0
            }
            guard isBehind else { continue }
            problems.append(
                Problem(
                    .warning, resource: "Device/\(link.name)", field: "filters",
                    message:
                        "has another program before strict mode's second lock, which it may keep from its packets",
                    remedy:
                        "attach it \(byLink ? "after wgplane's" : "by clsact with a priority number above \(last)"), or live with the first lock alone"
                ))
        }
    }

    /// Whether legacy iptables' tables, which tell nobody of changes, are others than a moment ago.
    func legacyFirewallChanged() -> Bool {
        guard !families.isEmpty else { return false }
        let now = FirewallInspection.legacy()
        guard now != lastLegacyFirewall else { return false }
        lastLegacyFirewall = now
        wholePassDue = .now
        return true
    }
}

/// Devices that a rule or a program must be about to matter to pods.
struct Inspected: Sendable {
    var pods: [Link]
    /// Of pods' devices, uplinks, overlays and WireGuard's.
    var names: Set<String>
}
