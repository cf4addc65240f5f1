// SPDX-License-Identifier: Apache-2.0

import DataplaneMaps
import Model

/// A route as it is kept.
struct PlacedRoute: Sendable, Hashable {
    var slot: Int
    var place: RoutePlace
}

/// Decides which prefixes are kept in the hashes of blocks.
enum RouteLayout {
    /// The length that most prefixes have, of those between pools and single addresses; 0: none.
    ///
    /// What is in force stays: another length would be looked up before its prefixes are there.
    static func blockLength(_ routes: [CIDR: SteeringTarget], _ family: AddressFamily, inForce: Int) -> Int {
        if inForce != 0 { return inForce }
        var counts: [Int: Int] = [:]
        for (cidr, target) in routes where cidr.family == family && !cidr.isHost && target != .pool {
            counts[cidr.prefixLength, default: 0] += 1
        }
        return counts.max { ($0.value, $0.key) < ($1.value, $1.key) }?.key ?? 0
    }

    /// Places all routes. A block with a longer prefix inside goes to the tries, where the
    /// longer one wins.
    static func place(_ routes: [CIDR: Int], blockLengths: [AddressFamily: Int]) -> [CIDR: PlacedRoute] {
        var crowded: Set<CIDR> = []
        for cidr in routes.keys where !cidr.isHost {
            guard let length = blockLengths[cidr.family], length != 0, cidr.prefixLength > length,
                let block = CIDR(masking: cidr.address, prefixLength: length)
            else { continue }
            crowded.insert(block)
        }
        var result: [CIDR: PlacedRoute] = [:]
        for (cidr, slot) in routes {
            let isBlock = cidr.prefixLength == blockLengths[cidr.family] && !crowded.contains(cidr)
            result[cidr] = PlacedRoute(slot: slot, place: cidr.isHost ? .address : isBlock ? .block : .prefix)
        }
        return result
    }
}
