// SPDX-License-Identifier: Apache-2.0

import Foundation

/// What a result is held against.
enum Goal: Sendable {
    /// The ratio to the yardstick.
    case ratioAtMost(Double)
    case ratioAtLeast(Double)
    /// The value itself, in its unit.
    case valueAtMost(Double)
    /// The value itself, below.
    case valueBelow(Double)

    func isMet(value: Double, ratio: Double?) -> Bool {
        switch self {
        case .ratioAtMost(let limit): ratio.map { $0 <= limit } ?? false
        case .ratioAtLeast(let limit): ratio.map { $0 >= limit } ?? false
        case .valueAtMost(let limit): value <= limit
        case .valueBelow(let limit): value < limit
        }
    }

    func text(_ unit: String) -> String {
        switch self {
        case .ratioAtMost(let limit): "at most \(Figure.text(limit)) x"
        case .ratioAtLeast(let limit): "at least \(Figure.text(limit)) x"
        case .valueAtMost(let limit): "at most \(Figure.text(limit)) \(unit)"
        case .valueBelow(let limit): "under \(Figure.text(limit)) \(unit)"
        }
    }
}

/// One line of the table: the median of a case's repeats, beside its yardstick's.
struct Result: Sendable, Codable {
    /// Of the benchmark: `packet`, `steering`, …
    var name: String
    var `case`: String
    /// Median of the repeats.
    var value: Double
    var minimum: Double
    var maximum: Double
    var unit: String
    /// What it is compared with, in the same run.
    var yardstick: String?
    var yardstickValue: Double?
    /// Value by yardstick: the median of the ratios within each repeat.
    var ratio: Double?
    var goal: String?
    var met: Bool?
    /// (maximum - minimum) / median of the repeats, of the ratios where there is a yardstick.
    var spread: Double
    /// The spread is more than a tenth.
    var noisy: Bool
    var repeats: Int
    var note: String?

    /// `values` and `yardstick` are of the same repeats, in the same order.
    init(
        _ name: String, _ case: String, _ values: [Double], _ unit: String,
        yardstick: (name: String, values: [Double])? = nil, goal: Goal? = nil, note: String? = nil
    ) {
        self.name = name
        self.case = `case`
        self.unit = unit
        self.note = note
        value = Figure.median(values)
        minimum = values.min() ?? 0
        maximum = values.max() ?? 0
        repeats = values.count
        var steady = values
        if let yardstick {
            self.yardstick = yardstick.name
            yardstickValue = Figure.median(yardstick.values)
            steady = zip(values, yardstick.values).map { $1 > 0 ? $0 / $1 : .nan }.filter(\.isFinite)
            ratio = steady.isEmpty ? nil : Figure.median(steady)
        }
        let middle = Figure.median(steady)
        spread = middle == 0 ? 0 : ((steady.max() ?? 0) - (steady.min() ?? 0)) / abs(middle)
        noisy = spread > 0.1
        if let goal {
            self.goal = goal.text(unit)
            met = goal.isMet(value: value, ratio: ratio)
        }
    }
}

/// Numbers as people read them.
enum Figure {
    static func median(_ values: [Double]) -> Double {
        guard !values.isEmpty else { return 0 }
        let sorted = values.sorted()
        let middle = sorted.count / 2
        return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
    }

    /// The value that a share of all is not above.
    static func percentile(_ values: [Double], _ share: Double) -> Double {
        guard !values.isEmpty else { return 0 }
        let sorted = values.sorted()
        return sorted[max(0, min(sorted.count - 1, Int((Double(sorted.count) * share).rounded(.up)) - 1))]
    }

    /// Three digits.
    static func text(_ value: Double) -> String {
        guard value.isFinite else { return "-" }
        let size = abs(value)
        if size >= 100 || value == value.rounded() {
            let whole = String(Int(size.rounded()))
            var groups = ""
            for (index, digit) in whole.reversed().enumerated() {
                if index > 0, index % 3 == 0 { groups = "," + groups }
                groups = String(digit) + groups
            }
            return (value < 0 ? "-" : "") + groups
        }
        return String(format: size >= 10 ? "%.1f" : size >= 1 ? "%.2f" : "%.3f", value)
    }
}
