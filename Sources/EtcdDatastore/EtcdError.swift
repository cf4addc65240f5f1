// SPDX-License-Identifier: Apache-2.0

internal import GRPCCore
internal import Model

/// What etcd's errors mean.
enum EtcdError {
    static func text(_ error: any Error) -> String {
        guard let error = error as? RPCError else { return "\(error)" }
        switch error.code {
        case .unavailable, .deadlineExceeded, .cancelled:
            return "etcd does not answer (\(error.message.isEmpty ? "\(error.code)" : error.message))"
        case .permissionDenied: return "etcd does not permit it (\(error.message))"
        default: return "etcd refuses (\(error.message))"
        }
    }

    static func remedy(_ error: RPCError) -> String {
        switch error.code {
        case .unavailable, .deadlineExceeded, .cancelled: "is it up, has it a leader, and are certificates right?"
        case .permissionDenied: "grant the user's role readwrite on the prefix /wgplane/"
        case .unauthenticated, .invalidArgument: "check ETCD_USERNAME and ETCD_PASSWORD, or the client certificate"
        case .resourceExhausted: "make room: etcdctl compact, defrag, alarm disarm"
        default: "see etcd's log"
        }
    }

    static func unreadable(_ key: ResourceKey, _ error: any Error) -> Problem {
        if let error = error as? ProblemsError, let first = error.problems.first { return first }
        return Problem(
            resource: key.description, message: "is no manifest as JSON (\(error))",
            remedy: "write it anew: wgplane apply -f FILE")
    }
}
