// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
internal import Synchronization
public import SystemPackage

/// Tells what has changed in some folders (inotify(7)).
public final class FolderWatch: Sendable {
    /// Names by folder, as the folder was named when it was added.
    public struct Changes: Sendable {
        public var names: [String: Set<String>] = [:]
        /// More than that: the kernel's queue was too short, or a watched folder itself is gone.
        public var isMore = false
    }

    private let descriptor: SharedDescriptor
    private let readiness: ReadinessEvents
    /// Folders by watch descriptor.
    private let folders = Mutex<[Int32: String]>([:])

    public init() throws(Errno) {
        let flags = Int32(IN_CLOEXEC) | Int32(IN_NONBLOCK)
        descriptor = SharedDescriptor(OwnedDescriptor(owning: try retryingInterrupts { inotify_init1(flags) }))
        readiness = ReadinessEvents(descriptor, label: "folder-watch")
    }

    /// Watches a folder; one that is watched already stays so. True: it was not.
    @discardableResult
    public func add(_ folder: String) throws(Errno) -> Bool {
        let changes = IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_CREATE | IN_DELETE_SELF
        let watch = try retryingInterrupts {
            unsafe inotify_add_watch(descriptor.rawValue, folder, UInt32(changes))
        }
        return folders.withLock { $0.updateValue(folder, forKey: watch) == nil }
    }

    /// One element at first, and when there is something to take.
    public var ticks: AsyncStream<Void> { readiness.ticks }

    /// Takes what is queued.
    public func take() -> Changes {
        defer { readiness.drained() }
        var changes = Changes()
        var buffer = [UInt8](repeating: 0, count: 65536)
        while true {
            let count = unsafe read(descriptor.rawValue, &buffer, buffer.count)
            guard count > 0 else { return changes }
            var offset = 0
            // struct inotify_event: wd, mask, cookie, len, then the name with zeros at its end.
            while offset + 16 <= count {
                let (watch, mask, length) = unsafe buffer.withUnsafeBytes { bytes in
                    unsafe (
                        bytes.loadUnaligned(fromByteOffset: offset, as: Int32.self),
                        bytes.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self),
                        Int(bytes.loadUnaligned(fromByteOffset: offset + 12, as: UInt32.self))
                    )
                }
                let name = buffer[min(count, offset + 16)..<min(count, offset + 16 + length)].prefix { $0 != 0 }
                offset += 16 + length
                if mask & UInt32(IN_IGNORED) != 0 { folders.withLock { $0[watch] = nil } }
                if mask & UInt32(IN_Q_OVERFLOW | IN_IGNORED | IN_DELETE_SELF) != 0 { changes.isMore = true }
                guard !name.isEmpty, let folder = folders.withLock({ $0[watch] }) else { continue }
                changes.names[folder, default: []].insert(String(decoding: name, as: UTF8.self))
            }
        }
    }
}
