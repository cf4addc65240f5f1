// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import SystemDescriptors
internal import SystemPackage

extension NetlinkError {
    static func text(_ errno: Int32) -> String { Errno(rawValue: errno).description }
}

/// A family of netlink.
public enum NetlinkFamily: Int32, Sendable {
    case route = 0
    case netfilter = 12
    case generic = 16
}

/// Requests and answers over one netlink socket: sequence numbers, acknowledgement,
/// dumps. Calls block for as long as the kernel takes, so use it on a `KernelQueue`.
public final class NetlinkSession {
    private let socket: SharedDescriptor
    private let port: UInt32
    private var sequence: UInt32 = 0
    private var buffer = [UInt8](repeating: 0, count: 1 << 18)

    /// Opens a socket in the calling thread's network namespace.
    public static func openSocket(_ family: NetlinkFamily, groups: [Int32] = []) throws(NetlinkError)
        -> SharedDescriptor
    {
        do {
            let number = try retryingInterrupts {
                Glibc.socket(AF_NETLINK, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), family.rawValue)
            }
            let descriptor = SharedDescriptor(OwnedDescriptor(owning: number))
            var address = sockaddr_nl()
            address.nl_family = sa_family_t(AF_NETLINK)
            try retryingInterrupts {
                unsafe withUnsafePointer(to: &address) { pointer in
                    unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                        unsafe bind(number, $0, socklen_t(MemoryLayout<sockaddr_nl>.size))
                    }
                }
            }
            func option(_ name: Int32, _ value: Int32, required: Bool) throws(Errno) {
                var value = value
                let result = unsafe setsockopt(number, SOL_NETLINK, name, &value, 4)
                if result != 0 && required { throw .current }
            }
            try option(NETLINK_EXT_ACK, 1, required: false)
            // An error does not say all again that was asked, perhaps a secret.
            try option(NETLINK_CAP_ACK, 1, required: false)
            if family == .route { try option(NETLINK_GET_STRICT_CHK, 1, required: false) }
            for group in groups { try option(NETLINK_ADD_MEMBERSHIP, group, required: true) }
            if !groups.isEmpty {
                let flags = fcntl(number, F_GETFL)
                _ = fcntl(number, F_SETFL, flags | O_NONBLOCK)
            }
            return descriptor
        } catch {
            throw .socket(operation: "open netlink socket", errno: error.rawValue)
        }
    }

    /// Takes a socket that `openSocket` made, perhaps in another namespace.
    public init(_ socket: SharedDescriptor) {
        self.socket = socket
        var address = sockaddr_nl()
        var length = socklen_t(MemoryLayout<sockaddr_nl>.size)
        unsafe withUnsafeMutablePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                _ = unsafe getsockname(socket.rawValue, $0, &length)
            }
        }
        port = address.nl_pid
    }

    /// A session in the calling thread's namespace.
    public convenience init(_ family: NetlinkFamily) throws(NetlinkError) {
        self.init(try Self.openSocket(family))
    }

    /// Sends a request that the kernel acknowledges. `operation` names it in errors.
    public func acknowledge(
        _ operation: String, type: some BinaryInteger, flags: Int32 = 0, _ payload: NetlinkPayload
    ) throws(NetlinkError) {
        NetlinkWork.note(changes: 1)
        _ = try exchange(operation, type: UInt16(type), flags: flags | NLM_F_ACK, payload)
    }

    /// Sends a request that is answered by messages: one, or with `dump` as many as there are. `hiding`: a secret in them.
    public func request(
        _ operation: String, type: some BinaryInteger, dump: Bool, hiding: HiddenAttribute? = nil,
        _ payload: NetlinkPayload
    ) throws(NetlinkError) -> [NetlinkMessage] {
        // A dump that changed under our feet is asked for again (NLM_F_DUMP_INTR).
        for _ in 0..<8 {
            let (messages, interrupted) = try exchange(
                operation, type: UInt16(type), flags: dump ? NLM_F_DUMP : NLM_F_ACK, payload, hiding)
            if !interrupted { return messages }
        }
        throw .socket(operation: operation, errno: EAGAIN)
    }

    private func exchange(
        _ operation: String, type: UInt16, flags: Int32, _ payload: NetlinkPayload, _ hidden: HiddenAttribute? = nil
    ) throws(NetlinkError) -> (messages: [NetlinkMessage], interrupted: Bool) {
        sequence &+= 1
        let header = nlmsghdr(
            nlmsg_len: UInt32(16 + payload.bytes.count), nlmsg_type: type,
            nlmsg_flags: UInt16(flags | NLM_F_REQUEST), nlmsg_seq: sequence, nlmsg_pid: port)
        var message = NetlinkPayload(header).bytes + payload.bytes
        // None grows from here on: that would leave a copy behind.
        for (offset, secret) in payload.secrets { secret.write(to: &message, at: 16 + offset) }
        defer { if !payload.secrets.isEmpty { GuardedBytes.wipe(&message) } }
        do {
            try retryingInterrupts {
                unsafe message.withUnsafeBytes { unsafe send(socket.rawValue, $0.baseAddress, $0.count, 0) }
            }
        } catch {
            throw .socket(operation: operation, errno: error.rawValue)
        }
        return try receive(operation, isDump: flags & NLM_F_DUMP == NLM_F_DUMP, hidden)
    }

    /// One message of a transaction.
    struct Request {
        var type: UInt16
        var flags: Int32
        var payload: NetlinkPayload
    }

    /// Sends messages of nfnetlink that hold all together or not at all.
    func transaction(_ operation: String, _ requests: [Request]) throws(NetlinkError) {
        NetlinkWork.note(changes: requests.count)
        let first = sequence &+ 1
        var bytes: [UInt8] = []
        func append(_ type: UInt16, _ flags: Int32, _ payload: NetlinkPayload) {
            sequence &+= 1
            bytes +=
                NetlinkPayload(
                    nlmsghdr(
                        nlmsg_len: UInt32(16 + payload.bytes.count), nlmsg_type: type,
                        nlmsg_flags: UInt16(flags | NLM_F_REQUEST), nlmsg_seq: sequence, nlmsg_pid: port)
                ).bytes + payload.bytes
        }
        // The subsystem in network byte order.
        let frame = NetlinkPayload(
            nfgenmsg(nfgen_family: 0, version: 0, res_id: UInt16(NFNL_SUBSYS_NFTABLES).bigEndian))
        append(UInt16(NFNL_MSG_BATCH_BEGIN), 0, frame)
        for request in requests { append(request.type, request.flags | NLM_F_ACK, request.payload) }
        append(UInt16(NFNL_MSG_BATCH_END), 0, frame)
        do {
            let sent = bytes
            try retryingInterrupts { unsafe send(socket.rawValue, sent, sent.count, 0) }
        } catch {
            throw .socket(operation: operation, errno: error.rawValue)
        }
        var open = Set((0..<UInt32(requests.count)).map { first &+ 1 &+ $0 })
        var failure: NetlinkError?
        while !open.isEmpty {
            var rest = try receiveDatagram(operation)
            while let header: nlmsghdr = rest.value() {
                let length = Int(header.nlmsg_len)
                guard length >= 16, length <= rest.count else { throw .malformed(operation: operation) }
                let payload = rest.dropFirst(16).prefix(length - 16)
                rest = rest.dropFirst((length + 3) & ~3)
                guard Int32(header.nlmsg_type) == NLMSG_ERROR, header.nlmsg_pid == port else { continue }
                guard let error: Int32 = payload.value() else { throw .malformed(operation: operation) }
                if error != 0, failure == nil {
                    failure = .refused(
                        operation: operation, errno: -error,
                        message: Self.extendedAcknowledgement(payload, flags: header.nlmsg_flags))
                }
                open.remove(header.nlmsg_seq)
                // The whole was refused: nobody answers for its parts.
                if header.nlmsg_seq == first { open = [] }
            }
        }
        if let failure { throw failure }
    }

    private func receive(
        _ operation: String, isDump: Bool, _ hidden: HiddenAttribute?
    ) throws(NetlinkError) -> (messages: [NetlinkMessage], interrupted: Bool) {
        var messages: [NetlinkMessage] = []
        var interrupted = false
        while true {
            var rest = try receiveDatagram(operation, hidden)
            while let header: nlmsghdr = rest.value() {
                let length = Int(header.nlmsg_len)
                guard length >= 16, length <= rest.count else { throw .malformed(operation: operation) }
                let payload = rest.dropFirst(16).prefix(length - 16)
                rest = rest.dropFirst((length + 3) & ~3)
                // Left over from a request that was given up, or not for us.
                guard header.nlmsg_seq == sequence, header.nlmsg_pid == port else { continue }
                if Int32(header.nlmsg_flags) & NLM_F_DUMP_INTR != 0 { interrupted = true }
                switch Int32(header.nlmsg_type) {
                case NLMSG_ERROR:
                    guard let error: Int32 = payload.value() else { throw .malformed(operation: operation) }
                    if error == 0 { return (messages, interrupted) }
                    throw .refused(
                        operation: operation, errno: -error,
                        message: Self.extendedAcknowledgement(payload, flags: header.nlmsg_flags))
                case NLMSG_DONE:
                    let error: Int32 = payload.value() ?? 0
                    if error < 0 { throw .refused(operation: operation, errno: -error, message: "") }
                    return (messages, interrupted)
                case NLMSG_NOOP: continue
                default:
                    messages.append(NetlinkMessage(type: header.nlmsg_type, payload: ArraySlice(Array(payload))))
                }
            }
            if rest.count >= 16 { throw .malformed(operation: operation) }
        }
    }

    /// The kernel's own words (NLMSGERR_ATTR_MSG), behind the copy of our request.
    private static func extendedAcknowledgement(_ payload: ArraySlice<UInt8>, flags: UInt16) -> String {
        guard Int32(flags) & NLM_F_ACK_TLVS != 0, let echoed: nlmsghdr = payload.dropFirst(4).value() else { return "" }
        let copied = Int32(flags) & NLM_F_CAPPED != 0 ? 16 : Int(echoed.nlmsg_len)
        let attributes = NetlinkAttributes(payload.dropFirst(4 + ((copied + 3) & ~3)))
        return attributes.first { $0.type == Int(NLMSGERR_ATTR_MSG.rawValue) }?.text ?? ""
    }

    private func receiveDatagram(
        _ operation: String, _ hidden: HiddenAttribute? = nil
    ) throws(NetlinkError) -> ArraySlice<UInt8> {
        while true {
            var sender = sockaddr_nl()
            var length = socklen_t(MemoryLayout<sockaddr_nl>.size)
            let count: Int
            do {
                let number = socket.rawValue
                count = try retryingInterrupts {
                    unsafe withUnsafeMutablePointer(to: &sender) { pointer in
                        unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                            unsafe recvfrom(number, &buffer, buffer.count, Int32(MSG_TRUNC), address, &length)
                        }
                    }
                }
            } catch {
                throw .socket(operation: operation, errno: error.rawValue)
            }
            guard sender.nl_pid == 0 else { continue }
            if let hidden {
                unsafe buffer.withUnsafeMutableBytes {
                    unsafe hidden.hide(in: UnsafeMutableRawBufferPointer(rebasing: $0[0..<min(count, $0.count)]))
                }
            }
            guard count <= buffer.count else {
                buffer = [UInt8](repeating: 0, count: count * 2)
                throw .socket(operation: operation, errno: EMSGSIZE)
            }
            return buffer[0..<count]
        }
    }
}

