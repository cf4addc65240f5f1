// SPDX-License-Identifier: Apache-2.0

internal import Model
internal import Netlink
internal import SystemDescriptors

/// Chains of ours in iptables' tables, called first from its own, by `iptables-restore`: one step
/// for each table and family, without a moment in which half of it holds.
struct Iptables {
    /// `iptables-nft` or `iptables-legacy`.
    let kind: FirewallKind
    let family: AddressFamily
    /// Its own chains that are there (`filter INPUT`): asking iptables for another one would make it.
    let chains: Set<String>

    /// A chain of ours: its table, its name, the chain that calls it.
    struct Place: Hashable {
        var table: String
        var chain: String
        var caller: String
        var callerTitle: String { "\(table) \(caller)" }
    }

    /// Of the names of our chains.
    static let prefix = "wgplane-"

    static func place(_ hook: FirewallHook) -> Place {
        switch hook {
        case .prerouting: Place(table: "raw", chain: prefix + "PREROUTING", caller: "PREROUTING")
        case .input: Place(table: "filter", chain: prefix + "INPUT", caller: "INPUT")
        case .output: Place(table: "filter", chain: prefix + "OUTPUT", caller: "OUTPUT")
        case .postrouting: Place(table: "nat", chain: prefix + "POSTROUTING", caller: "POSTROUTING")
        }
    }

    /// All that are ever started.
    static let programs = ["iptables", "ip6tables"].flatMap { name in
        ["-nft", "-legacy"].flatMap { kind in ["-save", "-restore"].map { name + kind + $0 } }
    }

    private func program(_ suffix: String) -> String {
        (family == .ipv4 ? "iptables" : "ip6tables") + (kind == .iptablesNFT ? "-nft" : "-legacy") + suffix
    }

    private var canRun: Bool {
        (try? ProgramLaunch([program("-save"), "-V"], environment: currentEnvironment(), ownSession: false).capture())
            != nil
    }

    private func run(_ arguments: [String], input: String = "") throws -> String {
        var launch = ProgramLaunch(arguments, environment: currentEnvironment(), ownSession: false)
        launch.input = input
        let command = arguments.joined(separator: " ")
        let result: (status: Int32, output: String)
        do {
            result = try launch.capture()
        } catch {
            throw HostFirewallError(command: command, words: "\(error)")
        }
        guard result.status == 0 else {
            throw HostFirewallError(
                command: command, words: result.output.split(separator: "\n").joined(separator: "; "))
        }
        return result.output
    }

    /// The lines of a table's rules, as `iptables-save` writes them.
    private func saved(_ table: String) throws -> [String] {
        try run([program("-save"), "-t", table]).split(separator: "\n").map(String.init)
    }

    /// Makes our chains hold these rules, and be called first.
    func apply(_ rulesByHook: FirewallChains) throws {
        for hook in FirewallHook.allCases {
            let place = Self.place(hook)
            let rules = (rulesByHook[hook] ?? []).filter { !$0.needsTables && ($0.family ?? family) == family }
            if rules.isEmpty {
                if chains.contains(place.callerTitle) { try remove(place) }
                continue
            }
            let lines = try saved(place.table)
            let jump = Self.jump(place)
            let isFirst = lines.first { $0.hasPrefix("-A \(place.caller) ") } == "-A \(jump)"
            let wanted = rules.map { "-A \(place.chain) " + Self.arguments($0) }
            let present = lines.filter { $0.hasPrefix("-A \(place.chain) ") }
            if isFirst, present.map(Self.comment) == wanted.map(Self.comment) { continue }
            var text = "*\(place.table)\n:\(place.chain) - [0:0]\n"
            for _ in lines.filter({ $0 == "-A \(jump)" }) { text += "-D \(jump)\n" }
            text += wanted.joined(separator: "\n") + "\n"
            text += "-I \(place.caller) 1\(jump.dropFirst(place.caller.count))\nCOMMIT\n"
            _ = try run([program("-restore"), "--noflush", "-w", "5"], input: text)
        }
    }

    /// Takes our chains away wherever they are. Without the program there are none of ours.
    func remove() throws {
        guard canRun else { return }
        for hook in FirewallHook.allCases where chains.contains(Self.place(hook).callerTitle) {
            try remove(Self.place(hook))
        }
    }

    private func remove(_ place: Place) throws {
        let lines = try saved(place.table)
        guard lines.contains(where: { $0.hasPrefix(":\(place.chain) ") }) else { return }
        var text = "*\(place.table)\n"
        for _ in lines.filter({ $0 == "-A \(Self.jump(place))" }) { text += "-D \(Self.jump(place))\n" }
        text += "-F \(place.chain)\n-X \(place.chain)\nCOMMIT\n"
        _ = try run([program("-restore"), "--noflush", "-w", "5"], input: text)
    }

    /// As `iptables-save` writes it.
    private static func jump(_ place: Place) -> String { "\(place.caller) -j \(place.chain)" }

    /// What tells one of our rules from another.
    private static func comment(_ line: String) -> String {
        line.split(separator: "\"", omittingEmptySubsequences: false).dropFirst().first.map(String.init) ?? ""
    }

    private static func arguments(_ rule: FirewallRule) -> String {
        var words: [String] = []
        var transport = ""
        for match in rule.matches {
            switch match {
            case .family, .hasListener: break
            case .transport(let number):
                transport = number == 6 ? "tcp" : number == 17 ? "udp" : "\(number)"
                words.append("-p \(transport)")
            case .sourcePort(let port): words.append("-m \(transport) --sport \(port)")
            case .destinationPort(let port): words.append("-m \(transport) --dport \(port)")
            case .sourceIsLocal: words.append("-m addrtype --src-type LOCAL")
            case .destinationIsLocal: words.append("-m addrtype --dst-type LOCAL")
            case .sourceIsForeignAtOutput: words.append("-m addrtype ! --src-type LOCAL --limit-iface-out")
            case .input(let name): words.append("-i \(name)")
            case .inputPrefix(let name): words.append("-i \(name)+")
            case .output(let name): words.append("-o \(name)")
            }
        }
        words.append("-m comment --comment \"\(rule.comment)\"")
        switch rule.action {
        case .accept: words.append("-j ACCEPT")
        case .leave: words.append("-j RETURN")
        case .mark(let bits):
            let text = "0x" + String(bits, radix: 16)
            words.append("-j MARK --set-xmark \(text)/\(text)")
        case .masquerade(let ports):
            let range = ports.map { " --to-ports \($0.lowerBound)-\($0.upperBound)" } ?? ""
            words.append("-j MASQUERADE\(range) --random-fully")
        case .destinationPort: break
        }
        return words.joined(separator: " ")
    }
}

/// What a program that writes the node's firewall says.
struct HostFirewallError: Error, CustomStringConvertible {
    var command: String
    var words: String
    var description: String { "\(command): \(words)" }
}
