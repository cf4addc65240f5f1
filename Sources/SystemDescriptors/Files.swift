// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import SystemPackage

/// Opens a file, close-on-exec.
public func openFile(_ path: String, flags: Int32, mode: UInt32 = 0) throws(Errno) -> OwnedDescriptor {
    OwnedDescriptor(owning: try retryingInterrupts { unsafe wgp_open(path, flags | O_CLOEXEC, mode) })
}

/// Reads a whole file; refuses one of more than `limit` bytes with `EFBIG`.
public func readFile(_ path: String, limit: Int = 64 << 20) throws(Errno) -> [UInt8] {
    let descriptor = try openFile(path, flags: O_RDONLY)
    var content: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = try retryingInterrupts { unsafe read(descriptor.rawValue, &buffer, buffer.count) }
        if count == 0 { return content }
        if content.count + count > limit { throw .fileTooLarge }
        content.append(contentsOf: buffer[0..<count])
    }
}

/// Writes bytes to a descriptor until all are written.
public func writeAll(_ descriptor: borrowing OwnedDescriptor, _ bytes: [UInt8]) throws(Errno) {
    var offset = 0
    let number = descriptor.rawValue
    while offset < bytes.count {
        let start = offset
        offset += try retryingInterrupts {
            unsafe bytes.withUnsafeBytes { buffer in
                unsafe write(number, buffer.baseAddress?.advanced(by: start), buffer.count - start)
            }
        }
    }
}

/// Where the kernel's settings are: `/proc/sys`, or `$WGPLANE_PROC_SYS` where a container has that read-only.
public let kernelSettings =
    currentEnvironment().first { $0.hasPrefix("WGPLANE_PROC_SYS=") }.map { String($0.dropFirst(17)) } ?? "/proc/sys"

/// Writes to an existing file, as `/proc/sys` and `/sys` want it.
public func writeExistingFile(_ path: String, _ text: String) throws(Errno) {
    try writeAll(try openFile(path, flags: O_WRONLY), Array(text.utf8))
}

/// Replaces a file as a whole: the new content is on disk before it takes the name,
/// and whoever reads meanwhile sees the old or the new.
public func replaceFile(_ path: String, with bytes: [UInt8], mode: UInt32 = 0o644) throws(Errno) {
    try replaceFile(path, with: CollectionOfOne(bytes), mode: mode)
}

/// The same in pieces, of which only one is in memory.
public func replaceFile(
    _ path: String, with pieces: some Sequence<[UInt8]>, mode: UInt32 = 0o644
) throws(Errno) {
    let folder = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? "."
    let temporary = "\(folder)/.\(path.split(separator: "/").last ?? "file").\(getpid()).new"
    do {
        let descriptor = try openFile(temporary, flags: O_WRONLY | O_CREAT | O_TRUNC, mode: mode)
        for piece in pieces { try writeAll(descriptor, piece) }
        try retryingInterrupts { fsync(descriptor.rawValue) }
        try retryingInterrupts { unsafe rename(temporary, path) }
    } catch {
        _ = unsafe unlink(temporary)
        throw error
    }
    let parent = try openFile(folder.isEmpty ? "/" : folder, flags: O_RDONLY | O_DIRECTORY)
    _ = fsync(parent.rawValue)
}

/// Makes a folder and those above it; what exists is no error.
public func makeFolders(_ path: String, mode: UInt32 = 0o755) throws(Errno) {
    var current = path.hasPrefix("/") ? "" : "."
    for part in path.split(separator: "/") {
        current += "/" + part
        if unsafe mkdir(current, mode) != 0 {
            let error = Errno.current
            if error != .fileExists { throw error }
        }
    }
}

/// Something at a path of ours that is not ours, or that others may change: what is there is left alone, and not used.
public struct ForeignPath: Error, Sendable, Hashable, CustomStringConvertible {
    public var path: String
    public var reason: String
    public var description: String { "\(path) \(reason); remove it, or see who made it" }
}

/// Throws where a path is a link, belongs to another user, can be written by others, or cannot be looked at; what is not
/// there is no error.
public func requireOwn(_ path: String) throws(ForeignPath) {
    var information = stat()
    guard unsafe lstat(path, &information) == 0 else {
        let error = Errno.current
        if error == .noSuchFileOrDirectory { return }
        throw ForeignPath(path: path, reason: "cannot be looked at (\(error))")
    }
    if information.st_mode & S_IFMT == S_IFLNK { throw ForeignPath(path: path, reason: "is a symbolic link") }
    guard information.st_uid == geteuid() else {
        throw ForeignPath(path: path, reason: "belongs to user \(information.st_uid)")
    }
    guard information.st_mode & 0o022 == 0 else {
        throw ForeignPath(path: path, reason: "can be written by others")
    }
}

/// Makes a folder for this process's user alone, and those above it; one that is there must be so.
public func makeOwnFolders(_ path: String) throws {
    try makeFolders(path, mode: 0o700)
    try requireOwn(path)
}

/// Gives a file another name in one step; what had that name is gone.
public func renameFile(_ path: String, _ other: String) throws(Errno) {
    guard unsafe rename(path, other) == 0 else { throw Errno.current }
}

/// Release of the running kernel, as `uname -r` tells it.
public var kernelRelease: String {
    let bytes = (try? readFile("/proc/sys/kernel/osrelease")) ?? []
    return String(decoding: bytes.prefix { $0 != 10 }, as: UTF8.self)
}

