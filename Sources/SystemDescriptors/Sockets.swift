// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import SystemPackage

/// An Internet address and port of a socket.
public struct SocketAddress: Sendable, Hashable {
    /// 4 or 16 bytes in network byte order.
    public var address: [UInt8]
    /// Host byte order.
    public var port: UInt16

    public init(_ address: [UInt8], port: UInt16 = 0) {
        self.address = address
        self.port = port
    }

    var family: Int32 { address.count == 4 ? AF_INET : AF_INET6 }

    func withPointer<Result>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Result) -> Result {
        if address.count == 4 {
            var value = sockaddr_in()
            value.sin_family = sa_family_t(AF_INET)
            value.sin_port = port.bigEndian
            unsafe withUnsafeMutableBytes(of: &value.sin_addr) { unsafe $0.copyBytes(from: address) }
            return unsafe withUnsafePointer(to: &value) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe body($0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
        }
        var value = sockaddr_in6()
        value.sin6_family = sa_family_t(AF_INET6)
        value.sin6_port = port.bigEndian
        unsafe withUnsafeMutableBytes(of: &value.sin6_addr) { unsafe $0.copyBytes(from: address) }
        return unsafe withUnsafePointer(to: &value) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                unsafe body($0, socklen_t(MemoryLayout<sockaddr_in6>.size))
            }
        }
    }

    init?(_ storage: sockaddr_storage) {
        switch Int32(storage.ss_family) {
        case AF_INET:
            let value = unsafe withUnsafeBytes(of: storage) { unsafe $0.loadUnaligned(as: sockaddr_in.self) }
            address = unsafe withUnsafeBytes(of: value.sin_addr) { unsafe Array($0) }
            port = UInt16(bigEndian: value.sin_port)
        case AF_INET6:
            let value = unsafe withUnsafeBytes(of: storage) { unsafe $0.loadUnaligned(as: sockaddr_in6.self) }
            address = unsafe withUnsafeBytes(of: value.sin6_addr) { unsafe Array($0) }
            port = UInt16(bigEndian: value.sin6_port)
        default: return nil
        }
    }
}

/// The kinds of sockets that the lab's traffic uses.
public enum SocketKind: Sendable {
    case udp
    case tcp
    /// ICMP or ICMPv6, headers above IP.
    case icmp
}

/// An Internet socket with blocking calls and a time-out. Stays in the network
/// namespace where it was opened.
public struct InternetSocket: Sendable {
    private let descriptor: SharedDescriptor
    private let isIPv6: Bool

    public init(_ kind: SocketKind, isIPv6: Bool, timeoutMilliseconds: Int = 1000) throws(Errno) {
        let family = isIPv6 ? AF_INET6 : AF_INET
        let type: Int32
        var number: Int32 = 0
        switch kind {
        case .udp: type = Int32(SOCK_DGRAM.rawValue)
        case .tcp: type = Int32(SOCK_STREAM.rawValue)
        case .icmp:
            type = Int32(SOCK_RAW.rawValue)
            number = isIPv6 ? 58 : 1
        }
        let raw = try retryingInterrupts { socket(family, type | Int32(SOCK_CLOEXEC.rawValue), number) }
        descriptor = SharedDescriptor(OwnedDescriptor(owning: raw))
        self.isIPv6 = isIPv6
        try setTimeout(milliseconds: timeoutMilliseconds)
        if isIPv6, kind != .icmp { try setOption(Int32(IPPROTO_IPV6), IPV6_V6ONLY, 1) }
        if kind == .tcp { try setOption(SOL_SOCKET, SO_REUSEADDR, 1) }
    }

    private init(_ descriptor: SharedDescriptor, isIPv6: Bool) {
        self.descriptor = descriptor
        self.isIPv6 = isIPv6
    }

    private func setOption(_ level: Int32, _ name: Int32, _ value: Int32) throws(Errno) {
        var value = value
        try retryingInterrupts { unsafe setsockopt(descriptor.rawValue, level, name, &value, 4) }
    }

