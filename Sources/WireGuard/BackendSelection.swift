// SPDX-License-Identifier: Apache-2.0

internal import Netlink

/// Finds a backend.
public enum BackendSelection {
    /// The backend of a kind; nil: the kernel's where it has one, else userspace, but the one of
    /// these devices where one of them is there already. Throws with the reason and the remedy when
    /// what is asked for is not to be had.
    public static func backend(_ kind: BackendKind?, devices: [String] = []) throws -> any WireGuardBackend {
        switch kind {
        case .kernel:
            guard KernelBackend.isAvailable() else {
                throw WireGuardError.unsupported("the kernel's is asked for and this kernel has no WireGuard")
            }
            return try KernelBackend()
        case .userspace:
            guard UserspaceBackend.isAvailable() else {
                throw WireGuardError.unsupported(
                    "wireguard-go is asked for, and it or /dev/net/tun is missing")
            }
            return try UserspaceBackend()
        case nil:
            for device in devices {
                if let kind = try self.kind(device: device) {
                    return kind == .kernel ? try KernelBackend() : try UserspaceBackend()
                }
            }
            if KernelBackend.isAvailable() { return try KernelBackend() }
            guard UserspaceBackend.isAvailable() else {
                throw WireGuardError.unsupported("this kernel has none, and wireguard-go or /dev/net/tun is missing")
            }
            return try UserspaceBackend()
        }
    }

    /// Which backend has a device; nil: there is none, or nobody serves it.
    public static func kind(device: String) throws -> BackendKind? {
        guard let link = try RouteSession().link(named: device) else { return nil }
        if link.kind == "wireguard" { return .kernel }
        return try UserspaceBackend().isAlive(device) ? .userspace : nil
    }

    /// A device by whichever backend has it, for looking.
    public static func state(device: String) throws -> (BackendKind, DeviceState)? {
        if let kernel = try? KernelBackend(), let state = try kernel.state(device: device) { return (.kernel, state) }
        if let state = try UserspaceBackend().state(device: device) { return (.userspace, state) }
        return nil
    }

    /// Deletes a device, whichever backend has it; what is not there is no error.
    public static func delete(device: String) throws {
        guard let kind = try kind(device: device) else { return }
        try backend(kind).delete(device: device)
    }
}
