// SPDX-License-Identifier: Apache-2.0

/// Where and how an agent exports records of flows.
public struct FlowExportSettings: Sendable, Hashable, Codable {
    /// Nil: to none.
    public var collector: CollectorAddress?
    /// Path of a file of JSON lines; `-`: standard output; empty: none.
    public var file = ""
    /// Mebibytes after which that file becomes the one before.
    public var fileLimit: UInt32 = 100
    public var aggregation = FlowAggregation.flow
    /// Seconds between two records of a flow that goes on.
    public var activeTimeout: UInt16 = 60
    /// Seconds without a packet after which a flow's record is due.
    public var idleTimeout: UInt16 = 15
    /// Seconds after which templates are sent again (UDP), and statistics.
    public var templateInterval: UInt16 = 60
    /// Private enterprise number of our fields; 0: without them.
    public var enterpriseNumber: UInt32 = 32473
    /// PEM files for TLS: whom to trust (empty: the system's), and who we are.
    public var authorityFile = ""
    public var certificateFile = ""
    public var keyFile = ""

    public init() {}

    public var isOn: Bool { collector != nil || !file.isEmpty }

    /// Whether a connection made by the one serves the other.
    public func hasSameConnection(as other: Self) -> Bool {
        collector == other.collector && enterpriseNumber == other.enterpriseNumber
            && authorityFile == other.authorityFile && certificateFile == other.certificateFile
            && keyFile == other.keyFile
    }
}

/// Where records are sent by IPFIX: `udp://192.0.2.9:4739`, `tcp://[2001:db8::9]:4739`, `tls://collector.example:4740`.
public struct CollectorAddress: Sendable, Hashable, Codable, CustomStringConvertible, LosslessStringConvertible {
    public enum Transport: String, Sendable, Hashable, Codable, CaseIterable {
        case udp, tcp, tls

        /// IANA's port for IPFIX.
        var port: UInt16 { self == .tls ? 4740 : 4739 }
    }

    public var transport: Transport
    /// A name or an address, without brackets.
    public var host: String
    public var port: UInt16

    public init?(_ text: String) {
        let parts = text.split(separator: "://", maxSplits: 1).map(String.init)
        guard parts.count == 2, let transport = Transport(rawValue: parts[0]),
            let (host, port) = HostPort.split(parts[1]), port != 0
        else { return nil }
        self.transport = transport
        self.host = host
        self.port = port ?? transport.port
    }

    public var description: String { "\(transport.rawValue)://\(HostPort.join(host, port))" }
}

/// `HOST:PORT`, with brackets around an IPv6 address.
public enum HostPort {
    /// Nil when it is none; a port that is not said is nil.
    public static func split(_ text: String) -> (host: String, port: UInt16?)? {
        var host = text
        var port: UInt16?
        if text.hasPrefix("["), let end = text.firstIndex(of: "]") {
            host = String(text[text.index(after: text.startIndex)..<end])
            guard IPAddress(host)?.family == .ipv6 else { return nil }
            let rest = text[text.index(after: end)...]
            if !rest.isEmpty {
                guard rest.first == ":", let number = UInt16(rest.dropFirst()) else { return nil }
                port = number
            }
        } else if let colon = text.firstIndex(of: ":") {
            host = String(text[..<colon])
            guard let number = UInt16(text[text.index(after: colon)...]) else { return nil }
            port = number
        }
        guard IPAddress(host) != nil || isHostName(host) else { return nil }
        return (host, port)
    }

    public static func join(_ host: String, _ port: UInt16) -> String {
        host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }

    private static func isHostName(_ text: String) -> Bool {
        (1...253).contains(text.utf8.count)
            && text.utf8.allSatisfy {
                (48...57).contains($0) || (97...122).contains($0) || (65...90).contains($0) || $0 == 45 || $0 == 46
            }
    }
}

/// How much a record of an export tells of.
public enum FlowAggregation: String, Sendable, Hashable, Codable, CaseIterable {
    case flow = "Flow"
    case podPair = "PodPair"
    case workloadPair = "WorkloadPair"
    case nodePair = "NodePair"
}

/// Where the agent serves its page and its metrics.
public struct DashboardSettings: Sendable, Hashable, Codable {
    /// `127.0.0.1:9586`, `[::1]:9586`; empty: on the socket in the run directory only.
    public var address = Self.defaultAddress
    /// PEM files of the server, and of the token that readers must show; all three are needed beyond loopback.
    public var certificateFile = ""
    public var keyFile = ""
    public var tokenFile = ""

    /// 9586 is what Prometheus's list of ports has for WireGuard.
    public static let defaultAddress = "127.0.0.1:9586"

    public init() {}

    public var isLoopback: Bool {
        guard let address = HostPort.split(address).flatMap({ IPAddress($0.host) }) else { return address.isEmpty }
        return address.family == .ipv4 ? address.bits >> 24 == 127 : address.bits == 1
    }
}
