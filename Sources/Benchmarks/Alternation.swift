// SPDX-License-Identifier: Apache-2.0

import Foundation

/// How long and how often is measured.
struct Effort: Sendable {
    /// `--quick`: fewer repeats and smaller loads; figures of such a run are for a look only.
    var isQuick: Bool
    var repeats: Int { isQuick ? 3 : 7 }

    func pick<Value>(_ whole: Value, quick: Value) -> Value { isQuick ? quick : whole }
}

/// Things that are measured in turn, so that what the machine does meanwhile meets all of them alike.
struct Alternation {
    typealias Measure = () throws -> Double
    private var contenders: [(name: String, measure: Measure)] = []

    mutating func add(_ name: String, _ measure: @escaping Measure) { contenders.append((name, measure)) }

    /// Each repeat measures all, the first another one each time; returns each one's values by repeat. The first
    /// round, which warms up, is not told.
    func run(repeats: Int) throws -> [String: [Double]] {
        var values: [String: [Double]] = [:]
        for round in 0...repeats {
            for index in contenders.indices {
                let contender = contenders[(index + round) % contenders.count]
                let value = try contender.measure()
                if round > 0 { values[contender.name, default: []].append(value) }
            }
        }
        return values
    }
}

extension [String: [Double]] {
    /// A contender's values less the least of another's, where that is the cost of measuring: what the machine does
    /// beside only adds. Throws where nothing is left.
    func net(_ name: String, less base: String) throws -> [Double] {
        guard let values = self[name], let least = self[base]?.min() else {
            throw BenchmarkError("\(name) or \(base) was not measured")
        }
        let net = values.map { $0 - least }
        guard net.allSatisfy({ $0 > 0 }) else {
            throw BenchmarkError("\(name) costs \(values), no more than measuring itself (\(base), \(least))")
        }
        return net
    }
}

/// What went wrong while measuring.
struct BenchmarkError: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}
