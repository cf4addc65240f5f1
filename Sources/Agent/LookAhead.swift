// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Model
internal import SystemDescriptors
internal import WireGuard

/// Looks at what is long to look at, on a thread of its own: of a large cluster a device has thousands of peers, and a
/// map a hundred thousand routes. Meanwhile the controller can take in what comes.
actor LookAhead {
    private let queue = KernelQueue(label: "look-ahead")

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    /// What was seen of a node.
    struct Sight: Sendable {
        /// By name.
        var devices: [String: DeviceState] = [:]
        /// Whose routes differ from those that were put there; nil: they were not looked at.
        var changedAddresses: [IPAddress]?
    }

    /// What cannot be seen is left out. `placed`: the routes of single addresses that were put there.
    func look(
        _ kind: BackendKind, devices: [String], _ routes: RouteTable?, placed: [IPAddress: UInt32]
    ) -> Sight {
        var sight = Sight()
        if let backend = try? BackendSelection.backend(kind) {
            for name in devices { sight.devices[name] = try? backend.state(device: name) }
        }
        sight.changedAddresses = (try? routes?.addressChanges(since: placed)).map { Array($0.keys) }
        return sight
    }
}

/// Writes the status file, whose text of a large cluster is long to make.
actor StatusWriter {
    private let queue = KernelQueue(label: "status")
    private let folder: String

    nonisolated var unownedExecutor: UnownedSerialExecutor { queue.asUnownedSerialExecutor() }

    init(runDirectory: String) { folder = runDirectory }

    func write(_ report: StatusReport) throws { try report.write(runDirectory: folder) }
}
