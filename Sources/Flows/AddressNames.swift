// SPDX-License-Identifier: Apache-2.0

public import Model

/// Names of pods and nodes by address.
public struct AddressNames: Sendable {
    /// Of nodes, and of pods where these are few.
    public var addresses: [IPAddress: String]
    /// Of what has made pods, `namespace/kind/name`, likewise.
    public var workloads: [IPAddress: String]
    /// Pods that are named when they are asked for, where there may be a hundred thousand.
    public var pods: [IPAddress: SharedPod]

    public init(
        _ addresses: [IPAddress: String] = [:], workloads: [IPAddress: String] = [:],
        pods: [IPAddress: SharedPod] = [:]
    ) {
        self.addresses = addresses
        self.workloads = workloads
        self.pods = pods
    }

    public subscript(address: IPAddress) -> String? { addresses[address] ?? pods[address]?.pod.shortName }

    public func workload(_ address: IPAddress) -> String? {
        workloads[address] ?? pods[address]?.pod.workloadName
    }
}
