// SPDX-License-Identifier: Apache-2.0

internal import CLibbpf
public import SystemDescriptors
public import SystemPackage

/// What went wrong with a BPF object, map, program or link.
public enum BPFError: Error, CustomStringConvertible, Sendable {
    /// A call failed; `subject` is the map, program, pin or device.
    case call(String, subject: String, Errno)
    /// The verifier refused a program: a one-line summary, and its whole log.
    case verifier(program: String, summary: String, log: String)
    /// The kernel lacks something; `minimumKernel` has it.
    case unsupported(feature: String, minimumKernel: String)
    /// A pinned object is not what this version expects.
    case layout(subject: String, expected: String, found: String)
    /// An archive has been written by a version with other maps.
    case archiveLayout(expected: Int, found: Int)
    /// A pin that somebody else has put there.
    case foreign(ForeignPath)
    /// It is of an archive, which cannot be changed or waited for.
    case archived(subject: String)

    public var errno: Errno? {
        if case .call(_, _, let errno) = self { errno } else { nil }
    }

    public var description: String {
        switch self {
        case .call(let call, let subject, let errno): "\(call) \(subject): \(errno)"
        case .verifier(let program, let summary, _): "verifier refused program \(program): \(summary)"
        case .unsupported(let feature, let kernel): "this kernel has no \(feature); kernel \(kernel) has"
        case .layout(let subject, let expected, let found):
            "\(subject) has another layout: expected \(expected), found \(found); remove it with `wgplane cleanup`"
        case .archiveLayout(let expected, let found):
            "the archive has maps of layout \(found), and this version reads layout \(expected); read it with the version that wrote it"
        case .foreign(let path): "\(path)"
        case .archived(let subject): "\(subject) is of an archive, which can only be read"
        }
    }

    /// The line of a verifier log that says why: the last that is not statistics.
    static func summary(ofLog log: String) -> String {
        let lines = log.split(whereSeparator: \.isNewline)
            .map { $0.trimmingPrefix { $0 == " " || $0 == "\t" } }
            .filter { line in
                !line.isEmpty && !line.hasPrefix("processed ") && !line.hasPrefix("verification time")
                    && !line.hasPrefix("stack depth") && !line.hasPrefix("-- ") && !line.hasPrefix("libbpf:")
                    && !line.hasPrefix("max_states")
            }
        return lines.last.map(String.init) ?? "no reason given"
    }
}

/// libbpf's negative results as errors.
func check(_ result: some SignedInteger, _ call: String, _ subject: @autoclosure () -> String) throws(BPFError) {
    if result < 0 { throw .call(call, subject: subject(), Errno(rawValue: Int32(-result))) }
}
