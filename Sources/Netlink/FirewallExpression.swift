// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
internal import Addresses

/// One expression of a rule of nf_tables: its name, and its attributes. All numbers in them are in network
/// byte order, but for what is compared with a packet or with the kernel's own values.
struct FirewallExpression {
    var name: String
    var data = NetlinkPayload()

    /// The register that all of them work on.
    private static let register = UInt32(NFT_REG_1.rawValue).bigEndian

    /// A rule's matches, a counter, and its action.
    static func expressions(_ rule: FirewallRule) -> [FirewallExpression] {
        rule.matches.flatMap(match) + [FirewallExpression(name: "counter")] + action(rule.action)
    }

    private init(name: String, _ body: (inout NetlinkPayload) -> Void = { _ in }) {
        self.name = name
        body(&data)
    }

    // MARK: Building blocks

    private static func meta(_ key: nft_meta_keys) -> FirewallExpression {
        FirewallExpression(name: "meta") {
            $0.attribute(NFTA_META_KEY.rawValue, value: key.rawValue.bigEndian)
            $0.attribute(NFTA_META_DREG.rawValue, value: register)
        }
    }

    private static func compare(_ bytes: [UInt8], _ operation: nft_cmp_ops = NFT_CMP_EQ) -> FirewallExpression {
        FirewallExpression(name: "cmp") {
            $0.attribute(NFTA_CMP_SREG.rawValue, value: register)
            $0.attribute(NFTA_CMP_OP.rawValue, value: operation.rawValue.bigEndian)
            $0.nested(NFTA_CMP_DATA.rawValue) { $0.attribute(NFTA_DATA_VALUE.rawValue, bytes: bytes) }
        }
    }

    /// In the order of this machine's memory, as the kernel keeps its own values.
    private static func host(_ value: UInt32) -> [UInt8] { unsafe withUnsafeBytes(of: value) { unsafe Array($0) } }

    private static func port(_ port: UInt16) -> [UInt8] { [UInt8(port >> 8), UInt8(port & 0xff)] }

    /// Of the transport header.
    private static func portField(at offset: UInt32) -> FirewallExpression {
        FirewallExpression(name: "payload") {
            $0.attribute(NFTA_PAYLOAD_DREG.rawValue, value: register)
            $0.attribute(NFTA_PAYLOAD_BASE.rawValue, value: NFT_PAYLOAD_TRANSPORT_HEADER.rawValue.bigEndian)
            $0.attribute(NFTA_PAYLOAD_OFFSET.rawValue, value: offset.bigEndian)
            $0.attribute(NFTA_PAYLOAD_LEN.rawValue, value: UInt32(2).bigEndian)
        }
    }

    /// What kind of address the routing tables call it.
    private static func addressType(_ flags: UInt32) -> FirewallExpression {
        FirewallExpression(name: "fib") {
            $0.attribute(NFTA_FIB_DREG.rawValue, value: register)
            $0.attribute(NFTA_FIB_RESULT.rawValue, value: NFT_FIB_RESULT_ADDRTYPE.rawValue.bigEndian)
            $0.attribute(NFTA_FIB_FLAGS.rawValue, value: flags.bigEndian)
        }
    }

    private static func verdict(_ code: Int32) -> FirewallExpression {
        FirewallExpression(name: "immediate") {
            $0.attribute(NFTA_IMMEDIATE_DREG.rawValue, value: NFT_REG_VERDICT.rawValue.bigEndian)
            $0.nested(NFTA_IMMEDIATE_DATA.rawValue) {
                $0.nested(NFTA_DATA_VERDICT.rawValue) {
                    $0.attribute(NFTA_VERDICT_CODE.rawValue, value: code.bigEndian)
                }
            }
        }
    }

    private static func load(_ bytes: [UInt8], _ register: UInt32) -> FirewallExpression {
        FirewallExpression(name: "immediate") {
            $0.attribute(NFTA_IMMEDIATE_DREG.rawValue, value: register)
            $0.nested(NFTA_IMMEDIATE_DATA.rawValue) { $0.attribute(NFTA_DATA_VALUE.rawValue, bytes: bytes) }
        }
    }

    // MARK: Matches

