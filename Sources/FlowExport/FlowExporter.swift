// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
public import Flows
internal import Foundation
public import Logging
public import Model

/// Sends records to a collector by IPFIX, and writes them to a file.
///
/// It waits for nobody but its own socket: what a collector does not take in time waits in a queue, and what does
/// not fit there is counted as lost, the oldest first.
public actor FlowExporter {
    private let node: String
    private let logger: Logger
    private let domain: UInt32
    private let holder = ExportStateHolder()
    private var file: LineFile
    /// Of paths before it, with lines that still wait.
    private var formerFiles: [LineFile] = []

    private var settings = FlowExportSettings()
    /// Counts changes that want another connection.
    private var version = 0
    private var ipfix: IPFIX
    private var connection: Session?
    private var queue: Deque<IPFIX.Encoded> = []
    private var queuedBytes = 0
    private var lastTemplates: ContinuousClock.Instant?
    private var nextTry = ContinuousClock.now
    private var delay = firstDelay
    /// Records sent by this connection a moment ago.
    private var recent: [(at: ContinuousClock.Instant, count: Int)] = []
    /// The collector has not refused the templates, which it was sent first.
    private var isTried = false

    /// A connection, and the settings that it was made by.
    private struct Session {
        var value: CollectorConnection
        var collector: CollectorAddress
        var version: Int
        var since = ContinuousClock.now
    }

    /// Somebody sends.
    private var isDraining = false
    /// Records that are being sent.
    private var inFlight: [IPFIX.Encoded] = []

    private let (wakes, wake) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))

    static let firstDelay = Duration.milliseconds(500)
    static let lastDelay = Duration.seconds(10)
    /// How long a collector may take to refuse us: with UDP by its "port unreachable", with TLS because of our certificate.
    static func trial(_ transport: CollectorAddress.Transport) -> Duration {
        switch transport {
        case .udp: .milliseconds(250)
        case .tcp: .milliseconds(50)
        case .tls: .milliseconds(250)
        }
    }
    /// How long a collector may take to read what it was sent.
    static let doubt = Duration.seconds(2)
    /// How long a collector may take no bytes before its connection is closed.
    static let sendLimit = Duration.seconds(10)
    /// Bytes of records that may wait.
    static let queueLimit = 32 << 20
    /// Messages in a row, and the pause behind them that lets a collector's socket breathe.
    static let burst = (messages: 32, pause: Duration.milliseconds(4))

    private let reserved: [String]

    /// - Parameter reserved: folders in which no file of records may be, whatever the settings say.
    public init(node: String, reserved: [String] = [], logger: Logger) {
        self.node = node
        self.reserved = reserved
        self.logger = logger
        domain = Self.domain(node)
        file = LineFile(holder, reserved: reserved, logger: logger)
        ipfix = IPFIX(domain: domain, enterprise: nil, maximumLength: 1232)
    }

    public nonisolated var state: ExportState { holder.value }

    /// The observation domain of a node: FNV-1a of its name, never 0.
    static func domain(_ node: String) -> UInt32 {
        let hash = node.utf8.reduce(UInt32(2_166_136_261)) { ($0 ^ UInt32($1)) &* 16_777_619 }
        return max(hash, 1)
    }

    // MARK: Input

    public func configure(_ new: FlowExportSettings) {
        guard new != settings else { return }
        let old = settings
        settings = new
        if new.file != old.file {
            // One that hangs holds up no other.
            file.retire()
            formerFiles = (formerFiles + [file]).filter { !$0.isDone }
            file = LineFile(holder, reserved: reserved, logger: logger)
            holder.change { $0.fileReason = "" }
        }
        guard !new.hasSameConnection(as: old) else { return }
        version += 1
        if let connection {
            // What is being sent has a moment to get there.
            Task {
                try await Task.sleep(for: .seconds(1))
                connection.value.close()
            }
        }
        if new.collector == nil { lose(queue.count, "the collector is not set any more") }
        if new.enterpriseNumber != old.enterpriseNumber { lose(queue.count, "their template has changed") }
        (nextTry, delay) = (.now, Self.firstDelay)
        holder.change {
            $0.collector = new.collector?.description ?? ""
            $0.state = new.collector == nil ? "off" : "connecting"
            $0.reason = ""
        }
        wake.yield()
    }

    public func submit(_ records: [FlowRecord]) {
        if settings.collector != nil { enqueue(records.map(ipfixForEncoding.encoded)) }
        if !settings.file.isEmpty { write(records.map { ExportLine($0, exporter: node) }) }
    }

    public func submit(_ records: [AggregateRecord]) {
        if settings.collector != nil { enqueue(records.map(ipfixForEncoding.encoded)) }
        if !settings.file.isEmpty { write(records.map { ExportLine($0, exporter: node) }) }
    }

    /// Only its fields matter.
    private var ipfixForEncoding: IPFIX {
        IPFIX(
            domain: domain, enterprise: settings.enterpriseNumber == 0 ? nil : settings.enterpriseNumber,
            maximumLength: 1232)
    }

    private func enqueue(_ records: [IPFIX.Encoded]) {
        guard !records.isEmpty else { return }
        for record in records {
            queue.append(record)
            queuedBytes += record.bytes.count
        }
        var surplus = 0
        var bytes = queuedBytes
        while bytes > Self.queueLimit, surplus < queue.count {
            bytes -= queue[surplus].bytes.count
            surplus += 1
        }
        if surplus > 0 { lose(surplus, "the collector does not take them in time") }
        holder.change { $0.queued = queue.count }
        wake.yield()
    }

    private func write(_ lines: [ExportLine]) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        // Nothing in a line can be refused: texts, integers, truth values.
        let encoded = lines.compactMap { line in (try? encoder.encode(line)).map { [UInt8]($0) + [0x0a] } }
        file.offer(encoded, path: settings.file, limit: Int(settings.fileLimit) << 20)
    }

    /// Takes the oldest out of the queue, uncounted.
    private func takeFirst(_ count: Int) -> [IPFIX.Encoded] {
        let taken = Array(queue.prefix(count))
        queue.removeFirst(taken.count)
        queuedBytes -= taken.reduce(0) { $0 + $1.bytes.count }
        holder.change { $0.queued = queue.count }
        return taken
    }

    private func lose(_ count: Int, _ reason: String) { lose(takeFirst(count), reason) }

    private func lose(_ records: [IPFIX.Encoded], _ reason: String) {
        guard !records.isEmpty else { return }
        holder.change {
            $0.statistics.lostRecords += UInt64(records.count)
            $0.statistics.lostPackets += records.reduce(0) { $0 + $1.packets }
            $0.statistics.lostBytes += records.reduce(0) { $0 + $1.octets }
        }
        logger.warning("flow records are lost", metadata: ["records": "\(records.count)", "reason": "\(reason)"])
    }

    // MARK: Output

    /// Sends what there is, until the task is cancelled.
    public func run() async {
        // Nobody waits for it: a connection that hangs would hold up the agent's end.
        let sender = Task { for await _ in wakes { await drain() } }
        // For templates that are due, and collectors that were away.
        while (try? await Task.sleep(for: .milliseconds(500))) != nil { wake.yield() }
        sender.cancel()
    }

    /// Sends and writes what is left, each for as long as that at most; what is left then is lost.
    public func finish(within limit: Duration = .seconds(2)) async {
        // A collector that was away is tried once more.
        nextTry = .now
        var sender: Task<Void, Never>?
        let deadline = ContinuousClock.now + limit
        while !queue.isEmpty || !inFlight.isEmpty, ContinuousClock.now < deadline {
            if !isDraining {
                if nextTry > .now { break }
                sender = Task { await drain() }
            }
            try? await Task.sleep(for: .milliseconds(10))
        }
        sender?.cancel()
        version += 1
        lose(queue.count, "the agent stops")
        lose(inFlight, "the agent stops")
        inFlight = []
        connection?.value.close()
        connection = nil
        let end = ContinuousClock.now + limit
        let files = formerFiles + [file]
        while !files.allSatisfy(\.isDone), ContinuousClock.now < end {
            try? await Task.sleep(for: .milliseconds(10))
        }
        for file in files { file.giveUp() }
    }

    private func drain() async {
        guard !isDraining else { return }
        isDraining = true
        defer { isDraining = false }
        while !Task.isCancelled {
            guard settings.collector != nil else {
                connection?.value.close()
                connection = nil
                return
            }
            // A connection that was closed meanwhile is found out also while there is nothing to send.
            if let connection, !connection.value.isActive { noteClosed(connection) }
            guard !queue.isEmpty || templatesAreDue, let connection = await connect() else { return }
            guard await sendSome(connection, withTemplates: templatesAreDue) else { return }
        }
    }

    private var templatesAreDue: Bool {
        guard connection != nil else { return false }
        return lastTemplates.map { ContinuousClock.now - $0 >= .seconds(Int(settings.templateInterval)) } ?? true
    }

    /// The connection that the settings want; nil: there is none now.
    private func connect() async -> Session? {
        if let connection, connection.version == version { return connection }
        connection?.value.close()
        (connection, recent) = (nil, [])
        guard let collector = settings.collector, ContinuousClock.now >= nextTry else { return nil }
        let (tried, settings) = (version, settings)
        do {
            let opened = try await CollectorConnection.open(settings, collector)
            guard tried == version, !Task.isCancelled else {
                opened.close()
                return nil
            }
            ipfix = IPFIX(
                domain: domain, enterprise: settings.enterpriseNumber == 0 ? nil : settings.enterpriseNumber,
                maximumLength: opened.maximumLength)
            connection = Session(value: opened, collector: collector, version: tried)
            (lastTemplates, isTried) = (nil, false)
            return connection
        } catch {
            if tried == version { fail("\(error)") }
            return nil
        }
    }

    /// The connection is closed, and not by us.
    private func noteClosed(_ session: Session) {
        guard session.version == version else { return connection = nil }
        let trouble = session.value.lastTrouble
        logger.warning(
            "collector has closed the connection",
            metadata: ["collector": "\(session.collector)", "reason": "\(trouble)"])
        fail(trouble.isEmpty ? "it closes the connection" : trouble)
        // Nothing waits for it: there is nothing to be mended yet.
        if queue.isEmpty, trouble.isEmpty { holder.change { ($0.state, $0.reason) = ("connecting", "") } }
    }

    /// One burst. False: it went wrong, and is tried again later.
    private func sendSome(_ session: Session, withTemplates: Bool) async -> Bool {
        let (connection, transport) = (session.value, session.collector.transport)
        let room = Self.burst.messages * (connection.maximumLength - 100)
        var bytes = withTemplates ? 1000 : 0
        var count = 0
        // A collector that is not there, or does not want us, is found out with the templates: no record goes with them.
        while isTried, count < queue.count, bytes + queue[count].bytes.count <= room || count == 0 {
            bytes += queue[count].bytes.count
            count += 1
        }
        let records = takeFirst(count)
        inFlight = records
        defer { inFlight = [] }
        let parts = ipfix.messages(
            records, time: UInt32(Date().timeIntervalSince1970), withTemplates: withTemplates,
            statistics: holder.value.statistics)
        if withTemplates { lastTemplates = .now }
        // A collector that takes nothing holds up neither a change of settings nor the agent's end for long.
        let watchdog = Task {
            try await Task.sleep(for: Self.sendLimit)
            connection.close()
        }
        defer { watchdog.cancel() }
        var failure: String?
        do {
            try await connection.send(parts.map(\.bytes))
            if transport == .udp || !isTried {
                try? await Task.sleep(for: isTried ? Self.burst.pause : Self.trial(transport))
                if connection.takeTroubles() > 0 {
                    failure = transport == .udp ? "nobody listens there" : ""
                } else if !connection.isActive, !isTried {
                    failure = "it closes the connection"
                }
            }
        } catch {
            failure = "\(error)"
        }
        // Other settings hold meanwhile: this was the connection's last word.
        let isCurrent = session.version == version
        if let failure {
            let reason = connection.lastTrouble.isEmpty ? failure : connection.lastTrouble
            // The agent's end has told of them.
            if !inFlight.isEmpty { lose(records, isCurrent ? reason : "the settings have changed") }
            if isCurrent { fail(reason) }
            return !isCurrent
        }
        if isCurrent {
            recent.removeAll { ContinuousClock.now - $0.at >= Self.doubt }
            recent.append((.now, records.count))
            isTried = true
            // One that takes us and closes again is not tried more often than one that is away.
            if ContinuousClock.now - session.since > Self.doubt { delay = Self.firstDelay }
        }
        holder.change {
            $0.statistics.messages += UInt64(parts.count)
            $0.statistics.records += UInt64(records.count)
            guard isCurrent else { return }
            if $0.state == "failing" || $0.state == "connecting" {
                logger.info("flow records are exported", metadata: ["collector": "\(session.collector)"])
            }
            ($0.state, $0.reason) = ("connected", "")
        }
        return true
    }

    /// What was sent a moment ago may not have got there.
    private func fail(_ reason: String) {
        let unconfirmed = recent.filter { ContinuousClock.now - $0.at < Self.doubt }.reduce(0) { $0 + $1.count }
        holder.change { $0.unconfirmed += UInt64(unconfirmed) }
        connection?.value.close()
        (connection, recent) = (nil, [])
        nextTry = .now + delay
        delay = min(delay * 2, Self.lastDelay)
        if holder.value.state != "failing" {
            logger.warning(
                "flow records cannot be sent; they wait",
                metadata: ["collector": "\(holder.value.collector)", "reason": "\(reason)"])
        }
        holder.change { ($0.state, $0.reason) = ("failing", reason) }
    }
}
