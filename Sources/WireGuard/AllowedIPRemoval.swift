// SPDX-License-Identifier: Apache-2.0

internal import Addresses

extension DeviceChange {
    var removesAllowedIPs: Bool { peers.contains { !$0.removedAllowedIPs.isEmpty } }

    /// Whose private key nobody has kept. A peer of this name is there for the time of a change only.
    private static let nobody = PrivateKey.generate().publicKey

    /// The same change for a device that cannot remove a single allowed IP, only replace a
    /// peer's whole set, during which the others are missing. An allowed IP that goes moves to
    /// a peer that nobody is, which goes with it; what another peer of this change gets has
    /// moved there already.
    ///
    /// Unlike a removal this takes an allowed IP from whichever peer has it.
    func movingRemovals() -> DeviceChange {
        var result = self
        var homeless: Set<CIDR> = []
        for index in result.peers.indices where !result.peers[index].remove {
            homeless.formUnion(result.peers[index].removedAllowedIPs)
            result.peers[index].removedAllowedIPs = []
        }
        for peer in peers where !peer.remove { homeless.subtract(peer.allowedIPs) }
        guard !homeless.isEmpty, let nobody = Self.nobody else { return result }
        var taker = PeerChange(nobody)
        taker.allowedIPs = homeless.sorted()
        var removal = PeerChange(nobody)
        removal.remove = true
        result.peers += [taker, removal]
        return result
    }
}
