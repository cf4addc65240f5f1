// SPDX-License-Identifier: Apache-2.0

internal import Model

/// Where an API server has a kind.
extension ResourceKind {
    private var group: String { apiVersion == "v1" ? "/api/v1" : "/apis/\(apiVersion)" }

    /// Of all of a kind, in all namespaces.
    var listPath: String { "\(group)/\(plural)" }

    /// Whether the kind is there only when its CustomResourceDefinition is.
    var isCustom: Bool { apiVersion != "v1" }
}

extension ResourceKey {
    /// Of what contains the resource: for creation.
    var folderPath: String {
        namespace.isEmpty
            ? kind.listPath
            : kind.listPath.replacing("/\(kind.plural)", with: "/namespaces/\(namespace)/\(kind.plural)")
    }

    var path: String { "\(folderPath)/\(name)" }
}
