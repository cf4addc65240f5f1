// SPDX-License-Identifier: Apache-2.0

public import DataplaneMaps
public import Model

/// How an agent is started.
public struct AgentOptions: Sendable {
    public var node: String
    /// Folder of the lock, the status and the like; root's alone.
    public var runDirectory: String
    /// Folder of what outlives a reboot.
    public var stateDirectory: String
    public var layout: PinLayout
    /// Settings of this node that were said in the environment and on the command line.
    public var overrides: [SettingOverride] = []

    /// Where its datastore is, as it is said on the command line.
    public var datastoreArgument = ""

    /// What nobody tells of is looked for at least so often, on large nodes too.
    public var longestPeriod = Duration.seconds(60)

    public static let defaultRunDirectory = "/run/wgplane"
    public static let defaultStateDirectory = "/var/lib/wgplane-agent"

    public init(
        node: String, runDirectory: String = Self.defaultRunDirectory,
        stateDirectory: String = Self.defaultStateDirectory, layout: PinLayout = PinLayout()
    ) {
        self.stateDirectory = stateDirectory
        self.node = node
        self.runDirectory = runDirectory
        self.layout = layout
    }

    /// Where the page and the metrics are served to root.
    public var dashboardSocket: String { "\(runDirectory)/http.sock" }
    /// Held by who reads the programs' events.
    var eventsLock: String { "\(runDirectory)/events.lock" }
    /// What records of flows have told, from one agent to the next; of this boot, as the flows are.
    var flowMemory: String { "\(runDirectory)/flows.told" }
    public var lockPath: String { "\(runDirectory)/agent.lock" }
}
