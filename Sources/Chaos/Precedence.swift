// SPDX-License-Identifier: Apache-2.0

internal import Lab
internal import SystemDescriptors

/// Lets wireguard-go, and who asks and answers, have processors before agents do.
///
/// The kernel's WireGuard works in interrupts and threads of its own, which no agent keeps waiting. wireguard-go stands in
/// for it in a lab, and competes with all agents of all nodes for the processors of one machine: it waited for more than a
/// hundred milliseconds where three agents had work at once. Each session is a group of its own to the scheduler
/// (sched(7), autogroup); where the kernel has no such groups, nothing is done.
enum Precedence {
    private static let nice = "-19"

    /// Until it is cancelled: each wireguard-go of the lab that has come meanwhile, too.
    static func keep(_ site: FaultSite) async {
        try? writeExistingFile("/proc/self/autogroup", nice)
        defer { try? writeExistingFile("/proc/self/autogroup", "0") }
        var known: Set<ProcessReference> = []
        while !Task.isCancelled {
            var present: Set<ProcessReference> = []
            for place in site.lab.nodeNames().compactMap({ try? site.lab.place($0) }) + ControlTunnel.ends(site.lab) {
                for process in place.processes() { present.insert(process) }
            }
            for process in present.subtracting(known) where isWireGuard(process) {
                try? writeExistingFile("/proc/\(process.identifier)/autogroup", nice)
            }
            known = present
            try? await Task.sleep(for: .milliseconds(500))
        }
    }

    private static func isWireGuard(_ process: ProcessReference) -> Bool {
        let name = (try? readFile("/proc/\(process.identifier)/comm")) ?? []
        return name.starts(with: "wireguard-go".utf8)
    }
}
