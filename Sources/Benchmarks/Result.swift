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
    /// Value by yardstick.
    var ratio: Double?
    /// Of the repeats, each by the yardstick of the same one.
    var ratioMinimum: Double?
    var ratioMaximum: Double?
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
    ) throws {
        // What was not measured, or came to nothing, is no figure.
        guard !values.isEmpty, values.allSatisfy(\.isFinite) else {
            throw BenchmarkError("\(name), \(`case`): \(values) are no measurements")
        }
        if let yardstick {
            guard yardstick.values.count == values.count, yardstick.values.allSatisfy({ $0.isFinite && $0 > 0 }) else {
                throw BenchmarkError("\(name), \(`case`): \(yardstick.values) are no yardstick")
            }
        }
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
            steady = zip(values, yardstick.values).map { $0 / $1 }
            ratio = value / (yardstickValue ?? 1)
            (ratioMinimum, ratioMaximum) = (steady.min(), steady.max())
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

extension Result {
    /// All fields, those that are not there as null.
    func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(name, forKey: .name)
        try container.encode(`case`, forKey: .case)
        try container.encode(value, forKey: .value)
        try container.encode(minimum, forKey: .minimum)
        try container.encode(maximum, forKey: .maximum)
        try container.encode(unit, forKey: .unit)
        try container.encode(yardstick, forKey: .yardstick)
        try container.encode(yardstickValue, forKey: .yardstickValue)
        try container.encode(ratio, forKey: .ratio)
        try container.encode(ratioMinimum, forKey: .ratioMinimum)
        try container.encode(ratioMaximum, forKey: .ratioMaximum)
        try container.encode(goal, forKey: .goal)
        try container.encode(met, forKey: .met)
        try container.encode(spread, forKey: .spread)
        try container.encode(noisy, forKey: .noisy)
        try container.encode(repeats, forKey: .repeats)
        try container.encode(note, forKey: .note)
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
