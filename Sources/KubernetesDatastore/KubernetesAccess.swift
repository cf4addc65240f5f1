// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import Model
internal import NIOSSL
internal import SystemDescriptors

/// Which API server, and as whom: from the pod's service account, or from a kubeconfig file.
public struct KubernetesAccess: Sendable {
    /// `https://10.96.0.1:443`, without a path's slash at the end.
    public var server: String
    /// PEM of the server's authorities; nil: the system's.
    public var authorities: Material?
    public var isUnverified = false
    public var identity: Identity

    /// A file, read again for each connection, or what stands in the configuration itself.
    public enum Material: Sendable, Hashable {
        case file(String)
        case data([UInt8])

        public func bytes() throws -> [UInt8] {
            switch self {
            case .data(let bytes): return bytes
            case .file(let path):
                do {
                    return try readFile(path, limit: 1 << 20)
                } catch {
                    throw AccessError("\(path) cannot be read: \(error)", remedy: "check the file and its rights")
                }
            }
        }
    }

    public enum Identity: Sendable, Hashable {
        case none
        /// Bearer token; a file is read again, for it is replaced before it ends.
        case token(Material)
        case certificate(Material, key: Material)
        /// A program that tells token or certificate (client.authentication.k8s.io).
        case program(CredentialProgram)
    }

    public init(server: String, authorities: Material?, identity: Identity) {
        self.server = server
        self.authorities = authorities
        self.identity = identity
    }

    /// See `Datastore.exposure`.
    var exposure: String? {
        if server.hasPrefix("http://") { return "\(server) is spoken to without TLS, as whoever it is" }
        return isUnverified ? "the certificate of \(server) is not verified (insecure-skip-tls-verify)" : nil
    }

    static let serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

    /// As a pod finds it: `KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT` and the service account's files. Nil
    /// outside of a pod.
    public static func inCluster(_ environment: [String: String], folder: String? = nil) -> KubernetesAccess? {
        let folder = folder ?? serviceAccount
        guard let host = environment["KUBERNETES_SERVICE_HOST"], !host.isEmpty, fileExists("\(folder)/token") else {
            return nil
        }
        let name = host.contains(":") ? "[\(host)]" : host
        let port = environment["KUBERNETES_SERVICE_PORT"] ?? "443"
        return KubernetesAccess(
            server: "https://\(name):\(port)", authorities: .file("\(folder)/ca.crt"),
            identity: .token(.file("\(folder)/token")))
    }

    /// A file named by hand or by `KUBECONFIG`, else the pod's service account, else `~/.kube/config`.
    public static func found(
        file: String? = nil, context: String? = nil, environment: [String: String]
    ) throws -> KubernetesAccess {
        if let path = file ?? environment["KUBECONFIG"].flatMap({ $0.split(separator: ":").first.map(String.init) }) {
            return try KubeConfigFile(path: path).access(context: context)
        }
        if let access = inCluster(environment) { return access }
        let home = (environment["HOME"] ?? "/root") + "/.kube/config"
        guard fileExists(home) else {
            throw AccessError(
                "there is no service account in \(serviceAccount) and no \(home)",
                remedy: "run in a pod, set KUBECONFIG, or name a file: kubernetes:PATH")
        }
        return try KubeConfigFile(path: home).access(context: context)
    }

    /// TLS as this says, its files read anew.
    func tlsConfiguration(_ certificate: (chain: [UInt8], key: [UInt8])?) throws -> TLSConfiguration {
        var tls = TLSConfiguration.makeClientConfiguration()
        if isUnverified { tls.certificateVerification = .none }
        do {
            if let authorities {
                tls.trustRoots = .certificates(try NIOSSLCertificate.fromPEMBytes(authorities.bytes()))
            }
            if let certificate {
                tls.certificateChain = try NIOSSLCertificate.fromPEMBytes(certificate.chain).map { .certificate($0) }
                tls.privateKey = .privateKey(try NIOSSLPrivateKey(bytes: certificate.key, format: .pem))
            }
        } catch let error as AccessError {
            throw error
        } catch {
            throw AccessError("a certificate or key is no PEM (\(error))", remedy: "check certificates and keys")
        }
        return tls
    }
}

/// What is wrong with the way to an API server.
struct AccessError: Error, CustomStringConvertible {
    var message: String
    var remedy: String

    init(_ message: String, remedy: String) {
        self.message = message
        self.remedy = remedy
    }

    var description: String { "\(message); \(remedy)" }
}