/// Removes a file; what is not there is no error.
public func removeFile(_ path: String) throws(Errno) {
    if unsafe unlink(path) != 0 {
        let error = Errno.current
        if error != .noSuchFileOrDirectory { throw error }
    }
}

/// Removes an empty folder; what is not there is no error.
public func removeFolder(_ path: String) throws(Errno) {
    if unsafe rmdir(path) != 0 {
        let error = Errno.current
        if error != .noSuchFileOrDirectory { throw error }
    }
}

/// One entry of a folder, with what tells whether it changed.
public struct FolderEntry: Sendable, Hashable {
    public var name: String
    public var isFolder: Bool
    /// A plain file: no pipe, socket or device.
    public var isRegular: Bool
    public var size: Int64
    /// Time of last change of the content, in nanoseconds since the epoch.
    public var modified: Int64
    public var inode: UInt64
}

/// The names in a folder, without `.` and `..`, in no order.
public func listNames(_ path: String) throws(Errno) -> [String] {
    guard let folder = unsafe opendir(path) else { throw .current }
    defer { unsafe closedir(folder) }
    var names: [String] = []
    while let entry = unsafe readdir(folder) {
        let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
            unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
        }
        if name != ".", name != ".." { names.append(name) }
    }
    return names
}

/// The entries of a folder without `.` and `..`, sorted by name.
public func listFolder(_ path: String) throws(Errno) -> [FolderEntry] {
    // It may be gone by now; then it is no entry.
    try listNames(path).compactMap { folderEntry($0, in: path) }.sorted { $0.name < $1.name }
}

/// One entry of a folder; nil: it is not there, or cannot be looked at.
public func folderEntry(_ name: String, in path: String) -> FolderEntry? {
    do { return try presentEntry(name, in: path) } catch { return nil }
}

/// One entry of a folder; nil: it is not there.
public func presentEntry(_ name: String, in path: String) throws(Errno) -> FolderEntry? {
    var information = stat()
    guard unsafe stat("\(path)/\(name)", &information) == 0 else {
        let error = Errno.current
        if error == .noSuchFileOrDirectory { return nil }
        throw error
    }
    return FolderEntry(
        name: name, isFolder: information.st_mode & S_IFMT == S_IFDIR,
        isRegular: information.st_mode & S_IFMT == S_IFREG,
        size: Int64(information.st_size),
        modified: Int64(information.st_mtim.tv_sec) * 1_000_000_000 + Int64(information.st_mtim.tv_nsec),
        inode: UInt64(information.st_ino))
}

/// Bytes of a file.
public func fileSize(_ path: String) throws(Errno) -> Int {
    var information = stat()
    guard unsafe stat(path, &information) == 0 else { throw .current }
    return Int(information.st_size)
}

/// An open regular file's bytes; nil: it is something else, a pipe for instance.
public func regularSize(_ descriptor: borrowing OwnedDescriptor) throws(Errno) -> Int? {
    var information = stat()
    guard unsafe fstat(descriptor.rawValue, &information) == 0 else { throw .current }
    return information.st_mode & S_IFMT == S_IFREG ? Int(information.st_size) : nil
}

/// Cuts an open file.
public func truncate(_ descriptor: borrowing OwnedDescriptor, to size: Int) throws(Errno) {
    let number = descriptor.rawValue
    try retryingInterrupts { ftruncate(number, off_t(size)) }
}

/// Whether something stands at a path.
public func fileExists(_ path: String) -> Bool {
    unsafe access(path, F_OK) == 0
}

/// An exclusive lock on a file (flock(2)), held until this goes out of scope or the process ends.
public struct FileLock: ~Copyable, Sendable {
    private let descriptor: OwnedDescriptor

    /// Takes the lock; with `waiting` false throws `EWOULDBLOCK` when somebody has it.
    public init(_ path: String, waiting: Bool, mode: UInt32 = 0o600) throws(Errno) {
        let file = try openFile(path, flags: O_RDWR | O_CREAT, mode: mode)
        let number = file.rawValue
        try retryingInterrupts { flock(number, LOCK_EX | (waiting ? 0 : LOCK_NB)) }
        descriptor = file
    }

    /// Gives the lock up.
    public consuming func release() {}

    /// Writes who holds the lock into the file, for people.
    public func note(_ text: String) throws(Errno) {
        try retryingInterrupts { ftruncate(descriptor.rawValue, 0) }
        try writeAll(descriptor, Array(text.utf8))
    }

    /// Whether somebody holds the lock now.
    public static func isHeld(_ path: String) -> Bool {
        guard fileExists(path) else { return false }
        do {
            _ = try FileLock(path, waiting: false)
            return false
        } catch {
            return error == .wouldBlock
        }
    }
}

/// Takes a lock that somebody may hold for a moment; `EWOULDBLOCK` when that takes longer.
public func takeFileLock(_ path: String, withinMilliseconds limit: UInt64) throws(Errno) -> FileLock {
    let deadline = monotonicNanoseconds() + limit * 1_000_000
    while true {
        do {
            return try FileLock(path, waiting: false)
        } catch {
            guard error == .wouldBlock, monotonicNanoseconds() < deadline else { throw error }
            usleep(2000)
        }
    }
}

/// Runs a body while nobody else holds the lock file; waits five seconds for it at most.
public func withFileLock<Result>(_ path: String, _ body: () throws -> Result) throws -> Result {
    let lock = try takeFileLock(path, withinMilliseconds: 5000)
    let result = try body()
    lock.release()
    return result
}
