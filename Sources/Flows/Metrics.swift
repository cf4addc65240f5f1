// SPDX-License-Identifier: Apache-2.0

/// A metric with its samples, as Prometheus takes them.
public struct MetricFamily: Sendable, Hashable {
    public enum Kind: String, Sendable, Hashable {
        case counter
        case gauge
        case histogram
    }

    public struct Sample: Sendable, Hashable {
        /// In the order in which they are written.
        public var labels: [Label]
        public var value: Double
        /// After the family's name: `_bucket`, `_sum`, `_count`; empty: none.
        public var suffix = ""
    }

    public struct Label: Sendable, Hashable {
        public var name: String
        public var value: String
    }

    public var name: String
    public var kind: Kind
    public var help: String
    public var samples: [Sample]

    public init(_ name: String, _ kind: Kind, _ help: String) {
        self.name = name
        self.kind = kind
        self.help = help
        samples = []
    }

    public mutating func add(_ value: Double, _ labels: KeyValuePairs<String, String> = [:]) {
        samples.append(Sample(labels: labels.map { Label(name: $0.key, value: $0.value) }, value: value))
    }

    public mutating func add(_ value: some BinaryInteger, _ labels: KeyValuePairs<String, String> = [:]) {
        add(Double(value), labels)
    }

    /// Cumulative buckets, by their upper bounds in ascending order, and the sum.
    public mutating func add(buckets: [(bound: Double, count: UInt64)], sum: Double, count: UInt64) {
        for (bound, cumulative) in buckets {
            samples.append(
                Sample(
                    labels: [Label(name: "le", value: MetricText.number(bound))], value: Double(cumulative),
                    suffix: "_bucket"))
        }
        samples.append(Sample(labels: [Label(name: "le", value: "+Inf")], value: Double(count), suffix: "_bucket"))
        samples.append(Sample(labels: [], value: sum, suffix: "_sum"))
        samples.append(Sample(labels: [], value: Double(count), suffix: "_count"))
    }
}

/// Text that scrapers read.
public enum MetricText: Sendable {
    /// Prometheus' text format 0.0.4.
    case prometheus
    /// OpenMetrics 1.0.0.
    case openMetrics

    public var contentType: String {
        switch self {
        case .prometheus: "text/plain; version=0.0.4; charset=utf-8"
        case .openMetrics: "application/openmetrics-text; version=1.0.0; charset=utf-8"
        }
    }

    /// What a scraper's Accept header asks for.
    public init(accept: String) {
        self = accept.contains("application/openmetrics-text") ? .openMetrics : .prometheus
    }

    public func render(_ families: [MetricFamily]) -> String {
        var text = ""
        for family in families.sorted(by: { $0.name < $1.name }) where !family.samples.isEmpty {
            // In OpenMetrics the family of `x_total` is `x`. A counter with another name, as Felix's, is of no
            // known type: scrapers' checks would find fault with the name otherwise.
            let isOpen = self == .openMetrics
            let isNamed = family.name.hasSuffix("_total")
            let name = isOpen && family.kind == .counter && isNamed ? String(family.name.dropLast(6)) : family.name
            let isUnknown = family.kind == .counter && !isNamed
            let kind = isUnknown ? (isOpen ? "unknown" : "untyped") : family.kind.rawValue
            text += "# HELP \(name) \(Self.escaped(family.help, quotes: self == .openMetrics))\n"
            text += "# TYPE \(name) \(kind)\n"
            for sample in family.samples {
                let labels = sample.labels.map { "\($0.name)=\"\(Self.escaped($0.value, quotes: true))\"" }
                let list = labels.isEmpty ? "" : "{\(labels.joined(separator: ","))}"
                text += "\(family.name)\(sample.suffix)\(list) \(Self.number(sample.value))\n"
            }
        }
        return self == .openMetrics ? text + "# EOF\n" : text
    }

    private static func escaped(_ text: String, quotes: Bool) -> String {
        var result = text.replacing("\\", with: "\\\\").replacing("\n", with: "\\n")
        if quotes { result = result.replacing("\"", with: "\\\"") }
        return result
    }

    static func number(_ value: Double) -> String {
        if value == value.rounded(), abs(value) < 1e15 { return "\(Int64(value))" }
        return "\(value)"
    }
}
