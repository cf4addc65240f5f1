// SPDX-License-Identifier: Apache-2.0

import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing

/// Headless Chromium, driven by the DevTools protocol over two pipes: messages of JSON, each ended by a zero byte.
actor Browser {
    private let output: FileHandle
    private var input: AsyncStream<ManifestValue>.AsyncIterator
    private var number: Int64 = 0
    private var session = ""
    private let process: ProcessReference

    struct Refusal: Error { var answer: ManifestValue }

    /// Starts it in a place of the lab, which ends it when it goes down.
    init(_ lab: Lab, _ place: String, folder: String) async throws {
        for name in ["to", "from"] { _ = try await Collectors.run(["mkfifo", "\(folder)/\(name)"]) }
        process = try Collectors.start(
            lab, place,
            [
                "sh", "-c",
                """
                exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars \
                --no-first-run --user-data-dir=\(folder)/profile --remote-debugging-pipe about:blank \
                3<\(folder)/to 4>\(folder)/from
                """,
            ], log: "\(folder)/chromium.log")
        // Each end waits for the other.
        let to = URL(fileURLWithPath: "\(folder)/to")
        output = try await Task.detachedThread { try FileHandle(forWritingTo: to) }
        let from = URL(fileURLWithPath: "\(folder)/from")
        let source = try await Task.detachedThread { try FileHandle(forReadingFrom: from) }
        let (messages, continuation) = AsyncStream.makeStream(of: ManifestValue.self)
        startThread {
            var rest = Data()
            while case let part = source.availableData, !part.isEmpty {
                rest.append(part)
                while let end = rest.firstIndex(of: 0) {
                    let message = rest[rest.startIndex..<end]
                    rest = Data(rest[rest.index(after: end)...])
                    if let value = try? JSONDecoder().decode(ManifestValue.self, from: message) {
                        continuation.yield(value)
                    }
                }
            }
            continuation.finish()
        }
        input = messages.makeAsyncIterator()
        let target = try await call("Target.createTarget", ["url": "about:blank"])["targetId"]?.text ?? ""
        let attached = try await call(
            "Target.attachToTarget", ["targetId": .string(target), "flatten": .bool(true)])
        session = attached["sessionId"]?.text ?? ""
    }

    @discardableResult
    func call(_ method: String, _ parameters: KeyValuePairs<String, ManifestValue> = [:]) async throws -> ManifestValue
    {
        number += 1
        var message = ManifestValue.object([:])
        message["id"] = .integer(number)
        message["method"] = .string(method)
        var values = ManifestValue.object([:])
        for (name, value) in parameters { values[name] = value }
        message["params"] = values
        if !session.isEmpty { message["sessionId"] = .string(session) }
        try output.write(contentsOf: try JSONEncoder().encode(message) + [0])
        var iterator = input
        while let answer = await iterator.next(isolation: #isolation) {
            guard answer["id"]?.text == "\(number)" else { continue }
            if let result = answer["result"] { return result }
            throw Refusal(answer: answer)
        }
        throw Refusal(answer: .string("Chromium has ended"))
    }

    func open(_ url: String) async throws { try await call("Page.navigate", ["url": .string(url)]) }

    /// Value of a JavaScript expression, as text.
    func evaluate(_ expression: String) async throws -> String {
        let answer = try await call(
            "Runtime.evaluate",
            ["expression": .string("String(\(expression))"), "returnByValue": .bool(true), "awaitPromise": .bool(true)])
        if answer["exceptionDetails"] != nil { throw Refusal(answer: answer) }
        return answer["result"]?["value"]?.text ?? ""
    }

    func look(width: Int64, isDark: Bool) async throws {
        try await call(
            "Emulation.setDeviceMetricsOverride",
            [
                "width": .integer(width), "height": .integer(1000), "deviceScaleFactor": .integer(1),
                "mobile": .bool(false),
            ])
        try await call(
            "Emulation.setEmulatedMedia",
            [
                "features": .array([
                    .object([
                        "name": "prefers-color-scheme", "value": .string(isDark ? "dark" : "light"),
                    ])
                ])
            ])
    }

    /// PNG.
    func screenshot() async throws -> Data {
        let answer = try await call("Page.captureScreenshot", ["format": "png", "captureBeyondViewport": .bool(true)])
        return Data(base64Encoded: answer["data"]?.text ?? "") ?? Data()
    }

    func end() async throws {
        _ = try? await call("Browser.close")
    }
}
