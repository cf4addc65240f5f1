// SPDX-License-Identifier: Apache-2.0

internal import Foundation
public import Model
internal import SystemDescriptors

/// A real etcd (Debian's etcd-server): TLS, and nobody in without a certificate.
public struct EtcdServer: Sendable {
    public let process: ServerProcess
    public let authority: ServerAuthority
    public let address: IPAddress
    public let port: UInt16
    public let peerPort: UInt16
    public let data: String

    /// - Parameters:
    ///   - folder: for data, certificates and log.
    ///   - prefix: words before the program's name, that run it somewhere else.
    ///   - authority: who issues its certificates; nil: an own one.
    public init(
        folder: String, address: IPAddress, port: UInt16, peerPort: UInt16, authority: ServerAuthority? = nil,
        prefix: [String] = [], extra: [String] = []
    ) throws {
        try makeFolders(folder, mode: 0o700)
        let authority = try authority ?? ServerAuthority(folder: "\(folder)/pki")
        try authority.issue(
            "etcd", name: "etcd", hosts: ["localhost"], addresses: [address, .loopback(.ipv4), .loopback(.ipv6)])
        self.authority = authority
        self.address = address
        self.port = port
        self.peerPort = peerPort
        data = "\(folder)/etcd"
        let host = address.family == .ipv4 ? "\(address)" : "[\(address)]"
        let local = "https://127.0.0.1:\(port)"
        let listen = address == .loopback(.ipv4) ? local : "https://\(host):\(port),\(local)"
        process = ServerProcess(
            "etcd",
            // It would take a client's variables for its own.
            prefix + ["env"] + Self.clientVariables.flatMap { ["-u", $0] } + [
                "etcd", "--name", "lab", "--data-dir", data, "--listen-client-urls", listen,
                "--advertise-client-urls", "https://\(host):\(port)",
                "--listen-peer-urls", "http://127.0.0.1:\(peerPort)",
                "--initial-advertise-peer-urls", "http://127.0.0.1:\(peerPort)",
                "--initial-cluster", "lab=http://127.0.0.1:\(peerPort)",
                "--cert-file", authority.certificateFile("etcd"), "--key-file", authority.keyFile("etcd"),
                "--client-cert-auth", "--trusted-ca-file", authority.authorityFile,
                // Its data is a lab's: nothing that a power cut could take.
                "--logger", "zap",
            ] + extra, log: "\(folder)/etcd.log", outlives: !prefix.isEmpty)
    }

    /// `https://10.0.0.250:2379`.
    public var endpoint: String { "https://\(address.family == .ipv4 ? "\(address)" : "[\(address)]"):\(port)" }

    private static let clientVariables = [
        "ETCD_CA_CERT_FILE", "ETCD_CERT_FILE", "ETCD_KEY_FILE", "ETCD_USERNAME", "ETCD_PASSWORD",
    ]

    /// Environment of a client that has a certificate of `name`.
    public func environment(_ name: String) -> [String: String] {
        [
            "ETCD_CA_CERT_FILE": authority.authorityFile, "ETCD_CERT_FILE": authority.certificateFile(name),
            "ETCD_KEY_FILE": authority.keyFile(name),
        ]
    }

    public static func check() throws {
        guard findProgram("etcd") != nil else {
            throw missingServer("etcd", "install etcd-server (scripts/bootstrap.sh does)")
        }
    }
}
