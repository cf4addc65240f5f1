// SPDX-License-Identifier: Apache-2.0

public import Model

/// Pods by key. There may be a hundred thousand: each is kept apart, for half of a large hash table is room for more.
public struct PodTable: Sendable, Sequence {
    private var shared: [ResourceKey: SharedPod] = [:]

    public subscript(key: ResourceKey) -> PodResource? { shared[key]?.pod }

    subscript(shared key: ResourceKey) -> SharedPod? {
        get { shared[key] }
        set { shared[key] = newValue }
    }

    public var count: Int { shared.count }

    /// In no order.
    public var keys: some Collection<ResourceKey> { shared.keys }

    /// In no order.
    public var values: some Sequence<PodResource> { shared.values.lazy.map(\.pod) }

    /// In no order.
    var sharedPods: some Sequence<SharedPod> { shared.values }

    public func makeIterator() -> some IteratorProtocol<(key: ResourceKey, value: PodResource)> {
        shared.lazy.map { (key: $0.key, value: $0.value.pod) }.makeIterator()
    }
}
