// SPDX-License-Identifier: Apache-2.0

internal import Agent
internal import DataplaneMaps
internal import Datastore
internal import Foundation
internal import Lab
internal import Model
internal import OrderedCollections
internal import SystemDescriptors

/// The agent's own end, and the datastore's.
extension Fault {
    static let ofAgent: [Fault] = [
        Fault("agent-killed", "an agent is killed, and another starts a moment later") { site, random in
            let node = site.anyNode(&random)
            try await site.lab.stopAgent(node, signal: 9)
            let time = try await site.pause(0...1500, &random)
            try await site.lab.startAgent(node)
            return "\(node), \(time) ms without"
        },
        Fault("agent-killed-early", "agents are killed at random points of their start") { site, random in
            let node = site.anyNode(&random)
            try await site.lab.stopAgent(node, signal: 9)
            var times: [String] = []
            for _ in 0..<Int.random(in: 2...6, using: &random) {
                let process = try await site.lab.startAgent(node)
                times.append("\(try await site.pause(1...500, &random))")
                process?.signal(9)
                try await site.lab.wait("the agent is gone") {
                    process.map { reapChild($0.identifier) || !$0.isRunning } ?? true
                }
            }
            try await site.lab.startAgent(node)
            return "\(node), after \(times.joined(separator: " ")) ms"
        },
        Fault("agent-stopped", "an agent is asked to end, and another starts") { site, random in
            let node = site.anyNode(&random)
            try await site.lab.stopAgent(node, signal: 15)
            try await site.lab.startAgent(node)
            return node
        },
        Fault("layout-changed", "an agent of another version starts, which has its maps elsewhere") { site, random in
            guard let node = site.node("ebpf", &random) else { return nil }
            try await site.lab.stopAgent(node, signal: 15)
            let layout = site.layout(node)
            let other = "\(layout.root)/v\(PinLayout.version + Int.random(in: 1...9, using: &random))"
            try renameFile(layout.folder, other)
            try await site.lab.startAgent(node)
            try await site.lab.wait("nothing is left of the other version", within: Chaos.mendTime) {
                !fileExists(other)
            }
            return node
        },
        Fault("calls-fail", "an agent starts, and for seconds each so many of its calls to the kernel fails (strace)") {
            site, random in
            guard findProgram("strace") != nil else { return nil }
            let node = site.anyNode(&random)
            let choices = [
                ("bpf", "ENOMEM"), ("bpf", "EBUSY"), ("sendto", "ENOBUFS"), ("sendto", "EBUSY"),
                ("recvfrom", "ENOBUFS"),
                ("openat", "EMFILE"), ("write", "ENOSPC"), ("?rename,?renameat", "EIO"), ("socket", "EMFILE"),
            ]
            let (call, error) = choices[Int.random(in: 0..<choices.count, using: &random)]
            let step = Int.random(in: 2...9, using: &random)
            try await site.lab.stopAgent(node, signal: 9)
            try await site.lab.startAgent(node)
            try await site.lab.wait("the agent has begun") { await site.lab.agent(node) != nil }
            guard let process = await site.lab.agent(node) else { return nil }
            let words = [
                "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=\(call)", "-e",
                "inject=\(call):error=\(error):when=1+\(step)", "-p", "\(process.identifier)",
            ]
            let tracer = try ProgramLaunch(words, environment: currentEnvironment(), ownSession: false).start()
            let time: Int
            do {
                defer { ProcessReference(identifier: tracer)?.signal(SIGTERM) }
                time = try await site.pause(1000...4000, &random)
            }
            try await site.lab.wait("nobody traces the agent") { reapChild(tracer) }
            // One that has ended for what failed is started anew, as a node does.
            if await site.lab.agent(node) == nil { try await site.lab.startAgent(node) }
            return "\(node), each \(step)th \(call) with \(error), \(time) ms"
        },
        Fault("agent-frozen", "an agent gets no processor for seconds") { site, random in
            let node = site.anyNode(&random)
            guard let process = await site.lab.agent(node) else { return nil }
            process.signal(SIGSTOP)
            let time = try await site.pause(500...4000, &random)
            process.signal(SIGCONT)
            return "\(node), \(time) ms"
        },
        Fault("all-agents-killed", "all agents are killed at once") { site, random in
            for node in site.lab.nodeNames() { try await site.lab.stopAgent(node, signal: 9) }
            let time = try await site.pause(0...2000, &random)
            for node in site.lab.nodeNames() { try await site.lab.startAgent(node) }
            return "\(time) ms without"
        },
    ]