/// Multicast messages of the kernel: that something changed, not what.
public final class NetlinkEvents: Sendable {
    private let socket: SharedDescriptor
    private let readiness: ReadinessEvents

    /// Listens to rtnetlink groups in the calling thread's network namespace.
    public convenience init(groups: [Int32]) throws(NetlinkError) {
        self.init(try NetlinkSession.openSocket(.route, groups: groups))
    }

    /// Listens to changes of nf_tables' rules, which iptables-nft makes too.
    public static func firewall() throws(NetlinkError) -> NetlinkEvents {
        NetlinkEvents(try NetlinkSession.openSocket(.netfilter, groups: [Int32(NFNLGRP_NFTABLES.rawValue)]))
    }

    private init(_ socket: SharedDescriptor) {
        self.socket = socket
        readiness = ReadinessEvents(socket, label: "netlink-events")
    }

    /// Links, addresses, routes and rules of both families, and filters.
    public static let nodeGroups: [Int32] = [
        Int32(RTNLGRP_LINK.rawValue), Int32(RTNLGRP_IPV4_IFADDR.rawValue), Int32(RTNLGRP_IPV6_IFADDR.rawValue),
        Int32(RTNLGRP_IPV4_ROUTE.rawValue), Int32(RTNLGRP_IPV6_ROUTE.rawValue),
        Int32(RTNLGRP_IPV4_RULE.rawValue), Int32(RTNLGRP_IPV6_RULE.rawValue), Int32(RTNLGRP_TC.rawValue),
    ]

    /// One element when there is something to drain.
    public var ticks: AsyncStream<Void> { readiness.ticks }

    /// Throws away what is queued; an overflow of the socket counts as a change like any other.
    public func drain() {
        defer { readiness.drained() }
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = unsafe recv(socket.rawValue, &buffer, buffer.count, 0)
            if count < 0, errno != ENOBUFS, errno != EINTR { return }
            if count == 0 { return }
        }
    }
}
