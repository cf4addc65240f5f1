// SPDX-License-Identifier: Apache-2.0

internal import CLinuxUAPI
internal import Glibc
public import SystemPackage

/// A network namespace and, where there is one, the mount namespace that goes with it.
///
/// Both are kept alive by files that they are bound to (namespaces(7)).
public struct NamespaceFiles: Sendable, Hashable {
    /// File that the network namespace is bound to.
    public var network: String
    /// File that the mount namespace is bound to; nil: the caller's.
    public var mount: String?

    public init(network: String, mount: String? = nil) {
        self.network = network
        self.mount = mount
    }

    /// Moves the calling thread into the namespaces. For a thread that ends soon
    /// after, or calls `exec`.
    public func enter() throws(Errno) {
        // Opened first: in the other mount namespace the files may be hidden.
        let networkFile = try openFile(network, flags: O_RDONLY)
        if let mount {
            let mountFile = try openFile(mount, flags: O_RDONLY)
            // A thread that shares its view of the file system may not change namespaces.
            try retryingInterrupts { wgp_unshare(Int32(wgp_clone_fs)) }
            try retryingInterrupts { wgp_setns(mountFile.rawValue, Int32(wgp_clone_newns)) }
        }
        try retryingInterrupts { wgp_setns(networkFile.rawValue, Int32(wgp_clone_newnet)) }
    }

    /// Runs a body on a thread inside the namespaces and waits for it. Sockets
    /// that it opens stay there. Never call it on the cooperative pool.
    public func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
        try onThread {
            try self.enter()
            return try body()
        }
    }

    /// Makes new namespaces and binds them to the files.
    ///
    /// `prepare` runs inside, on a thread of its own: mounts belong there. The
    /// mount namespace is cut off from its origin (no propagation) before.
    public func create(prepare: @escaping @Sendable () throws -> Void) throws {
        for file in [network, mount].compactMap({ $0 }) {
            _ = try openFile(file, flags: O_RDONLY | O_CREAT | O_EXCL, mode: 0o600)
        }
        let ready = Gate<Result<Int32, any Error>>()
        let bound = Gate<Void>()
        let worker = Worker {
            ready.open(
                Result {
                    let kinds = wgp_clone_newnet | (mount == nil ? 0 : wgp_clone_newns)
                    try retryingInterrupts { wgp_unshare(Int32(kinds)) }
                    if mount != nil {
                        try retryingInterrupts {
                            unsafe Glibc.mount(nil, "/", nil, wgp_ms_rec | wgp_ms_private, nil)
                        }
                    }
                    try prepare()
                    return wgp_gettid()
                })
            bound.wait()
        }
        defer {
            bound.open(())
            worker.join()
        }
        let thread = try ready.wait().get()
        try bindMount("/proc/self/task/\(thread)/ns/net", on: network)
        if let mount { try bindMount("/proc/self/task/\(thread)/ns/mnt", on: mount) }
    }

    /// Processes that are in the network namespace, from `/proc`.
    public func processes() -> [ProcessReference] {
        guard let own = Self.inode(network) else { return [] }
        return ((try? listFolder("/proc")) ?? []).compactMap { entry in
            guard let number = Int32(entry.name), Self.inode("/proc/\(number)/ns/net") == own else { return nil }
            return ProcessReference(identifier: number)
        }
    }

    private static func inode(_ path: String) -> UInt64? {
        var information = stat()
        return unsafe stat(path, &information) == 0 ? UInt64(information.st_ino) : nil
    }

    /// Lets the namespaces go: unbinds and removes the files. What is gone is no error.
    public func remove() {
        for file in [network, mount].compactMap({ $0 }) {
            _ = unsafe umount2(file, Int32(wgp_mnt_detach))
            _ = unsafe unlink(file)
        }
    }
}

/// Runs a body on a new thread and waits for its result.
public func onThread<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
    let result = Gate<Result<Value, any Error>>()
    let worker = Worker { result.open(Result { try body() }) }
    defer { worker.join() }
    return try result.wait().get()
}

/// Runs a body in a network namespace of its own, which is gone when it and the sockets it
/// opened are.
public func inNewNetworkNamespace<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) throws -> Value {
    try onThread {
        try retryingInterrupts { wgp_unshare(Int32(wgp_clone_newnet)) }
        return try body()
    }
}

/// Binds a file or folder, with what is mounted below it, to another place (mount(2), MS_BIND).
public func bindMount(_ source: String, on target: String) throws(Errno) {
    try retryingInterrupts { unsafe mount(source, target, nil, wgp_ms_bind | wgp_ms_rec, nil) }
}

/// Mounts a file system without a device: `tmpfs`, `sysfs`, `bpf`.
public func mountFileSystem(_ type: String, on target: String, options: String = "") throws(Errno) {
    let flags = wgp_ms_nosuid | wgp_ms_nodev | wgp_ms_noexec
    try retryingInterrupts { unsafe mount(type, target, type, flags, options) }
}

/// Makes a mount point private, so that namespaces can be bound to files in it.
public func makeMountPrivate(_ target: String) throws(Errno) {
    try retryingInterrupts { unsafe mount(nil, target, nil, wgp_ms_private, nil) }
}

/// Takes a mount away, lazily. What is not mounted is no error.
public func detachMount(_ target: String) {
    _ = unsafe umount2(target, Int32(wgp_mnt_detach))
}

/// Whether a folder is in a file system of the BPF kind (statfs(2)).
public func isBPFFileSystem(_ path: String) -> Bool {
    var information = statfs()
    return unsafe statfs(path, &information) == 0 && Int(information.f_type) == wgp_bpf_fs_magic
}
