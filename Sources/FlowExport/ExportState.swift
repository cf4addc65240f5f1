// SPDX-License-Identifier: Apache-2.0

public import Flows
internal import Synchronization

/// How an export goes, for status and metrics.
public struct ExportState: Sendable, Hashable, Codable {
    /// As it was set; empty: none.
    public var collector = ""
    /// `off`, `connecting`, `connected`, `failing`.
    public var state = "off"
    /// Why it fails.
    public var reason = ""
    /// Records sent to the collector and those that were lost.
    public var statistics = IPFIX.Statistics()
    /// Records that were sent within seconds of the collector's closing the connection: it may not have read them.
    public var unconfirmed: UInt64 = 0
    /// Records that wait.
    public var queued = 0
    /// Records written to the file and those that could not be.
    public var fileRecords: UInt64 = 0
    public var fileLost: UInt64 = 0
    public var fileReason = ""
}

/// Holds it for readers on other threads.
final class ExportStateHolder: Sendable {
    private let state = Mutex(ExportState())

    var value: ExportState { state.withLock { $0 } }
    func change(_ body: (inout ExportState) -> Void) { state.withLock { body(&$0) } }
}
