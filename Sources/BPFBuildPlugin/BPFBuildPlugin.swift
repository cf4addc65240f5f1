// SPDX-License-Identifier: Apache-2.0

import Foundation
import PackagePlugin

/// Compiles every `bpf/*.bpf.c` with clang's BPF target (for the benchmark those in `bpf/bench`) and embeds
/// the object code as base64 text in a generated Swift file, so that the product is one binary.
@main
struct BPFBuildPlugin: BuildToolPlugin {
    func createBuildCommands(context: PluginContext, target: any Target) async throws -> [Command] {
        let sources = context.package.directoryURL.appending(path: "bpf")
        let script = context.package.directoryURL.appending(path: "scripts/embed-bpf.sh")
        let isOwn = target.name == "BPFObjects"
        let folder = isOwn ? sources : sources.appending(path: "bench")
        let entries = try FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
        let programs = entries.filter { $0.lastPathComponent.hasSuffix(".bpf.c") }
            .sorted { $0.path < $1.path }
        // clang writes no dependency file for us, so every header is an input of every program.
        let headers = try ["lib", "include", "bench"].flatMap { folder in
            try FileManager.default.contentsOfDirectory(
                at: sources.appending(path: folder), includingPropertiesForKeys: nil)
        }
        .filter { $0.pathExtension == "h" }
        return programs.map { program in
            let name = program.lastPathComponent.replacingOccurrences(of: ".bpf.c", with: "")
            let output = context.pluginWorkDirectoryURL.appending(path: "\(name).swift")
            return .buildCommand(
                displayName: "Compiling BPF program \(name)",
                executable: URL(filePath: "/bin/sh"),
                arguments: [script.path, program.path, sources.path, output.path, name, isOwn ? "own" : "foreign"],
                inputFiles: [program, script] + headers,
                outputFiles: [output])
        }
    }
}
