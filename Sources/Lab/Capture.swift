// SPDX-License-Identifier: Apache-2.0

public import Model
internal import Synchronization
public import SystemDescriptors

/// What a capture has seen on the underlay.
public struct CaptureCount: Sendable, Codable, Equatable {
    /// UDP packets of WireGuard's ports between nodes.
    public var wireguardPackets = 0
    /// Packets that bear a pod's address, readable to anybody.
    public var clearPackets = 0
    /// Frames that the capture had no room for: above 0, the others prove nothing.
    public var lost = 0
    /// The first few packets in clear, for the message.
    public var examples: [String] = []

    public init() {}
}

/// Looks at every frame that the underlay's ports receive.
public final class UnderlayCapture: Sendable {
    private let socket: CaptureSocket
    private let flag = StopFlag()
    private let box: Box
    private let thread: BackgroundThread

    /// Starts at once. `pools`: addresses that must not be seen; `ports`: WireGuard's; `transports`:
    /// of what must not be seen, all when empty (neighbour discovery bears nodes' addresses).
    /// `both`: only what goes from one of the addresses to another.
    public init(
        underlay: NamespaceFiles, pools: [CIDR], ports: Set<UInt16> = [51820, 51821], transports: Set<UInt8> = [],
        both: Bool = false
    ) throws {
        let socket = try underlay.run { try CaptureSocket() }
        self.socket = socket
        let flag = flag
        let box = Box(counts: Mutex(CaptureCount()))
        self.box = box
        thread = BackgroundThread {
            var end: UInt64?
            while true {
                if flag.isRaised, end == nil { end = monotonicNanoseconds() + UInt64(Lab.patience) * 1_000_000_000 }
                guard let frame = try? socket.next() else {
                    // Nothing for 20 ms: time to see whether it is over.
                    if end != nil { return }
                    continue
                }
                // Traffic that does not end keeps nobody waiting; what is left over is not seen.
                if let end, monotonicNanoseconds() > end {
                    box.counts.withLock { $0.lost += 1 }
                    return
                }
                let seen = UnderlayPacket(frame.bytes)
                guard let seen else { continue }
                box.counts.withLock { count in
                    if seen.isUDP, ports.contains(seen.destinationPort) || ports.contains(seen.sourcePort) {
                        count.wireguardPackets += 1
                    } else if !transports.isEmpty, !transports.contains(seen.transport) {
                        return
                    } else if both
                        ? [seen.source, seen.destination].allSatisfy({ address in
                            pools.contains { $0.contains(address) }
                        })
                        : pools.contains(where: { $0.contains(seen.source) || $0.contains(seen.destination) })
                    {
                        count.clearPackets += 1
                        if count.examples.count < 5 { count.examples.append(seen.description) }
                    }
                }
            }
        }
    }

    private final class Box: Sendable {
        let counts: Mutex<CaptureCount>
        init(counts: consuming Mutex<CaptureCount>) { self.counts = counts }
    }

    /// What has been seen so far.
    public func count() -> CaptureCount { box.counts.withLock { $0 } }

    /// Stops when what is queued has been looked at, and returns all that was seen. Where traffic
    /// goes on, after a second, and `lost` is not 0.
    public func stop() -> CaptureCount {
        flag.raise()
        thread.join()
        var result = count()
        result.lost += Int(socket.lost())
        return result
    }
}

/// The few fields of an Ethernet frame that tell what it carries.
struct UnderlayPacket: CustomStringConvertible {
    var source: IPAddress
    var destination: IPAddress
    var transport: UInt8
    var sourcePort: UInt16 = 0
    var destinationPort: UInt16 = 0

    var isUDP: Bool { transport == 17 }

    init?(_ frame: [UInt8]) {
        guard frame.count >= 14 else { return nil }
        let type = UInt16(frame[12]) << 8 | UInt16(frame[13])
        let packet = frame[14...]
        let transportStart: Int
        switch type {
        case 0x0800:
            guard packet.count >= 20, let from = IPAddress(bytes: packet.dropFirst(12).prefix(4)),
                let to = IPAddress(bytes: packet.dropFirst(16).prefix(4))
            else { return nil }
            (source, destination, transport) = (from, to, packet[packet.startIndex + 9])
            transportStart = packet.startIndex + Int(packet[packet.startIndex] & 15) * 4
        case 0x86dd:
            guard packet.count >= 40, let from = IPAddress(bytes: packet.dropFirst(8).prefix(16)),
                let to = IPAddress(bytes: packet.dropFirst(24).prefix(16))
            else { return nil }
            (source, destination, transport) = (from, to, packet[packet.startIndex + 6])
            transportStart = packet.startIndex + 40
        default: return nil
        }
        if transport == 17 || transport == 6, frame.count >= transportStart + 4 {
            sourcePort = UInt16(frame[transportStart]) << 8 | UInt16(frame[transportStart + 1])
            destinationPort = UInt16(frame[transportStart + 2]) << 8 | UInt16(frame[transportStart + 3])
        }
    }

    var description: String { "\(source):\(sourcePort) > \(destination):\(destinationPort), protocol \(transport)" }
}
