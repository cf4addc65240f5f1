// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Foundation
import Lab
import SystemDescriptors

/// A benchmark: by its name, what it measures and how.
protocol Benchmark: Sendable {
    static var name: String { get }
    static var text: String { get }
    static func run(_ context: BenchmarkContext) async throws -> [Result]
}

struct BenchmarkContext: Sendable {
    var effort: Effort
    /// The program that is measured.
    var wgplane: String
    /// `kernel` or `userspace`.
    var wireguard: String

    func say(_ text: String) { FileHandle.standardError.write(Data("bench: \(text)\n".utf8)) }
}

@main
struct Bench: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "wgplane-bench",
        abstract: "Measures wgplane against what it replaces. Run it by scripts/bench.sh.",
        subcommands: [Run.self, Note.self, Table.self])

    static let benchmarks: [any Benchmark.Type] = [
        PacketBenchmark.self, SteeringBenchmark.self, TunnelBenchmark.self, AccountingBenchmark.self,
        PeersBenchmark.self, MapsBenchmark.self,
        ChurnBenchmark.self, ScaleBenchmark.self, StartBenchmark.self,
    ]

    struct Run: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Runs benchmarks; writes one JSON object a line.",
            discussion: Bench.benchmarks.map { "\($0.name): \($0.text)" }.joined(separator: "\n"))

        @Argument(help: "Which ones; none: all.") var names: [String] = []
        @Flag(help: "Fewer repeats and smaller loads.") var quick = false
        @Option(help: "File to which results are appended, one JSON object a line.") var lines: String
        @Option(help: "The wgplane that is measured.") var wgplane: String
        @Option(help: "WireGuard: kernel or userspace.") var wireguard = "userspace"

        func validate() throws {
            for name in names where !Bench.benchmarks.contains(where: { $0.name == name }) {
                let known = Bench.benchmarks.map { $0.name }.joined(separator: ", ")
                throw ValidationError("\"\(name)\" is no benchmark; choose of: \(known)")
            }
        }

        func run() async throws {
            guard isRoot() else {
                throw BenchmarkError("needs root: it makes network namespaces and loads BPF programs")
            }
            let context = BenchmarkContext(effort: Effort(isQuick: quick), wgplane: wgplane, wireguard: wireguard)
            var failures: [String] = []
            for benchmark in Bench.benchmarks where names.isEmpty || names.contains(benchmark.name) {
                let started = monotonicNanoseconds()
                do {
                    let results = try await benchmark.run(context)
                    try Bench.append(results, to: lines)
                } catch {
                    failures.append("\(benchmark.name): \(error)")
                    context.say("\(benchmark.name) failed: \(error)")
                }
                context.say("\(benchmark.name): \((monotonicNanoseconds() - started) / 1_000_000_000) s")
            }
            if !failures.isEmpty { throw ExitCode(1) }
        }

    }

    /// Notes a figure that the script has measured.
    struct Note: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Notes a figure that was measured from outside.")

        @Argument(help: "Of the benchmark.") var name: String
        @Argument var text: String
        @Argument var value: Double
        @Argument var unit: String
        @Option(help: "File to which it is appended.") var lines: String

        func run() throws { try Bench.append([try Result(name, text, [value], unit)], to: lines) }
    }

    static func append(_ results: [Result], to file: String) throws {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        var bytes = (try? Data(contentsOf: URL(fileURLWithPath: file))) ?? Data()
        for result in results { bytes += try encoder.encode(result) + Data("\n".utf8) }
        try bytes.write(to: URL(fileURLWithPath: file))
    }
}
