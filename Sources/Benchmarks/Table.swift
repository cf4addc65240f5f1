// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation

extension Bench {
    /// Prints what runs have measured.
    struct Table: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Prints results: a table, or with --markdown the README's.")

        @Argument(help: "Files of results, one JSON object a line.") var files: [String]
        @Flag(help: "As Markdown.") var markdown = false
        @Option(help: "Writes all results there, as one JSON array.") var json: String?

        func run() throws {
            var results: [Result] = []
            for file in files {
                for line in try String(contentsOfFile: file, encoding: .utf8).split(separator: "\n") {
                    results.append(try JSONDecoder().decode(Result.self, from: Data(line.utf8)))
                }
            }
            if let json {
                let encoder = JSONEncoder()
                encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
                try encoder.encode(results).write(to: URL(fileURLWithPath: json))
            }
            print(markdown ? ResultTable.markdown(results) : ResultTable.text(results))
        }
    }
}

enum ResultTable {
    private static let columns = ["benchmark", "case", "median", "min", "max", "yardstick", "ratio", "goal", ""]

    private static func cells(_ result: Result) -> [String] {
        let yardstick = result.yardstick.map { "\($0): \(Figure.text(result.yardstickValue ?? 0))" } ?? ""
        let verdict = result.met.map { $0 ? "met" : "MISSED" } ?? ""
        return [
            result.name, result.case + (result.note.map { " (\($0))" } ?? ""),
            "\(Figure.text(result.value)) \(result.unit)",
            result.repeats > 1 ? Figure.text(result.minimum) : "",
            result.repeats > 1 ? Figure.text(result.maximum) : "",
            yardstick, ratio(result), result.goal ?? "",
            [verdict, result.noisy ? "±" : ""].filter { !$0.isEmpty }.joined(separator: " "),
        ]
    }

    /// `0.933 (0.921 to 0.951)`.
    private static func ratio(_ result: Result) -> String {
        guard let ratio = result.ratio else { return "" }
        guard result.repeats > 1, let low = result.ratioMinimum, let high = result.ratioMaximum else {
            return Figure.text(ratio)
        }
        return "\(Figure.text(ratio)) (\(Figure.text(low)) to \(Figure.text(high)))"
    }

    static func text(_ results: [Result]) -> String {
        let rows = [columns] + results.map(cells)
        let widths = columns.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
        return rows.map { row in
            row.enumerated().map { $1.padding(toLength: widths[$0], withPad: " ", startingAt: 0) }
                .joined(separator: "  ").trimmingCharacters(in: .whitespaces)
        }.joined(separator: "\n")
    }

    static func markdown(_ results: [Result]) -> String {
        let line = { (cells: [String]) in "| " + cells.joined(separator: " | ") + " |" }
        return ([line(columns), line(columns.map { _ in "---" })] + results.map { line(cells($0)) }).joined(
            separator: "\n")
    }
}
