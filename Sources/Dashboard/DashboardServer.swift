// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import Hummingbird
internal import HummingbirdCore
internal import HummingbirdTLS
public import Logging
public import Model
internal import NIOCore
internal import NIOSSL

/// Where a dashboard listens, and to whom.
public struct DashboardListener: Sendable, Hashable {
    public enum Place: Sendable, Hashable {
        /// A socket that only its owner may use.
        case socket(path: String)
        case address(host: String, port: UInt16)
    }

    public var place: Place
    /// PEM files; empty: no TLS.
    public var certificateFile = ""
    public var keyFile = ""
    /// What readers must show; nil: nothing.
    public var token: String?

    public init(socket path: String) { place = .socket(path: path) }

    /// Reads the files. Throws what is missing.
    public init?(_ settings: DashboardSettings) throws {
        guard let (host, port) = HostPort.split(settings.address), let port else { return nil }
        place = .address(host: host, port: port)
        (certificateFile, keyFile) = (settings.certificateFile, settings.keyFile)
        guard !settings.tokenFile.isEmpty else { return }
        let text = try String(contentsOfFile: settings.tokenFile, encoding: .utf8)
            .trimmingCharacters(in: .whitespacesAndNewlines)
        // What a cookie may have (RFC 6265, section 4.1.1).
        let isPlain = text.utf8.allSatisfy { (0x21...0x7e).contains($0) && !"\",;\\".utf8.contains($0) }
        guard text.utf8.count >= 16, isPlain else {
            throw ProblemsError(
                Problem(
                    resource: "DataplaneConfiguration", field: "spec.dashboardTokenFile", value: settings.tokenFile,
                    message: isPlain
                        ? "holds no token of 16 characters or more"
                        : "holds a token with a space, quote, comma, semicolon, backslash or a character beyond ASCII",
                    remedy: "write a random one into it, as `openssl rand -hex 32` makes them"))
        }
        token = text
    }

    public var isTLS: Bool { !certificateFile.isEmpty }

    /// `http://127.0.0.1:9586/`, `/run/wgplane/http.sock`.
    public var location: String {
        switch place {
        case .socket(let path): path
        case .address(let host, let port): "\(isTLS ? "https" : "http")://\(HostPort.join(host, port))/"
        }
    }
}

/// Serves the page, its state and the metrics, read-only.
public struct DashboardServer: Sendable {
    private let source: any DashboardSource
    private let feed: StateFeed
    private let logger: Logger

    /// Connections at once, and seconds that one may say nothing.
    static let connectionLimit = 128
    static let idleLimit = 30

    public init(_ source: any DashboardSource, logger: Logger) {
        self.source = source
        self.logger = logger
        feed = StateFeed(source)
    }

    /// Listens until the task is cancelled. Throws when it cannot. `isReady` is called once it listens.
    public func run(_ listener: DashboardListener, isReady: @escaping @Sendable () async -> Void = {}) async throws {
        var quiet = logger
        quiet.logLevel = .error
        let http = HTTPServerBuilder.http1(
            configuration: .init(
                idleTimeout: .seconds(Int64(Self.idleLimit)),
                httpDecoderConfiguration: .init(
                    maxHeaderFieldSize: 8192, maxHeaderListSize: 32768, maxHeaderFieldCount: 100)))
        let server = listener.isTLS ? try .tls(http, tlsConfiguration: Self.tls(listener)) : http
        let address: BindAddress
        switch listener.place {
        case .socket(let path):
            unlink(path)
            address = .unixDomainSocket(path: path)
        case .address(let host, let port): address = .hostname(host, port: Int(port))
        }
        let application = Application(
            router: DashboardRoutes(source: source, feed: feed, listener: listener).router(), server: server,
            configuration: ApplicationConfiguration(
                address: address,
                availableConnectionsDelegate: MaximumAvailableConnections(Self.connectionLimit, logger: quiet)),
            onServerRunning: { _ in
                if case .socket(let path) = listener.place { chmod(path, 0o600) }
                await isReady()
            },
            logger: quiet)
        defer { if case .socket(let path) = listener.place { unlink(path) } }
        try await application.run()
    }

    private static func tls(_ listener: DashboardListener) throws -> TLSConfiguration {
        var configuration = TLSConfiguration.makeServerConfiguration(
            certificateChain: try NIOSSLCertificate.fromPEMFile(listener.certificateFile).map { .certificate($0) },
            privateKey: .privateKey(try NIOSSLPrivateKey(file: listener.keyFile, format: .pem)))
        configuration.minimumTLSVersion = .tlsv12
        return configuration
    }
}
