// SPDX-License-Identifier: Apache-2.0

internal import Model

/// IPFIX messages of biflows (RFC 7011, 7012, 5103), in network byte order throughout.
///
/// One observation domain; a template for each family, one for pairs, and one of options with what the exporter
/// has sent and lost. The sequence number counts data records, as section 3.1 says.
public struct IPFIX: Sendable {
    public static let reverseEnterprise: UInt32 = 29305
    public static let ipv4Template: UInt16 = 256
    public static let ipv6Template: UInt16 = 257
    public static let statisticsTemplate: UInt16 = 258
    /// Of pairs of pods, workloads or nodes; only with fields of ours.
    public static let pairTemplate: UInt16 = 259
    static let headerLength = 16

    public let domain: UInt32
    /// Nil: no fields of ours.
    public let enterprise: UInt32?
    /// Bytes that a message may have: with UDP what the path takes whole.
    public let maximumLength: Int
    /// Data records sent until now, modulo 2^32.
    public private(set) var sequence: UInt32 = 0

    public init(domain: UInt32, enterprise: UInt32?, maximumLength: Int) {
        precondition(maximumLength >= 512 && maximumLength <= 65535)
        self.domain = domain
        self.enterprise = enterprise
        self.maximumLength = maximumLength
    }

    // MARK: Templates

    /// Totals before deltas: a collector that keeps one number for both, as nfdump, keeps the last.
    static let counts = [IPFIXField(85, 8), IPFIXField(86, 8), IPFIXField(1, 8), IPFIXField(2, 8)]

    /// In the order in which a record has them.
    func fields(_ family: AddressFamily) -> [IPFIXField] {
        let isIPv4 = family == .ipv4
        let width: UInt16 = isIPv4 ? 4 : 16
        // Addresses, ports, protocol, ICMP type and code.
        var fields = [
            IPFIXField(isIPv4 ? 8 : 27, width), IPFIXField(isIPv4 ? 12 : 28, width), IPFIXField(7, 2),
            IPFIXField(11, 2), IPFIXField(4, 1), IPFIXField(isIPv4 ? 32 : 139, 2),
        ]
        fields += Self.counts + Self.counts.map(\.reversed)
        // TCP flags both ways, begin and end, why, whose direction is forward.
        fields += [IPFIXField(6, 2), IPFIXField(6, 2).reversed, IPFIXField(152, 8), IPFIXField(153, 8)]
        fields += [IPFIXField(136, 1), IPFIXField(239, 1)]
        // What the masquerade writes, and the device that the source's packets come in by.
        fields += [IPFIXField(isIPv4 ? 225 : 281, width), IPFIXField(227, 2), IPFIXField(82, 65535)]
        if let enterprise {
            fields += IPFIXOwnField.allCases.map { IPFIXField($0.rawValue, $0.length, enterprise: enterprise) }
        }
        return fields
    }

    /// exportedMessageTotalCount, exportedFlowRecordTotalCount, and of what was not sent flows, packets, octets; for
    /// an observation domain.
    private static let statistics = [149, 41, 42, 166, 167, 168].map { IPFIXField($0, $0 == 149 ? 4 : 8) }

    /// The template set and the options template set.
    func templateSets() -> [UInt8] {
        var records: [UInt8] = []
        var templates = [(Self.ipv4Template, fields(.ipv4)), (Self.ipv6Template, fields(.ipv6))]
        if enterprise != nil { templates.append((Self.pairTemplate, pairFields)) }
        for (number, fields) in templates {
            records += Self.word(number) + Self.word(UInt16(fields.count)) + fields.flatMap(\.specifier)
        }
        let options =
            Self.word(Self.statisticsTemplate) + Self.word(UInt16(Self.statistics.count)) + Self.word(1)
            + Self.statistics.flatMap(\.specifier)
        return Self.set(2, records) + Self.set(3, options)
    }

    // MARK: Records

    func record(_ record: FlowRecord) -> [UInt8] {
        let flow = record.flow
        let isICMP = flow.protocolNumber == 1 || flow.protocolNumber == 58
        var bytes: [UInt8] = []
        bytes.reserveCapacity(320)
        flow.source.append(to: &bytes)
        flow.destination.append(to: &bytes)
        Self.append(isICMP ? 0 : flow.sourcePort, to: &bytes)
        Self.append(isICMP ? 0 : flow.destinationPort, to: &bytes)
        bytes.append(flow.protocolNumber)
        Self.append(isICMP ? flow.destinationPort : 0, to: &bytes)
        Self.append(flow.bytes, to: &bytes)
        Self.append(flow.packets, to: &bytes)
        Self.append(record.bytes, to: &bytes)
        Self.append(record.packets, to: &bytes)
        Self.append(flow.reverseBytes, to: &bytes)
        Self.append(flow.reversePackets, to: &bytes)
        Self.append(record.reverseBytes, to: &bytes)
        Self.append(record.reversePackets, to: &bytes)
        Self.append(UInt16(flow.tcpFlags), to: &bytes)
        Self.append(UInt16(flow.reverseTCPFlags), to: &bytes)
        Self.append(record.start, to: &bytes)
        Self.append(record.end, to: &bytes)
        // The source has begun it, as far as is known (RFC 5103, section 6.3).
        bytes.append(record.reason.rawValue)
        bytes.append(1)
        let translation = flow.translation.flatMap { Endpoint($0) }
        (translation?.address ?? flow.source).append(to: &bytes)
        Self.append(translation?.port ?? (isICMP ? 0 : flow.sourcePort), to: &bytes)
        Self.append(variable: flow.device, to: &bytes)
        if enterprise != nil {
            bytes.append(flow.isEncrypted ? 1 : 2)
            Self.append(variable: flow.peer, to: &bytes)
            let key = flow.peerKey?.bytes ?? []
            bytes.append(UInt8(key.count))
            bytes += key
            Self.append(variable: flow.way, to: &bytes)
            for text in [
                flow.sourceName, flow.destinationName, flow.sourceNode, flow.destinationNode, flow.dropReason,
            ] { Self.append(variable: text, to: &bytes) }
        }
        return bytes
    }

