// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import SystemPackage

/// Tells that something in some folders has changed (inotify(7)): that, not what. An
/// overflow of the kernel's queue is a change like any other.
public final class FolderWatch: Sendable {
    private let descriptor: SharedDescriptor
    private let readiness: ReadinessEvents

    public init() throws(Errno) {
        let flags = Int32(IN_CLOEXEC) | Int32(IN_NONBLOCK)
        descriptor = SharedDescriptor(OwnedDescriptor(owning: try retryingInterrupts { inotify_init1(flags) }))
        readiness = ReadinessEvents(descriptor, label: "folder-watch")
    }

    /// Watches a folder; one that is watched already stays so.
    public func add(_ folder: String) throws(Errno) {
        let changes = IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_CREATE | IN_DELETE_SELF
        try retryingInterrupts { unsafe inotify_add_watch(descriptor.rawValue, folder, UInt32(changes)) }
    }

    /// One element at first, and when there is something to drain.
    public var ticks: AsyncStream<Void> { readiness.ticks }

    /// Throws away what is queued.
    public func drain() {
        var buffer = [UInt8](repeating: 0, count: 65536)
        while unsafe read(descriptor.rawValue, &buffer, buffer.count) > 0 {}
    }
}