    /// For sending and receiving, connecting and accepting; 0 waits for ever.
    public func setTimeout(milliseconds: Int) throws(Errno) {
        var time = timeval(tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            try retryingInterrupts {
                unsafe setsockopt(
                    descriptor.rawValue, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
            }
        }
    }

    /// `SO_RCVBUFFORCE`, in bytes: also beyond `net.core.rmem_max`, for root.
    public func setReceiveBuffer(_ bytes: Int) throws(Errno) {
        try setOption(SOL_SOCKET, SO_RCVBUFFORCE, Int32(bytes))
    }

    /// TTL or hop limit of what is sent.
    public func setHopLimit(_ hops: Int32) throws(Errno) {
        if isIPv6 {
            try setOption(Int32(IPPROTO_IPV6), IPV6_UNICAST_HOPS, hops)
        } else {
            try setOption(Int32(IPPROTO_IP), IP_TTL, hops)
        }
    }

    /// DF is set, and what exceeds the path's MTU is refused (`IP_PMTUDISC_DO`).
    public func forbidFragments() throws(Errno) {
        if isIPv6 {
            try setOption(Int32(IPPROTO_IPV6), IPV6_MTU_DISCOVER, 2)
        } else {
            try setOption(Int32(IPPROTO_IP), IP_MTU_DISCOVER, 2)
        }
    }

    /// The path's MTU as the kernel knows it, of a connected socket.
    public func pathMTU() throws(Errno) -> Int {
        var value: Int32 = 0
        var length = socklen_t(4)
        let level = isIPv6 ? Int32(IPPROTO_IPV6) : Int32(IPPROTO_IP)
        let name = isIPv6 ? IPV6_MTU : IP_MTU
        try retryingInterrupts { unsafe getsockopt(descriptor.rawValue, level, name, &value, &length) }
        return Int(value)
    }

    /// Its own address and port.
    public func local() throws(Errno) -> SocketAddress? {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        try retryingInterrupts {
            unsafe withUnsafeMutablePointer(to: &storage) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe getsockname(descriptor.rawValue, $0, &length)
                }
            }
        }
        return SocketAddress(storage)
    }

    /// The other side of a connection.
    public func peer() throws(Errno) -> SocketAddress? {
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        try retryingInterrupts {
            unsafe withUnsafeMutablePointer(to: &storage) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe getpeername(descriptor.rawValue, $0, &length)
                }
            }
        }
        return SocketAddress(storage)
    }

    public func bind(_ address: SocketAddress) throws(Errno) {
        try retryingInterrupts { unsafe address.withPointer { unsafe Glibc.bind(descriptor.rawValue, $0, $1) } }
    }

    public func connect(_ address: SocketAddress) throws(Errno) {
        try retryingInterrupts { unsafe address.withPointer { unsafe Glibc.connect(descriptor.rawValue, $0, $1) } }
    }

    public func listen() throws(Errno) { try retryingInterrupts { Glibc.listen(descriptor.rawValue, 1024) } }

    public func accept() throws(Errno) -> InternetSocket {
        let number = try retryingInterrupts { Glibc.accept(descriptor.rawValue, nil, nil) }
        _ = fcntl(number, F_SETFD, FD_CLOEXEC)
        let socket = InternetSocket(SharedDescriptor(OwnedDescriptor(owning: number)), isIPv6: isIPv6)
        try socket.setTimeout(milliseconds: 1000)
        return socket
    }

    @discardableResult
    public func send(_ bytes: [UInt8], to address: SocketAddress? = nil) throws(Errno) -> Int {
        try retryingInterrupts {
            if let address {
                unsafe address.withPointer {
                    unsafe sendto(descriptor.rawValue, bytes, bytes.count, Int32(MSG_NOSIGNAL), $0, $1)
                }
            } else {
                unsafe Glibc.send(descriptor.rawValue, bytes, bytes.count, Int32(MSG_NOSIGNAL))
            }
        }
    }

    /// What arrives next and from where; `EAGAIN` at the time-out. TCP: empty at the end.
    public func receive(limit: Int = 65536) throws(Errno) -> (bytes: [UInt8], from: SocketAddress?) {
        var buffer = [UInt8](repeating: 0, count: limit)
        var storage = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let count = try retryingInterrupts {
            unsafe withUnsafeMutablePointer(to: &storage) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe recvfrom(descriptor.rawValue, &buffer, buffer.count, 0, $0, &length)
                }
            }
        }
        return (Array(buffer[0..<count]), length > 0 ? SocketAddress(storage) : nil)
    }
}

/// A packet socket that sees every frame that devices of its namespace receive.
public struct CaptureSocket: Sendable {
    private let descriptor: SharedDescriptor

    /// One frame, from the link header on.
    public struct Frame: Sendable {
        public var bytes: [UInt8]
        public var interface: UInt32
    }

    /// Opens in the calling thread's network namespace, for all devices.
    public init(bufferBytes: Int = 32 << 20) throws(Errno) {
        let all = UInt16(ETH_P_ALL).bigEndian
        let raw = try retryingInterrupts {
            socket(AF_PACKET, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), Int32(all))
        }
        descriptor = SharedDescriptor(OwnedDescriptor(owning: raw))
        var bytes = Int32(bufferBytes)
        _ = unsafe setsockopt(raw, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, 4)
        var time = timeval(tv_sec: 0, tv_usec: 20_000)
        _ = unsafe setsockopt(raw, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    }

