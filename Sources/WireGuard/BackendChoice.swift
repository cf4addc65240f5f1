// SPDX-License-Identifier: Apache-2.0

public import Model

/// Finds the backend that a setting asks for.
public enum BackendSelection {
    /// `Auto` is the kernel's where it has one, else userspace. Throws with the reason
    /// and the remedy when what is asked for is not to be had.
    /// A device of these names that is there already decides for `Auto`.
    public static func backend(
        _ choice: WireGuardBackendChoice, devices: [String] = []
    ) throws -> any WireGuardBackend {
        switch choice {
        case .kernel:
            guard KernelBackend.isAvailable() else {
                throw WireGuardError.unsupported("wireguardBackend is Kernel and this kernel has no WireGuard")
            }
            return try KernelBackend()
        case .userspace:
            guard UserspaceBackend.isAvailable() else {
                throw WireGuardError.unsupported(
                    "wireguardBackend is Userspace and wireguard-go or /dev/net/tun is missing")
            }
            return try UserspaceBackend()
        case .auto:
            for device in devices {
                if let (kind, _) = try state(device: device) {
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

    /// A device by whichever backend has it, for looking.
    public static func state(device: String) throws -> (BackendKind, DeviceState)? {
        if let kernel = try? KernelBackend(), let state = try kernel.state(device: device) { return (.kernel, state) }
        if let state = try UserspaceBackend().state(device: device) { return (.userspace, state) }
        return nil
    }

    /// Deletes a device, whichever backend has it; what is not there is no error.
    public static func delete(device: String) throws {
        guard let (kind, _) = try state(device: device) else { return }
        try backend(kind == .kernel ? .kernel : .userspace).delete(device: device)
    }
}
