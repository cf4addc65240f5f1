// SPDX-License-Identifier: Apache-2.0

public import DataplaneMaps
public import Model
internal import Steering
public import SystemDescriptors
internal import WireGuard

/// What an agent gives up at its start.
public enum AgentPrivileges {
    /// Does what only a start may, and gives up the right to. Call it while the process has one thread. `startsOthers`: the
    /// datastore's credentials come from a program.
    public static func reduce(_ layout: PinLayout, startsOthers: Bool) -> [Privileges.Refusal] {
        // What fails here fails again, and is said, when it is needed.
        try? layout.mountWhereMissing()
        return Privileges.reduce(
            programs: [UserspaceBackend.programName] + HostFirewall.programs, startsOthers: startsOthers)
    }

    /// What could not be given up, as the agent tells it.
    public static func problem(of refusal: Privileges.Refusal) -> Problem {
        Problem(
            .warning, resource: "Agent", field: "privileges", value: refusal.step,
            message: "cannot be given up: \(refusal.errno)",
            remedy: "harmless; a kernel with seccomp, and a container that leaves it to the agent, can do it")
    }
}
