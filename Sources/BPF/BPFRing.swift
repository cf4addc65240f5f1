// SPDX-License-Identifier: Apache-2.0

internal import CLibbpf
internal import Glibc
internal import SystemDescriptors

/// A ring buffer map (`BPF_MAP_TYPE_RINGBUF`, kernel 5.8).
public struct BPFRingMap: Sendable {
    public let name: String
    /// Nil: it is of an archive, which keeps no events.
    let descriptor: SharedDescriptor?
    public let information: BPFMapInformation

    /// Opens a pinned ring buffer.
    public init(pinned path: String, name: String) throws(BPFError) {
        self.name = name
        let shared = SharedDescriptor(try openPinned(path))
        descriptor = shared
        information = try BPFMapInformation(shared, name: name)
    }

    /// One of an archive, which can be described and not read.
    public init(_ image: MapImage) {
        name = image.name
        information = image.information
        descriptor = nil
    }

    /// Gives it a pin where there is none.
    public func pin(at path: String) throws(BPFError) { try descriptor?.pin(at: path) }

    /// What an archive keeps of it: no events, which are told once, to who listens.
    public var image: MapImage { MapImage(name: name, information: information, entries: []) }
}

/// Takes records out of a ring buffer. One at a time may exist for a buffer.
@safe
public struct BPFRingReader: ~Copyable {
    private let ring: OpaquePointer
    private let records: Records
    private let map: BPFRingMap

    private final class Records {
        var all: [[UInt8]] = []
    }

    public init(_ map: BPFRingMap) throws(BPFError) {
        guard let descriptor = map.descriptor else { throw .archived(subject: "map \(map.name)") }
        let records = Records()
        let ring: OpaquePointer? = unsafe ring_buffer__new(
            descriptor.rawValue,
            { context, data, size in
                guard let context = unsafe context, let data = unsafe data else { return 0 }
                let records = unsafe Unmanaged<Records>.fromOpaque(context).takeUnretainedValue()
                unsafe records.all.append(Array(UnsafeRawBufferPointer(start: data, count: size)))
                return 0
            }, Unmanaged.passUnretained(records).toOpaque(), nil)
        guard let pointer = unsafe ring else { throw .call("open ring buffer", subject: map.name, .current) }
        unsafe self.ring = pointer
        self.records = records
        self.map = map
    }

    deinit { unsafe ring_buffer__free(ring) }

    /// Waits for records, at most so long, and returns those that are there, oldest first.
    public mutating func poll(withinMilliseconds limit: Int32) throws(BPFError) -> [[UInt8]] {
        let result = unsafe ring_buffer__poll(ring, limit)
        if result < 0, result != -EINTR { try check(result, "read ring buffer", map.name) }
        defer { records.all = [] }
        return records.all
    }
}
