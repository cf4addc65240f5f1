// SPDX-License-Identifier: Apache-2.0

public import Foundation
public import Model
internal import OrderedCollections

/// Which fields of a resource are kept when it is read only to be followed: those that the agent looks at.
public indirect enum FieldMask: Sendable {
    /// The value whole.
    case whole
    /// Of an object, these.
    case fields([String: FieldMask])
    /// Of each element of an array.
    case each(FieldMask)

    /// What an agent keeps of a kind.
    public static func followed(_ kind: ResourceKind) -> FieldMask {
        switch kind {
        case .node: node
        case .pod: pod
        default: .fields(["metadata": .fields(["name": .whole, "resourceVersion": .whole]), "spec": .whole])
        }
    }

    private static let node = FieldMask.fields([
        "metadata": .fields(["name": .whole, "resourceVersion": .whole, "annotations": .whole]),
        "spec": .fields(["podCIDR": .whole, "podCIDRs": .whole, "providerID": .whole]),
        "status": .fields(["addresses": .whole, "conditions": .whole]),
    ])

    private static let pod = FieldMask.fields([
        "metadata": .fields([
            "name": .whole, "namespace": .whole, "resourceVersion": .whole,
            "labels": .fields(["k8s-app": .whole, "pod-template-hash": .whole]),
            "annotations": .fields(["cni.projectcalico.org/allowedSourcePrefixes": .whole]),
            "ownerReferences": .each(.fields(["kind": .whole, "name": .whole, "controller": .whole])),
        ]),
        "spec": .fields(["nodeName": .whole, "hostNetwork": .whole]),
        "status": .fields([
            "phase": .whole, "podIP": .whole, "podIPs": .each(.fields(["ip": .whole])),
        ]),
    ])

    /// A value with these fields only; what has another type than it should is kept.
    public func applied(to value: ManifestValue) -> ManifestValue {
        switch (self, value) {
        case (.fields(let masks), .object(let fields)):
            .object(
                fields.reduce(into: [:]) { result, field in
                    if let mask = masks[field.key] { result[field.key] = mask.applied(to: field.value) }
                })
        case (.each(let mask), .array(let values)): .array(values.map { mask.applied(to: $0) })
        default: value
        }
    }

    /// A decoder of JSON whose values of `MaskedValue` keep these fields only.
    public func decoder() -> JSONDecoder {
        let decoder = JSONDecoder()
        if let key = MaskedValue.key { decoder.userInfo[key] = self }
        return decoder
    }
}

/// A value of JSON, with the fields that the decoder's mask keeps.
public struct MaskedValue: Decodable {
    public var value: ManifestValue

    static let key = CodingUserInfoKey(rawValue: "FieldMask")

    private struct Name: CodingKey {
        var stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    public init(from decoder: any Decoder) throws {
        let mask = Self.key.flatMap { decoder.userInfo[$0] as? FieldMask } ?? .whole
        if case .fields(let masks) = mask, let container = try? decoder.container(keyedBy: Name.self) {
            value = try Self.object(container, masks)
        } else {
            value = try ManifestValue(from: decoder)
        }
    }

    private static func object(
        _ container: KeyedDecodingContainer<Name>, _ masks: [String: FieldMask]
    ) throws -> ManifestValue {
        var fields: OrderedDictionary<String, ManifestValue> = [:]
        for (name, mask) in masks.sorted(by: { $0.key < $1.key }) {
            let key = Name(stringValue: name)
            guard container.contains(key) else { continue }
            // What has another type than it should is kept whole, for the reader to complain of.
            if case .fields(let inner) = mask,
                let nested = try? container.nestedContainer(keyedBy: Name.self, forKey: key)
            {
                fields[name] = try object(nested, inner)
            } else if case .each(let element) = mask, var nested = try? container.nestedUnkeyedContainer(forKey: key) {
                fields[name] = try array(&nested, element)
            } else {
                fields[name] = try container.decode(ManifestValue.self, forKey: key)
            }
        }
        return .object(fields)
    }

    private static func array(_ container: inout any UnkeyedDecodingContainer, _ mask: FieldMask) throws
        -> ManifestValue
    {
        var values: [ManifestValue] = []
        while !container.isAtEnd {
            if case .fields(let inner) = mask, let nested = try? container.nestedContainer(keyedBy: Name.self) {
                values.append(try object(nested, inner))
            } else {
                values.append(try container.decode(ManifestValue.self))
            }
        }
        return .array(values)
    }
}
