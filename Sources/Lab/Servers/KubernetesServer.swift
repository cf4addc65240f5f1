// SPDX-License-Identifier: Apache-2.0

internal import Foundation
public import Model
internal import SystemDescriptors

/// A real kube-apiserver with TLS and RBAC, on an etcd of its own. Without controllers, scheduler and kubelets: it has
/// what one puts into it.
public struct KubernetesServer: Sendable {
    public let process: ServerProcess
    public let etcd: EtcdServer
    public let address: IPAddress
    public let port: UInt16
    private let authority: ServerAuthority
    private let prefix: [String]
    private let folder: String

    /// Where `scripts/servers/kube-apiserver.sh` has put it, or what `$WGPLANE_KUBE_APISERVER` names. Nil: it is not there.
    public static var program: String? {
        let environment = ProcessInfo.processInfo.environment
        if let named = environment["WGPLANE_KUBE_APISERVER"] { return fileExists(named) ? named : nil }
        let cache =
            environment["WGPLANE_SERVER_CACHE"]
            ?? (environment["XDG_CACHE_HOME"] ?? (environment["HOME"] ?? "/root") + "/.cache") + "/wgplane-servers"
        let built = "\(cache)/kube-apiserver/kube-apiserver"
        return fileExists(built) ? built : nil
    }

    public init(
        folder: String, address: IPAddress, port: UInt16, etcdPort: UInt16, etcdPeerPort: UInt16, prefix: [String] = []
    ) throws {
        guard let program = Self.program else {
            throw missingServer("kube-apiserver", "build it: scripts/servers/kube-apiserver.sh")
        }
        guard findProgram("kubectl") != nil else {
            throw missingServer("kubectl", "install kubernetes-client (scripts/bootstrap.sh does)")
        }
        self.folder = folder
        self.address = address
        self.port = port
        self.prefix = prefix
        etcd = try EtcdServer(
            folder: folder, address: .loopback(.ipv4), port: etcdPort, peerPort: etcdPeerPort, prefix: prefix)
        authority = etcd.authority
        try authority.issue("client", name: "kube-apiserver")
        try authority.issue(
            "server", name: "kube-apiserver", hosts: ["localhost", "kubernetes"],
            addresses: [address, .loopback(.ipv4), .loopback(.ipv6)])
        try authority.issue("accounts", name: "service-accounts")
        try authority.issue("admin", name: "admin", groups: ["system:masters"])
        let host = address.family == .ipv4 ? "\(address)" : "[\(address)]"
        let range = address.family == .ipv4 ? "10.96.0.0/24" : "fd96::/112"
        process = ServerProcess(
            "kube-apiserver",
            prefix + [
                program, "--etcd-servers", "https://127.0.0.1:\(etcdPort)", "--etcd-cafile", authority.authorityFile,
                "--etcd-certfile", authority.certificateFile("client"), "--etcd-keyfile", authority.keyFile("client"),
                "--bind-address", address.family == .ipv4 ? "0.0.0.0" : "::", "--secure-port", "\(port)",
                "--advertise-address", "\(address)", "--tls-cert-file", authority.certificateFile("server"),
                "--tls-private-key-file", authority.keyFile("server"), "--client-ca-file", authority.authorityFile,
                "--authorization-mode", "RBAC", "--anonymous-auth=false", "--service-cluster-ip-range", range,
                "--service-account-issuer", "https://kubernetes.default.svc",
                "--service-account-key-file", authority.publicKeyFile("accounts"),
                "--service-account-signing-key-file", authority.keyFile("accounts"),
                // No controller makes service accounts and their tokens here.
                "--disable-admission-plugins", "ServiceAccount", "--allow-privileged=true", "--profiling=false",
            ], log: "\(folder)/kube-apiserver.log", outlives: !prefix.isEmpty)
        try writeConfiguration("admin", host)
    }

    public var server: String { "https://\(address.family == .ipv4 ? "\(address)" : "[\(address)]"):\(port)" }

    /// Kubeconfig of one who may all.
    public var adminConfiguration: String { "\(folder)/admin.kubeconfig" }

    private func writeConfiguration(_ name: String, _ host: String) throws {
        let text = Self.configuration(
            server: "https://\(host):\(port)", authority: authority.authorityFile,
            user: """
                    client-certificate: \(authority.certificateFile(name))
                    client-key: \(authority.keyFile(name))
                """)
        try replaceFile("\(folder)/\(name).kubeconfig", with: Array(text.utf8))
    }

    /// A kubeconfig for another user, and perhaps other authorities (a file).
    public func configuration(user: String, authority file: String? = nil) -> String {
        Self.configuration(server: server, authority: file ?? authority.authorityFile, user: user)
    }

    /// Text of a kubeconfig. `user`: lines under `user:`, indented by four.
    public static func configuration(server: String, authority: String, user: String) -> String {
        """
        apiVersion: v1
        kind: Config
        current-context: lab
        contexts:
        - name: lab
          context: {cluster: lab, user: lab}
        clusters:
        - name: lab
          cluster:
            server: \(server)
            certificate-authority: \(authority)
        users:
        - name: lab
          user:
        \(user)

        """
    }

    public var authorityFile: String { authority.authorityFile }

    /// `kubectl` as the one who may all; its standard output. Blocks. Throws what it says when it fails.
    @discardableResult
    public func kubectl(_ arguments: [String], input: String = "") throws -> String {
        var launch = ProgramLaunch(
            prefix + ["kubectl", "--kubeconfig", adminConfiguration] + arguments, environment: currentEnvironment(),
            ownSession: false)
        launch.input = input
        let (status, output) = try launch.capture()
        guard status == 0 else {
            throw ProblemsError(
                Problem(
                    resource: "kubectl", value: arguments.joined(separator: " "), message: "has failed: \(output)",
                    remedy: "see \(process.log)"))
        }
        return output
    }

    /// A token of a service account, by the TokenRequest API.
    public func token(account: String, namespace: String, seconds: Int = 86_400) throws -> String {
        let request = """
            {"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"expirationSeconds":\(seconds)}}
            """
        let answer = try kubectl(
            ["create", "--raw", "/api/v1/namespaces/\(namespace)/serviceaccounts/\(account)/token", "-f", "-"],
            input: request)
        struct Answer: Decodable {
            struct Status: Decodable { var token: String }
            var status: Status
        }
        return try JSONDecoder().decode(Answer.self, from: Data(answer.utf8)).status.token
    }
}
