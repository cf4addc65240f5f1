// SPDX-License-Identifier: Apache-2.0

internal import Datastore
internal import Foundation
internal import Model

/// A page of a list, as an API server tells it.
struct ListPage: Decodable {
    struct Metadata: Decodable {
        var resourceVersion: String?
        var `continue`: String?
        /// Objects after this page, where there is no selector.
        var remainingItemCount: Int?
    }

    var metadata: Metadata
    var items: [MaskedValue]?
}

/// A line of a watch.
struct WatchLine: Decodable {
    enum Change: String, Decodable {
        case added = "ADDED"
        case modified = "MODIFIED"
        case deleted = "DELETED"
        case bookmark = "BOOKMARK"
        case error = "ERROR"
    }

    var type: Change
    var object: MaskedValue
}

extension ManifestValue {
    /// An item of a list does not say what it is.
    func named(_ kind: ResourceKind) -> ManifestValue {
        var copy = self
        copy["kind"] = .string(kind.rawValue)
        copy["apiVersion"] = .string(kind.apiVersion)
        return copy
    }

    var resourceVersion: String? { self[["metadata", "resourceVersion"]]?.stringValue }
}
