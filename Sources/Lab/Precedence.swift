// SPDX-License-Identifier: Apache-2.0

public import SystemDescriptors

/// Lets wireguard-go have processors before agents do.
///
/// The kernel's WireGuard works in interrupts and threads of its own, which no agent keeps waiting. wireguard-go stands in
/// for it in a lab, and competes with all agents of all nodes for the processors of one machine: it waited for more than a
/// hundred milliseconds where three agents had work at once, and its sockets' buffers overflowed. Each session is a group
/// of its own to the scheduler (sched(7), autogroup); where the kernel has no such groups, nothing is done.
public enum Precedence {
    /// As a process may write it.
    public static let nice = "-19"

    /// Until it is cancelled: each wireguard-go of the lab, or of `others`, that has come meanwhile, too.
    public static func keep(_ lab: Lab, others: [NamespaceFiles] = []) async {
        var known: Set<ProcessReference> = []
        while !Task.isCancelled {
            var present: Set<ProcessReference> = []
            for place in lab.nodeNames().compactMap({ try? lab.place($0) }) + others {
                for process in place.processes() { present.insert(process) }
            }
            for process in present.subtracting(known) where isWireGuard(process) {
                try? writeExistingFile("/proc/\(process.identifier)/autogroup", nice)
            }
            known = present
            try? await Task.sleep(for: .milliseconds(300))
        }
    }

    private static func isWireGuard(_ process: ProcessReference) -> Bool {
        let name = (try? readFile("/proc/\(process.identifier)/comm")) ?? []
        return name.starts(with: "wireguard-go".utf8)
    }
}
