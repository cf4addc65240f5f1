// SPDX-License-Identifier: Apache-2.0

internal import Foundation
internal import HTTPTypes
internal import Hummingbird
internal import HummingbirdCore
internal import Model
internal import NIOCore

/// Lets in who may read, and tells browsers what the page may do: nothing but ask this server.
///
/// Without a token a request must name the address that is listened at, or a name of loopback: a page of somebody
/// else's, whose name is made to resolve to loopback, names its own (DNS rebinding).
struct Doorkeeper: RouterMiddleware {
    let listener: DashboardListener

    private static let cookie = "wgplane_token"

    private static let headers: [(HTTPField.Name, String)] = [
        (
            .contentSecurityPolicy,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        ),
        (.xContentTypeOptions, "nosniff"),
    ]

    typealias Context = BasicRequestContext

    @concurrent func handle(
        _ request: Request, context: BasicRequestContext,
        next: @concurrent (Request, BasicRequestContext) async throws -> Response
    ) async throws -> Response {
        var response: Response
        if !isKnownHost(request) {
            response = DashboardRoutes.text(
                "this server is not \(request.head.authority ?? "what was asked for")\n", status: .misdirectedRequest)
        } else if let token = listener.token, request.uri.path != "/healthz", !isAllowed(request, token) {
            response = try await login(request, context, token)
        } else {
            response = try await next(request, context)
        }
        for (name, value) in Self.headers { response.headers[name] = value }
        return response
    }

    private func isKnownHost(_ request: Request) -> Bool {
        guard case .address(let host, _) = listener.place, listener.token == nil else { return true }
        guard let authority = request.head.authority, let asked = HostPort.split(authority)?.host else { return false }
        if asked == host || asked.lowercased() == "localhost" { return true }
        guard let address = IPAddress(asked) else { return false }
        return address.family == .ipv4 ? address.bits >> 24 == 127 : address.bits == 1
    }

    // MARK: Token

    private func isAllowed(_ request: Request, _ token: String) -> Bool {
        if let header = request.headers[.authorization], header.hasPrefix("Bearer ") {
            return Self.isSame(String(header.dropFirst(7)), token)
        }
        return request.cookies[Self.cookie].map { Self.isSame($0.value, token) } ?? false
    }

    /// In a time that does not tell how much of it is right.
    private static func isSame(_ a: String, _ b: String) -> Bool {
        let (a, b) = (Array(a.utf8), Array(b.utf8))
        guard a.count == b.count else { return false }
        return zip(a, b).reduce(UInt8(0)) { $0 | ($1.0 ^ $1.1) } == 0
    }

    /// Asks for the token, and keeps one that is right in a cookie.
    private func login(_ request: Request, _ context: BasicRequestContext, _ token: String) async throws -> Response {
        if request.method == .post, request.uri.path == "/login" {
            let body = try await request.body.collect(upTo: 4096)
            let pairs = String(buffer: body).split(separator: "&")
            let given = pairs.first { $0.hasPrefix("token=") }?.dropFirst(6).replacing("+", with: " ")
            if let given = given?.removingPercentEncoding, Self.isSame(given, token) {
                var response = Response(status: .seeOther, headers: [.location: "/"])
                response.setCookie(
                    Cookie(
                        name: Self.cookie, value: token, path: "/", secure: listener.isTLS, httpOnly: true,
                        sameSite: .strict))
                return response
            }
        }
        guard request.headers[.accept]?.contains("text/html") == true else {
            var response = DashboardRoutes.text("show the token: Authorization: Bearer TOKEN\n", status: .unauthorized)
            response.headers[.wwwAuthenticate] = "Bearer"
            return response
        }
        return DashboardRoutes.text(Self.form, type: "text/html; charset=utf-8", status: .unauthorized)
    }

    private static let form = """
        <!doctype html><html lang="en"><head><meta charset="utf-8"><title>wgplane</title>
        <meta name="color-scheme" content="light dark"></head><body><main><h1>wgplane</h1>
        <form method="post" action="/login"><label>Token <input type="password" name="token" autofocus></label>
        <button>Show</button></form></main></body></html>

        """
}
