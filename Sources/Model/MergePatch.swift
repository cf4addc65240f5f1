// SPDX-License-Identifier: Apache-2.0

internal import OrderedCollections

extension ManifestValue {
    /// The JSON merge patch (RFC 7386) that makes `other` of this; nil: they are alike. Fields that are null in
    /// `other` are removed, for a merge patch cannot say otherwise.
    public func mergePatch(to other: ManifestValue) -> ManifestValue? {
        guard self != other else { return nil }
        guard case .object(let old) = self, case .object(let new) = other else { return other }
        var patch: OrderedDictionary<String, ManifestValue> = [:]
        for (key, value) in new {
            guard let before = old[key] else {
                patch[key] = value
                continue
            }
            if let change = before.mergePatch(to: value) { patch[key] = change }
        }
        for key in old.keys where new[key] == nil { patch[key] = .null }
        return .object(patch)
    }
}

extension ManifestValue {
    /// Without what an API server adds by itself.
    public var withoutServerFields: ManifestValue {
        var result = self
        for name in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink"] {
            result[["metadata", name]] = nil
        }
        return result
    }
}
