// SPDX-License-Identifier: Apache-2.0

internal import DataplaneMaps
internal import Model
internal import Reconciler

/// What it has in place, and what it has not.
extension EBPFSteering {
    /// Whether all is in the maps that was to be.
    var isWritten: Bool {
        routes.errors.isEmpty && addresses.errors.isEmpty && locals.errors.isEmpty && endpoints.errors.isEmpty
            && sources.errors.isEmpty && interfaces.errors.isEmpty && preparedPeers != nil
    }

    func report() -> [Problem] {
        func problem(_ what: String, _ key: String, _ error: String) -> Problem {
            Problem(
                resource: "Dataplane", field: what, value: key, message: error,
                remedy: "it is tried again; see `wgplane doctor`")
        }
        func problems<Key: CustomStringConvertible>(_ errors: [Key: String], _ what: String) -> [Problem] {
            errors.map { problem(what, "\($0.key)", $0.value) }
        }
        return problems(routes.errors, "routes") + problems(addresses.errors, "routes")
            + problems(locals.errors, "locals")
            + problems(endpoints.errors, "endpoints")
            + sources.errors.map {
                problem("allowed sources", "\($0.key.prefix) at device \($0.key.interface)", $0.value)
            }
            + interfaces.errors.map { problem("checked devices", "\($0.key)", $0.value) }
            + hooks.errors.map {
                Problem(
                    resource: "Device/\($0.key.device)", field: $0.key.hook.name, message: $0.value,
                    remedy: "it is tried again; see `wgplane doctor`")
            }
    }

    /// When something that failed is due again; nil: nothing failed.
    public var nextRetry: ContinuousClock.Instant? {
        [
            routes.nextRetry, addresses.nextRetry, locals.nextRetry, endpoints.nextRetry, hooks.nextRetry,
            sources.nextRetry,
            interfaces.nextRetry,
        ].compactMap { $0 }.min()
    }

    /// Whether all programs are in place, and what they steer by, so that nothing else need steer.
    public var isSettled: Bool {
        hooks.errors.isEmpty && routes.errors.isEmpty && addresses.errors.isEmpty && endpoints.errors.isEmpty
    }

    /// The hooks that are in place.
    public var attachedPoints: [HookPoint] { hooks.applied.keys.sorted().map { $0.named(by: names) } }
}
