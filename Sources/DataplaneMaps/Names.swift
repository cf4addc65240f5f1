// SPDX-License-Identifier: Apache-2.0

internal import CDataplaneABI

/// Where a packet is seen (`enum wgp_hook`).
public struct Hook: Sendable, Hashable, CaseIterable {
    public let rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let fromPod = Hook(rawValue: WGP_HOOK_FROM_POD.rawValue)
    public static let toUplink = Hook(rawValue: WGP_HOOK_TO_UPLINK.rawValue)
    public static let fromUplink = Hook(rawValue: WGP_HOOK_FROM_UPLINK.rawValue)
    public static let toWireGuard = Hook(rawValue: WGP_HOOK_TO_WIREGUARD.rawValue)
    public static let fromWireGuard = Hook(rawValue: WGP_HOOK_FROM_WIREGUARD.rawValue)
    public static let guardOut = Hook(rawValue: WGP_HOOK_GUARD_OUT.rawValue)
    public static let guardIn = Hook(rawValue: WGP_HOOK_GUARD_IN.rawValue)

    public static let allCases = (0..<WGP_HOOK_COUNT.rawValue).map(Hook.init(rawValue:))

    public init?(name: String) {
        guard let hook = Self.allCases.first(where: { $0.name == name }) else { return nil }
        self = hook
    }

    /// `from_pod`; the program's file bears it too.
    public var name: String { unsafe String(cString: wgp_hook_name(rawValue)) }
    /// `ingress of a pod's device`.
    public var text: String { unsafe String(cString: wgp_hook_text(rawValue)) }
}

/// How a packet went, or why it was dropped (`enum wgp_reason`).
public struct Reason: Sendable, Hashable, CaseIterable {
    public let rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let tunnelled = Reason(rawValue: WGP_REASON_TUNNELLED.rawValue)
    public static let decrypted = Reason(rawValue: WGP_REASON_DECRYPTED.rawValue)
    public static let clear = Reason(rawValue: WGP_REASON_CLEAR.rawValue)
    public static let clearExempt = Reason(rawValue: WGP_REASON_CLEAR_EXEMPT.rawValue)
    public static let clearForeign = Reason(rawValue: WGP_REASON_CLEAR_FOREIGN.rawValue)
    public static let clearEncapsulated = Reason(rawValue: WGP_REASON_CLEAR_ENCAPSULATED.rawValue)
    public static let clearArrived = Reason(rawValue: WGP_REASON_CLEAR_ARRIVED.rawValue)
    public static let masqueraded = Reason(rawValue: WGP_REASON_MASQUERADED.rawValue)
    public static let unmasqueraded = Reason(rawValue: WGP_REASON_UNMASQUERADED.rawValue)
    public static let mssClamped = Reason(rawValue: WGP_REASON_MSS_CLAMPED.rawValue)
    public static let oversized = Reason(rawValue: WGP_REASON_OVERSIZED.rawValue)
    public static let flowTableFull = Reason(rawValue: WGP_REASON_FLOW_TABLE_FULL.rawValue)
    public static let eventLost = Reason(rawValue: WGP_REASON_EVENT_LOST.rawValue)
    public static let unparsable = Reason(rawValue: WGP_REASON_UNPARSABLE.rawValue)
    public static let dropNoTunnel = Reason(rawValue: WGP_REASON_DROP_NO_TUNNEL.rawValue)
    public static let dropClear = Reason(rawValue: WGP_REASON_DROP_CLEAR.rawValue)
    public static let dropClearArrived = Reason(rawValue: WGP_REASON_DROP_CLEAR_ARRIVED.rawValue)
    public static let dropEncapsulated = Reason(rawValue: WGP_REASON_DROP_ENCAPSULATED.rawValue)
    public static let dropUnparsable = Reason(rawValue: WGP_REASON_DROP_UNPARSABLE.rawValue)
    public static let dropSpoofed = Reason(rawValue: WGP_REASON_DROP_SPOOFED.rawValue)
    public static let dropTooBig = Reason(rawValue: WGP_REASON_DROP_TOO_BIG.rawValue)
    public static let dropTooBigQuiet = Reason(rawValue: WGP_REASON_DROP_TOO_BIG_QUIET.rawValue)
    public static let dropUnknownEndpoint = Reason(rawValue: WGP_REASON_DROP_UNKNOWN_ENDPOINT.rawValue)
    public static let dropMasqueradeExhausted = Reason(rawValue: WGP_REASON_DROP_MASQUERADE_EXHAUSTED.rawValue)
    public static let dropMasqueradeFull = Reason(rawValue: WGP_REASON_DROP_MASQUERADE_FULL.rawValue)
    public static let dropMasqueradeNoAddress = Reason(rawValue: WGP_REASON_DROP_MASQUERADE_NO_ADDRESS.rawValue)
    public static let dropFragmentEarly = Reason(rawValue: WGP_REASON_DROP_FRAGMENT_EARLY.rawValue)
    public static let dropRewriteFailed = Reason(rawValue: WGP_REASON_DROP_REWRITE_FAILED.rawValue)
    public static let dropNotHere = Reason(rawValue: WGP_REASON_DROP_NOT_HERE.rawValue)

    public static let allCases = (1..<WGP_REASON_COUNT.rawValue).map(Reason.init(rawValue:))

    public var isDrop: Bool { rawValue >= WGP_REASON_FIRST_DROP.rawValue }
    public var name: String { unsafe String(cString: wgp_reason_name(rawValue)) }
    public var text: String { unsafe String(cString: wgp_reason_text(rawValue)) }
}

/// What is done with packets to a destination (`enum wgp_action`).
public enum DestinationAction: UInt8, Sendable, Hashable, Codable {
    case clear = 0
    case tunnel = 1
    case drop = 2
    case stack = 3
    case draining = 4
    case exempt = 5

    public var name: String { "\(self)" }
}

/// What an address of this node is (`enum wgp_local_kind`).
public enum LocalKind: UInt8, Sendable, Hashable, Codable {
    case pod = 1
    case host = 2
    case tunnel = 3
}

/// Marks on packets (the shared header's `WGP_MARK_…`).
public enum PacketMark {
    public static let counted = UInt32(WGP_MARK_COUNTED)
    public static let host = UInt32(WGP_MARK_HOST)
}

/// Fixed destination slots (`enum wgp_slot`).
public enum DestinationSlot {
    public static let outside = 0
    public static let pool = 1
    public static let local = 2
    public static let firstPeer = 3
    public static let count = Int(WGP_MAX_DESTINATIONS)
}