    /// What the exporter has done until now.
    public struct Statistics: Sendable, Hashable, Codable {
        public var messages: UInt64 = 0
        public var records: UInt64 = 0
        /// Records that could not be sent, and what they would have told.
        public var lostRecords: UInt64 = 0
        public var lostPackets: UInt64 = 0
        public var lostBytes: UInt64 = 0

        public init() {}
    }

    private func record(_ statistics: Statistics) -> [UInt8] {
        var bytes = Self.bytes(domain)
        for count in [
            statistics.messages, statistics.records, statistics.lostRecords, statistics.lostPackets,
            statistics.lostBytes,
        ] { bytes += Self.bytes(count) }
        return bytes
    }

    // MARK: Messages

    /// A data record as it is sent, and what is lost with it when it is not.
    public struct Encoded: Sendable, Hashable {
        public var template: UInt16
        public var bytes: [UInt8]
        public var packets: UInt64
        public var octets: UInt64
    }

    public func encoded(_ flow: FlowRecord) -> Encoded {
        Encoded(
            template: flow.flow.source.family == .ipv4 ? Self.ipv4Template : Self.ipv6Template, bytes: record(flow),
            packets: flow.packets + flow.reversePackets, octets: flow.bytes + flow.reverseBytes)
    }

    /// A message, and which of the records it has.
    public struct Message: Sendable, Hashable {
        public var bytes: [UInt8]
        public var records: Range<Int>
    }

    /// Messages of these records, each no longer than may be. `time`: Unix time in seconds. `withTemplates`: the first
    /// message has the templates, and what was sent and lost until now.
    public mutating func messages(
        _ records: [Encoded], time: UInt32, withTemplates: Bool, statistics: Statistics
    ) -> [Message] {
        var result: [Message] = []
        var body: [UInt8] = []
        var open: (template: UInt16, bytes: [UInt8]) = (0, [])
        var first = 0
        var count: UInt32 = 0
        func closeSet() {
            if !open.bytes.isEmpty { body += Self.set(open.template, open.bytes) }
            open = (0, [])
        }
        func close(_ next: Int) {
            closeSet()
            guard !body.isEmpty else { return }
            let length = UInt16(Self.headerLength + body.count)
            let header =
                Self.word(10) + Self.word(length) + Self.bytes(time) + Self.bytes(sequence) + Self.bytes(domain)
            result.append(Message(bytes: header + body, records: first..<next))
            sequence &+= count
            (body, first, count) = ([], next, 0)
        }
        if withTemplates {
            body = templateSets() + Self.set(Self.statisticsTemplate, record(statistics))
            count = 1
        }
        for (index, record) in records.enumerated() {
            let needed = open.template == record.template ? record.bytes.count : record.bytes.count + 4
            let used = Self.headerLength + body.count + (open.bytes.isEmpty ? 0 : open.bytes.count + 4)
            if used + needed > maximumLength { close(index) }
            if open.template != record.template {
                closeSet()
                open.template = record.template
            }
            open.bytes += record.bytes
            count += 1
        }
        close(records.count)
        return result
    }

    // MARK: Bytes

    static func word(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 0xff)] }

    static func bytes(_ value: some FixedWidthInteger) -> [UInt8] {
        stride(from: value.bitWidth - 8, through: 0, by: -8).map { UInt8(truncatingIfNeeded: value >> $0) }
    }

    /// Big-endian.
    static func append(_ value: some FixedWidthInteger, to bytes: inout [UInt8]) {
        for shift in stride(from: value.bitWidth - 8, through: 0, by: -8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> shift))
        }
    }

    /// A text with its length before it, of one byte or of three (RFC 7011, section 7); at most 1,000 bytes.
    static func append(variable text: String?, to bytes: inout [UInt8]) {
        let text = text ?? ""
        let count = min(text.utf8.count, 1000)
        if count < 255 {
            bytes.append(UInt8(count))
        } else {
            bytes.append(255)
            append(UInt16(count), to: &bytes)
        }
        bytes += text.utf8.prefix(count)
    }

    static func set(_ number: UInt16, _ bytes: [UInt8]) -> [UInt8] {
        word(number) + word(UInt16(bytes.count + 4)) + bytes
    }
}
