// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import Subprocess
internal import SystemPackage

/// A program of a kubeconfig that tells credentials (`users[].user.exec`).
public struct CredentialProgram: Sendable, Hashable {
    public var command: String
    public var arguments: [String] = []
    public var environment: [String: String] = [:]
    /// `client.authentication.k8s.io/v1` or `v1beta1`.
    public var apiVersion: String

    public init(command: String, apiVersion: String) {
        self.command = command
        self.apiVersion = apiVersion
    }
}

/// What a request carries to say who asks.
struct Credential: Sendable, Equatable {
    var token: String?
    /// PEM.
    var chain: [UInt8]?
    var key: [UInt8]?
    /// Nil: nobody knows.
    var expires: Date?
}

/// Keeps the credential that is in force: a token's file is read again each minute, a program is asked before its
/// credential ends, and both when the server says 401.
actor Credentials {
    private let identity: KubernetesAccess.Identity
    private var current: Credential?
    private var readAt = ContinuousClock.now
    private static let period = Duration.seconds(60)

    init(_ identity: KubernetesAccess.Identity) { self.identity = identity }

    /// The credential to use now. `isRefused`: the server has not taken this one.
    func credential(refused: Credential? = nil) async throws -> Credential {
        if let current, current != refused, isFresh(current) { return current }
        let new = try await read()
        current = new
        readAt = .now
        return new
    }

    private func isFresh(_ credential: Credential) -> Bool {
        switch identity {
        case .none, .certificate: true
        case .token: ContinuousClock.now - readAt < Self.period
        case .program: credential.expires.map { $0.timeIntervalSinceNow > 10 } ?? true
        }
    }

    private func read() async throws -> Credential {
        switch identity {
        case .none: return Credential()
        case .token(let material):
            let text = String(decoding: try material.bytes(), as: UTF8.self)
            return Credential(token: text.trimmingCharacters(in: .whitespacesAndNewlines))
        case .certificate(let chain, let key): return Credential(chain: try chain.bytes(), key: try key.bytes())
        case .program(let program): return try await Self.ask(program)
        }
    }

    private struct Answer: Decodable {
        struct Status: Decodable {
            var token: String?
            var clientCertificateData: String?
            var clientKeyData: String?
            var expirationTimestamp: String?
        }
        var status: Status?
    }

    /// Seconds that a program may take.
    private static let patience = Duration.seconds(15)

    /// Its answer, or an error when it takes too long, which ends it.
    private static func ask(_ program: CredentialProgram) async throws -> Credential {
        try await withThrowingTaskGroup(of: Credential.self) { group in
            group.addTask { try await start(program) }
            group.addTask {
                try await Task.sleep(for: patience)
                throw AccessError(
                    "credential plugin \(program.command) has said nothing for \(patience)",
                    remedy: "run it by hand; see the exec section of the kubeconfig")
            }
            defer { group.cancelAll() }
            guard let first = try await group.next() else { throw CancellationError() }
            return first
        }
    }

    private static func start(_ program: CredentialProgram) async throws -> Credential {
        let remedy = "run it by hand; see the exec section of the kubeconfig"
        let info =
            "{\"apiVersion\":\"\(program.apiVersion)\",\"kind\":\"ExecCredential\",\"spec\":{\"interactive\":false}}"
        var variables: [Environment.Key: String?] = ["KUBERNETES_EXEC_INFO": info]
        for (name, value) in program.environment { variables[Environment.Key(rawValue: name) ?? "_"] = value }
        let executable: Executable =
            program.command.contains("/") ? .path(FilePath(program.command)) : .name(program.command)
        do {
            let result = try await run(
                executable, arguments: Arguments(program.arguments), environment: .inherit.updating(variables),
                output: .bytes(limit: 1 << 20), error: .string(limit: 4096))
            guard result.terminationStatus.isSuccess else {
                let words = result.standardError.split(separator: "\n").last.map(String.init) ?? ""
                throw AccessError("credential plugin \(program.command) has failed (\(words))", remedy: remedy)
            }
            guard let status = try JSONDecoder().decode(Answer.self, from: Data(result.standardOutput)).status else {
                throw AccessError("credential plugin \(program.command) tells no status", remedy: remedy)
            }
            return Credential(
                token: status.token, chain: status.clientCertificateData.map { Array($0.utf8) },
                key: status.clientKeyData.map { Array($0.utf8) },
                expires: status.expirationTimestamp.flatMap { try? Date($0, strategy: .iso8601) })
        } catch let error as AccessError {
            throw error
        } catch {
            throw AccessError("credential plugin \(program.command): \(error)", remedy: remedy)
        }
    }
}
