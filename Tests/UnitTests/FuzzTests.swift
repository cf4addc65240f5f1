// SPDX-License-Identifier: Apache-2.0

import Foundation
import FuzzTargets
import Lab
import Testing

/// What others may send, in short: the corpora, and some thousand changes of them at random. `scripts/fuzz.sh` goes on from
/// here for as long as it is let.
@Suite("Hostile bytes")
struct FuzzTests {
    static let corpora = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appending(path: "Corpora")

    @Test("every reader takes the corpus, and changes of it, without harm", arguments: FuzzTarget.all.map(\.name))
    func corpus(_ name: String) throws {
        let target = try #require(FuzzTarget.all.first { $0.name == name })
        let folder = Self.corpora.appending(path: name)
        let files = (try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
        var inputs = try files.sorted { $0.path < $1.path }.map { [UInt8](try Data(contentsOf: $0)) }
        inputs.append([])
        for input in inputs { target.run(input) }
        let seed = ProcessInfo.processInfo.environment["WGPLANE_SEED"].flatMap { UInt64($0) } ?? .random(in: 0...(.max))
        print("\(name): seed \(seed); WGPLANE_SEED repeats it")
        var random = SeededGenerator(seed: seed)
        for _ in 0..<1500 { target.run(Self.changed(inputs, &random)) }
    }

    /// One of the inputs with some bytes changed, cut out, doubled, or of another input.
    private static func changed(_ inputs: [[UInt8]], _ random: inout SeededGenerator) -> [UInt8] {
        var bytes = inputs[Int.random(in: 0..<inputs.count, using: &random)]
        for _ in 0..<Int.random(in: 1...6, using: &random) {
            let place = Int.random(in: 0...bytes.count, using: &random)
            let end = min(bytes.count, place + Int.random(in: 0...12, using: &random))
            switch Int.random(in: 0..<5, using: &random) {
            case 0: if place < bytes.count { bytes[place] ^= 1 << UInt8.random(in: 0...7, using: &random) }
            case 1:
                if place < bytes.count {
                    bytes[place] = [0, 0x7f, 0xff, 0x22, 0x0a][Int.random(in: 0..<5, using: &random)]
                }
            case 2: bytes.removeSubrange(place..<end)
            case 3: bytes.insert(contentsOf: bytes[place..<end], at: place)
            default:
                let other = inputs[Int.random(in: 0..<inputs.count, using: &random)]
                let from = Int.random(in: 0...other.count, using: &random)
                bytes.replaceSubrange(place..<end, with: other[from..<min(other.count, from + 16)])
            }
        }
        return bytes
    }
}
