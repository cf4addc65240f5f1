// SPDX-License-Identifier: Apache-2.0

import Agent
import ArgumentParser
import Foundation
import Lab
import Model
import SystemDescriptors

/// Path of this program, for the agents that the lab starts.
func ownBinary() throws -> String {
    try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
}

struct LabNameOptions: ParsableArguments {
    @Option(help: "Name of the lab.") var name = "lab"

    func open() throws -> Lab { try Lab.open(name, binary: ownBinary(), logger: quietLogger) }
}

struct LabCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lab", abstract: "A cluster of network namespaces on this machine, one real agent a node.",
        discussion: """
            Nodes are node1, node2, …; pods node1-pod1, …; the network between the nodes is underlay.
            Nothing of it touches the machine's own network.
            """,
        subcommands: [
            Up.self, Status.self, Check.self, Exec.self, Env.self, LabPageCommand.self, LabFillCommand.self,
            LabLatencyCommand.self, LabChaosCommand.self, Down.self,
        ])

    struct Up: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Brings a lab up and waits until it encrypts.", usage: "wgplane lab up [options]")

        @OptionGroup var lab: LabNameOptions
        @Option(help: "Number of nodes.") var nodes = 3
        @Option(help: "Pods of each node.") var pods = 2
        @Flag(help: "IPv6 only.") var ipv6 = false
        @Flag(help: "IPv4 and IPv6.") var dual = false
        @Option(help: "WireGuard: auto, kernel or userspace.") var wireguard = "auto"
        @Option(help: "Attachment of the programs: auto, tcx or tc.") var attach = "auto"
        @Option(help: "Data plane: auto, ebpf or route.") var mode = "auto"
        @Option(help: "MTU of the pods' devices.") var podMtu: UInt32 = 1420
        @Option(help: "Where the resources are: directory, etcd, or kubernetes (a real API server).")
        var datastore = "directory"
        @Option(help: "Whose cluster it looks like: on-premises, flannel, eks, eks-calico, aks or aks-calico.")
        var platform = "on-premises"
        @Option(help: "Folder of what is applied to an API server.") var manifests = "scripts/deploy"
        @Flag(help: "Leave WireGuard switched off.") var disabled = false

        func run() async throws {
            guard let backend = WireGuardBackendChoice.allCases.first(where: { $0.rawValue.lowercased() == wireguard })
            else { throw ValidationError("--wireguard: \"\(wireguard)\" is not one of auto, kernel, userspace") }
            guard let attachment = AttachmentChoice.allCases.first(where: { $0.rawValue.lowercased() == attach })
            else { throw ValidationError("--attach: \"\(attach)\" is not one of auto, tcx, tc") }
            guard let mode = ModeChoice.allCases.first(where: { $0.rawValue.lowercased() == mode }), mode != .disabled
            else { throw ValidationError("--mode: \"\(mode)\" is not one of auto, ebpf, route") }
            guard let store = LabDatastore(rawValue: datastore) else {
                throw ValidationError("--datastore: \"\(datastore)\" is not one of directory, etcd, kubernetes")
            }
            guard let kind = LabPlatform(rawValue: platform) else {
                let words = LabPlatform.allCases.map(\.rawValue).joined(separator: ", ")
                throw ValidationError("--platform: \"\(platform)\" is not one of \(words)")
            }
            let spec = LabSpec(
                name: lab.name, nodes: nodes, pods: pods, families: dual ? [.ipv4, .ipv6] : ipv6 ? [.ipv6] : [.ipv4],
                backend: backend, attachment: attachment, mode: mode, podMTU: podMtu,
                datastore: store, manifests: URL(fileURLWithPath: manifests).path, platform: kind)
            let lab = try await Lab.up(spec, enabled: !disabled, binary: ownBinary(), logger: quietLogger)
            do {
                try await lab.waitUntilSettled(enabled: !disabled)
            } catch {
                for node in lab.nodeNames() {
                    for problem in lab.status(node)?.problems ?? [] {
                        FileHandle.standardError.write(Data("wgplane: \(node): \(problem)\n".utf8))
                    }
                }
                try? await lab.down()
                throw error
            }
            print("lab \(spec.name) is up: \(nodes) nodes, \(pods) pods each, WireGuard \(disabled ? "off" : "on")")
        }
    }

    struct Status: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Shows a lab's nodes and pods.")

        @OptionGroup var lab: LabNameOptions
        @OptionGroup var output: OutputOptions

        struct Row: Encodable {
            var place: String
            var node: String
            var addresses: [IPAddress]
            var state: String
        }

        func run() async throws {
            let lab = try lab.open()
            var rows: [Row] = []
            for (index, node) in lab.nodeNames().enumerated() {
                let running = await lab.agent(node) != nil
                rows.append(
                    Row(
                        place: node, node: node, addresses: lab.spec.families.map { LabAddresses.node(index + 1, $0) },
                        state: "\(lab.status(node)?.mode ?? "starting"), agent \(running ? "running" : "dead")"))
                for pod in await lab.state.pods where pod.node == index + 1 {
                    rows.append(Row(place: pod.name, node: node, addresses: pod.addresses, state: "pod"))
                }
            }
            if try Output.structured(rows, output.format) { return }
            Output.table(
                ["PLACE", "NODE", "ADDRESSES", "STATE"],
                rows.map { [$0.place, $0.node, $0.addresses.map(\.description).joined(separator: " "), $0.state] })
        }
    }

    struct Check: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Sends ICMP, TCP and UDP between all pods and from all nodes, with a capture on the underlay.",
            discussion: "Exit status 1 when a pair does not reach the other.")

        @OptionGroup var lab: LabNameOptions
        @OptionGroup var output: OutputOptions

        func run() async throws {
            let result = try await LabCheck(lab.open()).run()
            if try !Output.structured(result, output.format) {
                Output.table(
                    ["SOURCE", "DESTINATION", "PROTO", "FAMILY", "REACHABLE", "WAY", "PACKETS"],
                    result.pairs.map {
                        [
                            $0.source, $0.destination, $0.protocol, $0.family, $0.reachable ? "yes" : "NO", $0.way,
                            "\($0.packets)",
                        ]
                    })
                print(
                    "underlay: \(result.underlay.wireguardPackets) WireGuard packets, \(result.underlay.clearPackets) in clear"
                )
                for example in result.underlay.examples { print("  in clear: \(example)") }
            }
            if result.pairs.contains(where: { !$0.reachable }) { throw ExitCode(1) }
        }
    }

    struct Exec: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Runs a program on a node, in a pod, on the underlay, or where the datastore is (control).",
            discussion: """
                wgplane lab exec node1 -- wg show
                wgplane lab exec control -- kubectl get nodes -o yaml
                """)

        @OptionGroup var lab: LabNameOptions
        @Argument(help: "node1, node1-pod1, underlay, control, …") var place: String
        @Argument(parsing: .postTerminator, help: "The program and its arguments.") var command: [String] = []

        func run() throws {
            guard !command.isEmpty else { throw ValidationError("name a program after --") }
            let lab = try lab.open()
            let files = try lab.place(place)
            let node = place.split(separator: "-").first.map(String.init) ?? place
            if files.mount != nil || place == "control" {
                for entry in lab.environment(node) {
                    let parts = entry.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                    setenv(String(parts[0]), parts.count > 1 ? String(parts[1]) : "", 1)
                }
            }
            try files.enter()
            let error = replaceProcess(command)
            throw ProblemsError(
                Problem(
                    resource: "lab", field: "command", value: command[0], message: "cannot be run: \(error)",
                    remedy: "name a program that is installed"))
        }
    }

    struct Env: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Prints the shell's line that makes this lab's datastore the default.",
            discussion: "eval \"$(wgplane lab env)\"")

        @OptionGroup var lab: LabNameOptions

        func run() async throws {
            let lab = try lab.open()
            guard lab.spec.datastore == .directory else {
                throw ProblemsError(
                    Problem(
                        resource: "lab", field: "datastore", value: lab.spec.datastore.rawValue,
                        message: "is reached from the lab's own network only",
                        remedy: "wgplane lab exec --name \(lab.spec.name) control -- wgplane get nodes"))
            }
            print("export WGPLANE_DATASTORE=directory:\(lab.paths.datastore)")
        }
    }

    struct Down: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Takes a lab down and leaves nothing of it.")

        @OptionGroup var lab: LabNameOptions
        @Flag(help: "Every lab, and what is left of broken ones.") var all = false
        @Flag(help: "Also what is left of a lab that broke.") var partial = false

        func run() async throws {
            let names = all ? Lab.names() : [lab.name]
            for name in names {
                let lab = try Lab.open(name, binary: ownBinary(), logger: quietLogger, partial: all || partial)
                try await lab.down()
                print("lab \(name) is down")
            }
        }
    }
}
