// SPDX-License-Identifier: Apache-2.0

/// A field of an IPFIX template (RFC 7011, section 3.2).
public struct IPFIXField: Sendable, Hashable {
    /// Information element's number.
    public var number: UInt16
    /// Bytes; 65535: variable.
    public var length: UInt16
    /// Nil: IANA's.
    public var enterprise: UInt32?

    public init(_ number: UInt16, _ length: UInt16, enterprise: UInt32? = nil) {
        self.number = number
        self.length = length
        self.enterprise = enterprise
    }

    /// Of the other direction (RFC 5103, section 6.1).
    var reversed: IPFIXField { IPFIXField(number, length, enterprise: IPFIX.reverseEnterprise) }

    var specifier: [UInt8] {
        guard let enterprise else { return IPFIX.word(number) + IPFIX.word(length) }
        return IPFIX.word(number | 0x8000) + IPFIX.word(length) + IPFIX.bytes(enterprise)
    }
}

/// Our fields, under the enterprise number that the configuration names.
public enum IPFIXOwnField: UInt16, Sendable, CaseIterable {
    /// 1 yes, 2 no (RFC 7011, section 6.1.5).
    case encrypted = 1
    /// UTF-8, as all names: the node at the other end.
    case peerNode = 2
    /// 32 bytes, or none.
    case peerKey = 3
    /// `tunnel`, `clear`, `mixed`, `local`, `outside`.
    case way = 4
    case sourcePod = 5
    case destinationPod = 6
    case sourceNode = 7
    case destinationNode = 8
    /// Why the last of its packets that were dropped was; empty: none was.
    case dropReason = 9

    var length: UInt16 { self == .encrypted ? 1 : 65535 }
}

extension IPFIX {
    /// Of a record of a pair: ipVersion, protocolIdentifier, deltaFlowCount, counts both ways, begin and end.
    var pairFields: [IPFIXField] {
        let deltas = [IPFIXField(1, 8), IPFIXField(2, 8)]
        var fields = [IPFIXField(60, 1), IPFIXField(4, 1), IPFIXField(3, 8)] + deltas + deltas.map(\.reversed)
        fields += [IPFIXField(152, 8), IPFIXField(153, 8)]
        if let enterprise {
            fields += Self.pairOwnFields.map { IPFIXField($0.rawValue, $0.length, enterprise: enterprise) }
        }
        return fields
    }

    private static let pairOwnFields: [IPFIXOwnField] = [
        .encrypted, .way, .sourcePod, .destinationPod, .sourceNode, .destinationNode, .dropReason,
    ]

    public func encoded(_ record: AggregateRecord) -> Encoded {
        let pair = record.pair
        var bytes = [pair.family, pair.protocolNumber] + Self.bytes(record.flows)
        for count in [record.bytes, record.packets, record.reverseBytes, record.reversePackets] {
            bytes += Self.bytes(count)
        }
        bytes += Self.bytes(record.start) + Self.bytes(record.end) + [pair.isEncrypted ? 1 : 2]
        for text in [
            pair.way, pair.source, pair.destination, pair.sourceNode, pair.destinationNode, pair.dropReason,
        ] { Self.append(variable: text, to: &bytes) }
        return Encoded(
            template: Self.pairTemplate, bytes: bytes, packets: record.packets + record.reversePackets,
            octets: record.bytes + record.reverseBytes)
    }
}