    /// The next frame that a device received (not those it sends); nil when 20 ms pass without.
    public func next() throws(Errno) -> Frame? {
        while true {
            var address = sockaddr_ll()
            var length = socklen_t(MemoryLayout<sockaddr_ll>.size)
            let number = descriptor.rawValue
            do {
                // Not zeroed first: frames come faster than that.
                let bytes = try unsafe withUnsafeTemporaryAllocation(byteCount: 65536, alignment: 8) {
                    buffer throws(Errno) -> [UInt8] in
                    let count = try retryingInterrupts {
                        unsafe withUnsafeMutablePointer(to: &address) { pointer in
                            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                                unsafe recvfrom(number, buffer.baseAddress, buffer.count, 0, $0, &length)
                            }
                        }
                    }
                    return unsafe Array(UnsafeRawBufferPointer(rebasing: buffer[0..<count]))
                }
                if Int32(address.sll_pkttype) == PACKET_OUTGOING { continue }
                return Frame(bytes: bytes, interface: UInt32(address.sll_ifindex))
            } catch {
                if error == .wouldBlock { return nil }
                if error == .networkDown { continue }
                throw error
            }
        }
    }

    /// Frames that the socket had no room for since the last call (PACKET_STATISTICS).
    public func lost() -> UInt32 {
        var statistics = [UInt32](repeating: 0, count: 2)
        var length = socklen_t(8)
        _ = unsafe getsockopt(descriptor.rawValue, SOL_PACKET, Int32(PACKET_STATISTICS), &statistics, &length)
        return statistics[1]
    }
}

/// A stream socket of the Unix kind.
public struct StreamSocket: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor

    public init(connectedTo path: String, timeoutSeconds: Int) throws(Errno) {
        let raw = try retryingInterrupts {
            socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        }
        let owner = OwnedDescriptor(owning: raw)
        var time = timeval(tv_sec: timeoutSeconds, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            _ = unsafe setsockopt(raw, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
        }
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { throw .fileNameTooLong }
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
        try retryingInterrupts {
            unsafe withUnsafePointer(to: &address) { pointer in
                unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    unsafe connect(raw, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
        }
        descriptor = owner
    }

    /// Throws `EPIPE` where the other side has closed.
    public borrowing func writeAll(_ bytes: [UInt8]) throws(Errno) {
        try sendAll(bytes, on: descriptor.rawValue)
    }

    /// Reads until what came ends with these bytes, or the other side closes. Refuses more than `limit` bytes with
    /// `EFBIG`. No copy of what may be secret is left behind.
    public borrowing func readUntil(_ end: [UInt8], limit: Int = 256 << 20) throws(Errno) -> [UInt8] {
        var pieces: [[UInt8]] = []
        defer { for index in pieces.indices { GuardedBytes.wipe(&pieces[index]) } }
        var total = 0
        let number = descriptor.rawValue
        while true {
            // Most answers are short.
            var piece = [UInt8](repeating: 0, count: pieces.isEmpty ? 1 << 12 : 1 << 18)
            var used = 0
            var isLast = false
            do {
                while used < piece.count, !isLast {
                    let start = used
                    let count = try retryingInterrupts {
                        unsafe piece.withUnsafeMutableBytes {
                            unsafe read(number, $0.baseAddress?.advanced(by: start), $0.count - start)
                        }
                    }
                    used += count
                    isLast = count == 0 || Self.ends(piece, used, pieces.last, with: end)
                }
            } catch {
                GuardedBytes.wipe(&piece)
                throw error
            }
            total += used
            pieces.append(piece)
            if isLast { break }
            if total > limit { throw .fileTooLarge }
        }
        var result: [UInt8] = []
        result.reserveCapacity(total)
        for piece in pieces { result += piece.prefix(total - result.count) }
        return result
    }

    private static func ends(_ piece: [UInt8], _ used: Int, _ before: [UInt8]?, with end: [UInt8]) -> Bool {
        for offset in 1...end.count {
            let wanted = end[end.count - offset]
            if offset <= used {
                if piece[used - offset] != wanted { return false }
            } else {
                guard let before, before[before.count - (offset - used)] == wanted else { return false }
            }
        }
        return true
    }
}

/// Sends bytes on a stream socket until all are sent; `EPIPE`, and no signal, where the other side has closed.
func sendAll(_ bytes: [UInt8], on number: Int32) throws(Errno) {
    var done = 0
    while done < bytes.count {
        let start = done
        done += try retryingInterrupts {
            unsafe bytes.withUnsafeBytes {
                unsafe Glibc.send(number, $0.baseAddress?.advanced(by: start), $0.count - start, Int32(MSG_NOSIGNAL))
            }
        }
    }
}
