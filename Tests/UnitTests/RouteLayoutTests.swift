// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
import Model
import Testing

@testable import Steering

@Suite("Steering: where routes are kept")
struct RouteLayoutTests {
    private func routes(_ texts: [String: Int]) throws -> [CIDR: Int] {
        var result: [CIDR: Int] = [:]
        for (text, slot) in texts { result[try #require(CIDR(text))] = slot }
        return result
    }

    @Test("the commonest length is chosen, and kept")
    func length() throws {
        let some = try routes([
            "10.48.0.0/16": 1, "10.49.0.0/16": 1, "10.50.0.0/16": 1, "10.48.1.0/26": 3, "10.48.2.0/26": 4,
            "10.48.3.0/24": 5, "10.48.9.9/32": 3,
        ]).mapValues { $0 == 1 ? SteeringTarget.pool : .peer(PeerSlotKey(node: "node\($0)", family: .ipv4)) }
        #expect(RouteLayout.blockLength(some, .ipv4, inForce: 0) == 26, "pools and single addresses do not count")
        #expect(RouteLayout.blockLength(some, .ipv4, inForce: 24) == 24)
        #expect(RouteLayout.blockLength(some, .ipv6, inForce: 0) == 0)
    }

    @Test("a block with a longer prefix inside goes to the tries")
    func crowded() throws {
        let some = try routes(["10.48.1.0/26": 3, "10.48.2.0/26": 4, "10.48.2.16/28": 5, "10.48.2.17/32": 6])
        let placed = RouteLayout.place(some, blockLengths: [.ipv4: 26])
        func place(_ text: String) throws -> RoutePlace? { placed[try #require(CIDR(text))]?.place }
        #expect(try place("10.48.1.0/26") == .block)
        #expect(try place("10.48.2.0/26") == .prefix && place("10.48.2.16/28") == .prefix)
        #expect(try place("10.48.2.17/32") == .address)
    }
}