    private static func match(_ match: FirewallMatch) -> [FirewallExpression] {
        let local = host(UInt32(RTN_LOCAL))
        switch match {
        case .family(let family):
            let number = family == .ipv4 ? WGP_NFPROTO_IPV4 : WGP_NFPROTO_IPV6
            return [meta(NFT_META_NFPROTO), compare([UInt8(number.rawValue)])]
        case .transport(let number): return [meta(NFT_META_L4PROTO), compare([number])]
        case .sourcePort(let number): return [portField(at: 0), compare(port(number))]
        case .destinationPort(let number): return [portField(at: 2), compare(port(number))]
        case .sourceIsLocal: return [addressType(NFTA_FIB_F_SADDR.rawValue), compare(local)]
        case .destinationIsLocal: return [addressType(NFTA_FIB_F_DADDR.rawValue), compare(local)]
        case .sourceIsForeignAtOutput:
            return [addressType(NFTA_FIB_F_SADDR.rawValue | NFTA_FIB_F_OIF.rawValue), compare(local, NFT_CMP_NEQ)]
        case .input(let name): return [meta(NFT_META_IIFNAME), compare(device(name))]
        case .inputPrefix(let name): return [meta(NFT_META_IIFNAME), compare(Array(name.utf8))]
        case .output(let name): return [meta(NFT_META_OIFNAME), compare(device(name))]
        case .hasListener:
            // Ends the rule when there is no socket, whatever the value.
            return [
                FirewallExpression(name: "socket") {
                    $0.attribute(NFTA_SOCKET_KEY.rawValue, value: NFT_SOCKET_TRANSPARENT.rawValue.bigEndian)
                    $0.attribute(NFTA_SOCKET_DREG.rawValue, value: register)
                }
            ]
        }
    }

    /// A whole name: IFNAMSIZ bytes, zeros behind.
    private static func device(_ name: String) -> [UInt8] {
        let bytes = Array(name.utf8.prefix(15))
        return bytes + [UInt8](repeating: 0, count: 16 - bytes.count)
    }

    // MARK: Actions

    private static func action(_ action: FirewallAction) -> [FirewallExpression] {
        switch action {
        case .accept: return [verdict(1)]
        case .leave: return [verdict(NFT_RETURN.rawValue)]
        case .mark(let bits):
            return [
                meta(NFT_META_MARK),
                FirewallExpression(name: "bitwise") {
                    $0.attribute(NFTA_BITWISE_SREG.rawValue, value: register)
                    $0.attribute(NFTA_BITWISE_DREG.rawValue, value: register)
                    $0.attribute(NFTA_BITWISE_LEN.rawValue, value: UInt32(4).bigEndian)
                    $0.nested(NFTA_BITWISE_MASK.rawValue) {
                        $0.attribute(NFTA_DATA_VALUE.rawValue, bytes: host(~bits))
                    }
                    $0.nested(NFTA_BITWISE_XOR.rawValue) { $0.attribute(NFTA_DATA_VALUE.rawValue, bytes: host(bits)) }
                },
                FirewallExpression(name: "meta") {
                    $0.attribute(NFTA_META_KEY.rawValue, value: NFT_META_MARK.rawValue.bigEndian)
                    $0.attribute(NFTA_META_SREG.rawValue, value: register)
                },
            ]
        case .destinationPort(let number):
            return [
                load(port(number), register),
                FirewallExpression(name: "payload") {
                    $0.attribute(NFTA_PAYLOAD_SREG.rawValue, value: register)
                    $0.attribute(NFTA_PAYLOAD_BASE.rawValue, value: NFT_PAYLOAD_TRANSPORT_HEADER.rawValue.bigEndian)
                    $0.attribute(NFTA_PAYLOAD_OFFSET.rawValue, value: UInt32(2).bigEndian)
                    $0.attribute(NFTA_PAYLOAD_LEN.rawValue, value: UInt32(2).bigEndian)
                    $0.attribute(NFTA_PAYLOAD_CSUM_TYPE.rawValue, value: NFT_PAYLOAD_CSUM_INET.rawValue.bigEndian)
                    $0.attribute(NFTA_PAYLOAD_CSUM_OFFSET.rawValue, value: UInt32(6).bigEndian)
                },
            ]
        case .masquerade(let ports):
            // NF_NAT_RANGE_PROTO_RANDOM_FULLY, NF_NAT_RANGE_PROTO_SPECIFIED of <linux/netfilter/nf_nat.h>.
            let flags = UInt32(1 << 4) | (ports == nil ? 0 : 1 << 1)
            var result: [FirewallExpression] = []
            let registers = [NFT_REG_1.rawValue, NFT_REG_2.rawValue].map { UInt32($0).bigEndian }
            if let ports {
                result = [load(port(ports.lowerBound), registers[0]), load(port(ports.upperBound), registers[1])]
            }
            result.append(
                FirewallExpression(name: "masq") {
                    $0.attribute(NFTA_MASQ_FLAGS.rawValue, value: flags.bigEndian)
                    guard ports != nil else { return }
                    $0.attribute(NFTA_MASQ_REG_PROTO_MIN.rawValue, value: registers[0])
                    $0.attribute(NFTA_MASQ_REG_PROTO_MAX.rawValue, value: registers[1])
                })
            return result
        }
    }
}