    static let ofDatastore: [Fault] = [
        Fault("datastore-emptied", "all resources but the settings are gone for seconds: a disk that was lost") {
            site, random in
            let folder = site.lab.paths.datastore
            let kinds = ResourceKind.allCases.filter { ![.felixConfiguration, .dataplaneConfiguration].contains($0) }
            let present = kinds.map(\.plural).filter { fileExists("\(folder)/\($0)") }
            var moved: [(String, String)] = []
            try makeFolders("\(folder)/.away", mode: 0o700)
            for kind in present {
                for entry in try listFolder("\(folder)/\(kind)") where entry.isRegular {
                    let (from, to) = ("\(folder)/\(kind)/\(entry.name)", "\(folder)/.away/\(kind)-\(entry.name)")
                    try renameFile(from, to)
                    moved.append((from, to))
                }
            }
            let time = try await site.pause(1000...6000, &random)
            // What an agent has written meanwhile is newer.
            for (from, to) in moved {
                if fileExists(from) { try removeFile(to) } else { try renameFile(to, from) }
            }
            try removeFolder("\(folder)/.away")
            return "\(moved.count) resources, \(time) ms"
        },
        Fault("resources-torn", "resources are torn, of absurd size, or no text, and are mended later") {
            site, random in
            let folder = site.lab.paths.datastore
            let kinds = [ResourceKind.node, .pod, .ipamBlock].map(\.plural).filter { fileExists("\(folder)/\($0)") }
            var kept: [(path: String, bytes: [UInt8])] = []
            for kind in kinds {
                let files = try listFolder("\(folder)/\(kind)").filter(\.isRegular)
                guard !files.isEmpty else { continue }
                let path = "\(folder)/\(kind)/\(files[Int.random(in: 0..<files.count, using: &random)].name)"
                let bytes = try readFile(path)
                kept.append((path, bytes))
                let broken: [[UInt8]] = [
                    Array(bytes.prefix(bytes.count / 2)), [0xff, 0xfe, 0x00, 0x80],
                    [UInt8](repeating: 91, count: 1 << 20), [],
                ]
                try replaceFile(path, with: broken[Int.random(in: 0..<broken.count, using: &random)])
            }
            let time = try await site.pause(500...3000, &random)
            for (path, bytes) in kept { try replaceFile(path, with: bytes) }
            return kept.map { $0.path.split(separator: "/").suffix(2).joined(separator: "/") }.joined(separator: ", ")
                + ", \(time) ms"
        },
        Fault("pods-churn", "pods of other nodes come and go, hundreds a second") { site, random in
            let folder = "\(site.lab.paths.datastore)/pods"
            try makeFolders(folder)
            let count = Int.random(in: 200...800, using: &random)
            // Were nine of ten gone in one look, that would be held back as a folder that is being emptied.
            let window = 4 * site.lab.spec.nodes * site.lab.spec.pods
            for number in 0..<count + window {
                if number < count {
                    let text = """
                        {"apiVersion":"v1","kind":"Pod","metadata":{"name":"churn-\(number)"},"spec":{"nodeName":\
                        "node\(number % site.lab.spec.nodes + 1)"},"status":{"podIP":"10.49.\(number / 250).\(number % 250 + 1)",\
                        "phase":"Running"}}
                        """
                    try replaceFile("\(folder)/churn-\(number).json", with: Array(text.utf8))
                }
                if number >= window { try removeFile("\(folder)/churn-\(number - window).json") }
                try await Task.sleep(for: .milliseconds(2))
            }
            return "\(count) pods"
        },
        // As its word that it has none, which strict mode takes it at until its agent speaks.
        Fault("key-removed", "a Node's public key is taken away by hand", mayInterrupt: true) { site, random in
            let node = site.anyNode(&random)
            let name = "projectcalico.org/WireguardPublicKey" + (site.anyFamily(&random) == .ipv6 ? "V6" : "")
            try await site.lab.datastore.update(ResourceKey(.node, node)) {
                $0?.merging(.object(["metadata": .object(["annotations": .object([name: .null])])]))
            }
            return "\(node) \(name)"
        },
        Fault("key-overwritten", "a Node's public key is overwritten by hand") { site, random in
            let node = site.anyNode(&random)
            let name = "projectcalico.org/WireguardPublicKey" + (site.anyFamily(&random) == .ipv6 ? "V6" : "")
            let keys: [ManifestValue] = [
                "short", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
                "dEFYVGZLMnpDRWZFcUZnZ2hZbXpMdW1wQmZvQ1NPUUs=",
            ]
            let key = keys[Int.random(in: 0..<keys.count, using: &random)]
            try await site.lab.datastore.update(ResourceKey(.node, node)) {
                $0?.merging(.object(["metadata": .object(["annotations": .object([name: key])])]))
            }
            return "\(node) \(name) \(key.stringValue ?? "")"
        },
        Fault("node-deleted", "a Node is deleted by hand, and made again", mayInterrupt: true) { site, random in
            let node = site.anyNode(&random)
            let path = "\(site.lab.paths.datastore)/nodes/\(node)"
            guard let file = [".yaml", ".json"].map({ path + $0 }).first(where: { fileExists($0) }) else { return nil }
            let bytes = try readFile(file)
            try removeFile(file)
            let time = try await site.pause(200...3000, &random)
            if !fileExists(file) { try replaceFile(file, with: bytes) }
            return "\(node), \(time) ms"
        },
    ]
}
