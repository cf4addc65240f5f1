// SPDX-License-Identifier: Apache-2.0

internal import Flows
internal import Foundation
internal import HTTPTypes
internal import Hummingbird
internal import HummingbirdCore
internal import Model
internal import NIOCore

/// What is served under which path.
struct DashboardRoutes: Sendable {
    let source: any DashboardSource
    let feed: StateFeed
    let listener: DashboardListener

    func router() -> Router<BasicRequestContext> {
        let router = Router()
        router.add(middleware: Doorkeeper(listener: listener))
        router.get("/") { _, _ in Self.file(PackageResources.page_html, "text/html; charset=utf-8") }
        router.get("/page.css") { _, _ in Self.file(PackageResources.page_css, "text/css; charset=utf-8") }
        router.get("/page.js") { _, _ in Self.file(PackageResources.page_js, "text/javascript; charset=utf-8") }
        router.get("/healthz") { _, _ in Self.text("ok\n") }
        router.get("/metrics") { request, _ in try await metrics(request, node: nil) }
        router.get("/nodes/:node/metrics") { request, context in
            try await metrics(request, node: try context.parameters.require("node"))
        }
        router.get("/api/v1/state") { [feed] _, _ in
            Self.text(try await feed.latest() + "\n", type: "application/json")
        }
        router.get("/api/v1/events") { [feed] _, _ in Self.events(feed) }
        return router
    }

    private func metrics(_ request: Request, node: String?) async throws -> Response {
        let format = MetricText(accept: request.headers[.accept] ?? "")
        guard let text = try await source.metrics(format, node: node) else {
            return Self.text(
                "there is no such node here; a cluster's are at /nodes/NODE/metrics\n", status: .notFound)
        }
        return Self.text(text, type: format.contentType)
    }

    /// Server-sent events: the state, each second.
    private static func events(_ feed: StateFeed) -> Response {
        let body = ResponseBody { writer in
            while !Task.isCancelled {
                try await writer.write(ByteBuffer(string: "data: \(try await feed.latest())\n\n"))
                try await Task.sleep(for: .seconds(1))
            }
            try await writer.finish(nil)
        }
        return Response(
            status: .ok, headers: [.contentType: "text/event-stream", .cacheControl: "no-store"], body: body)
    }

    private static func file(_ bytes: [UInt8], _ type: String) -> Response {
        Response(
            status: .ok, headers: [.contentType: type, .cacheControl: "no-cache"],
            body: ResponseBody(byteBuffer: ByteBuffer(bytes: bytes)))
    }

    static func text(
        _ text: String, type: String = "text/plain; charset=utf-8", status: HTTPResponse.Status = .ok
    ) -> Response {
        Response(
            status: status, headers: [.contentType: type, .cacheControl: "no-store"],
            body: ResponseBody(byteBuffer: ByteBuffer(string: text)))
    }
}
