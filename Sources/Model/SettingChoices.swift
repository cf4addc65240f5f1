// SPDX-License-Identifier: Apache-2.0

/// Which of Calico's sources says where a node's pod addresses are.
public enum RouteSource: String, Sendable, Hashable, Codable, CaseIterable {
    case calicoIPAM = "CalicoIPAM"
    case podCIDRs = "PodCIDRs"
    case workloadIPs = "WorkloadIPs"
}

/// Which implementation of WireGuard carries the packets.
public enum WireGuardBackendChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case auto = "Auto"
    case kernel = "Kernel"
    case userspace = "Userspace"
}

/// How BPF programs are attached to devices.
public enum AttachmentChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case auto = "Auto"
    case tcx = "TCX"
    case tc = "TC"
}

/// Whether pods' packets are redirected at once or go through the kernel's forwarding.
public enum SteeringPathChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case auto = "Auto"
    case direct = "Direct"
    case stack = "Stack"
}

/// The data plane of a node.
public enum ModeChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case auto = "Auto"
    case ebpf = "EBPF"
    case route = "Route"
    case disabled = "Disabled"
}

/// What the agent writes into its log of single packets and flows (Calico's field).
public enum PacketLogLevel: String, Sendable, Hashable, Codable, CaseIterable {
    case off = "Off"
    /// What is dropped.
    case info = "Info"
    /// And flows as they begin.
    case debug = "Debug"
}

/// Whether a rule of the node's firewall that would drop WireGuard's packets gets an exception of ours.
public enum InputRuleChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case never = "Never"
    case auto = "Auto"
}

/// What happens when most nodes go at once.
public enum MassDeletionChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case hold = "Hold"
    case apply = "Apply"
}

/// What happens to traffic that is to be encrypted and cannot be.
public enum StrictModeChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case disabled = "Disabled"
    case enabled = "Enabled"
}

/// Whether a node's published key is believed.
public enum KeyPinningChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case disabled = "Disabled"
    /// Only the one that its annotation `wgplane.io/pinned-key` names.
    case annotation = "Annotation"
    /// The first that was seen, until an operator forgets it on the node.
    case firstUse = "FirstUse"
}

/// Whether a pod may send from addresses that are not its own (Calico's field).
public enum SourceSpoofingChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case disabled = "Disabled"
    /// From those that its annotation `cni.projectcalico.org/allowedSourcePrefixes` names.
    case any = "Any"
}

/// Whether pods' source addresses are checked.
public enum SourceCheckChoice: String, Sendable, Hashable, Codable, CaseIterable {
    case enabled = "Enabled"
    case disabled = "Disabled"
}

/// What becomes of the segment size that TCP SYNs through the tunnel offer.
public enum SegmentClamp: Sendable, Hashable, Codable {
    /// As the device's MTU allows.
    case auto
    case disabled
    case limit(UInt16)
}
