// SPDX-License-Identifier: Apache-2.0

internal import Model
internal import OrderedCollections

/// Whose cluster a lab looks like: what its resources say, and how pods' devices are called.
public enum LabPlatform: String, Sendable, Hashable, Codable, CaseIterable {
    /// Own machines with Calico's IPAM: pools, blocks, affinities.
    case onPremises = "on-premises"
    /// A subnet for each node, in its `spec.podCIDRs`.
    case flannel
    /// EKS with the AWS VPC CNI: pods have addresses of the VPC, and no resource says whose range is whose.
    case eks
    /// EKS with Calico's CNI and IPAM.
    case eksCalico = "eks-calico"
    /// AKS with Azure CNI: as EKS, by Azure's names.
    case aks
    /// AKS with Calico's CNI and IPAM.
    case aksCalico = "aks-calico"

    var hasCalicoIPAM: Bool { [.onPremises, .eksCalico, .aksCalico].contains(self) }

    /// What pods' host-side devices begin with.
    var devicePrefix: String {
        switch self {
        case .onPremises, .eksCalico, .aksCalico: "cali"
        case .flannel: "veth"
        case .eks: "eni"
        case .aks: "azv"
        }
    }

    private var isAmazon: Bool { self == .eks || self == .eksCalico }
    private var isAzure: Bool { self == .aks || self == .aksCalico }

    /// Whether nodes' own traffic is encrypted without a word, as with Felix.
    public var encryptsHosts: Bool { isAmazon || isAzure }

    /// What the platform's controllers and the kubelet write into a Node, beside its addresses.
    func complete(_ node: inout ManifestValue, number: Int, families: [AddressFamily]) {
        let name = "node\(number)"
        var addresses: [ManifestValue] = []
        if case .array(let present)? = node[["status", "addresses"]] { addresses = present }
        func add(_ type: String, _ address: String) {
            addresses.append(.object(["type": .string(type), "address": .string(address)]))
        }
        if isAmazon {
            node[["spec", "providerID"]] = .string("aws:///eu-west-1a/i-0f5e9d3c1b7a2\(1000 + number)")
            node[["metadata", "labels"]] = .object([
                "eks.amazonaws.com/nodegroup": "workers", "topology.kubernetes.io/zone": "eu-west-1a",
            ])
            add("ExternalIP", "203.0.113.\(number)")
            add("InternalDNS", "ip-10-0-0-\(number).eu-west-1.compute.internal")
            add("ExternalDNS", "ec2-203-0-113-\(number).eu-west-1.compute.amazonaws.com")
        } else if isAzure {
            node[["spec", "providerID"]] = .string(
                "azure:///subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/mc_lab/providers/"
                    + "Microsoft.Compute/virtualMachineScaleSets/aks-pool-vmss/virtualMachines/\(number)")
            node[["metadata", "labels"]] = .object(["kubernetes.azure.com/agentpool": "pool"])
        }
        add("Hostname", name)
        node[["status", "addresses"]] = .array(addresses)
        if self == .flannel {
            let blocks = families.map { LabAddresses.block(number, $0).description }
            node[["spec", "podCIDR"]] = blocks.first.map { .string($0) }
            node[["spec", "podCIDRs"]] = .array(blocks.map { .string($0) })
        }
    }
}
