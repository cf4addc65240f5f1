// SPDX-License-Identifier: Apache-2.0

import Agent
import DataplaneMaps
import Foundation
import Lab
import Model
import OrderedCollections
import SystemDescriptors
import Testing
import WireGuard

/// The page in a browser, the metrics in Prometheus, and who may read them.
@Suite("Cluster: dashboard", .serialized, .timeLimit(.minutes(5)))
struct DashboardTests {
    private func inFolder(_ body: (String) async throws -> Void) async throws {
        let folder = "/tmp/wgplane-page-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try await body(folder)
    }

    /// Status line and headers, then the body.
    private func get(_ lab: Lab, _ place: String, _ arguments: String...) async throws -> String {
        try await Cluster.execute(lab, place, ["curl", "-s", "-i", "-m", "5"] + arguments).output
    }

    /// The lab's page on the underlay; returns when it answers.
    private func servePage(_ lab: Lab, _ folder: String) async throws -> String {
        let command = [Cluster.binary, "lab", "page", "--name", lab.spec.name, "--listen", "127.0.0.1:9600"]
        // On the underlay's network, in this mount namespace.
        let arguments = ["nsenter", "--net=\(try lab.place("underlay").network)"] + command
        let launch = ProgramLaunch(arguments, environment: currentEnvironment(), log: "\(folder)/page.log")
        _ = try launch.start()
        try await lab.wait("the page answers") {
            try String(contentsOfFile: "\(folder)/page.log", encoding: .utf8).contains("http://127.0.0.1:9600/")
        }
        return "http://127.0.0.1:9600/"
    }

    @Test("in a browser: peers as `wg` shows them, flows and matrix of live traffic, three widths, both themes")
    func browser() async throws {
        try await inFolder { folder in
            try await Cluster.run(nodes: 3) { lab in
                let url = try await servePage(lab, folder)
                let traffic = try await Traffic.start(lab, interval: 4000)
                let browser = try await Browser(lab, "underlay", folder: folder)
                try await browser.call("Page.enable")
                try await browser.call("Log.enable")
                try await browser.open(url)
                try await lab.wait("the page draws", within: .seconds(30)) {
                    try await Int(browser.evaluate("document.body.dataset.updates || 0")) ?? 0 >= 4
                }
                try await picturesAreSound(browser, folder)
                _ = await traffic.stop()
                // At rest, both tell the same numbers.
                for node in lab.nodeNames() {
                    for device in ["wireguard.cali", "wg-v6.cali"] {
                        try await lab.wait("\(node)'s cards tell what \(device) has counted", within: .seconds(30)) {
                            let state = try await Cluster.onNode(lab, node) {
                                try BackendSelection.state(device: device)?.1
                            }
                            for (key, peer) in try #require(state).peers {
                                let card =
                                    "[...document.querySelectorAll('.card')].find((c) => c.dataset.peer.startsWith('\(node)>') && c.dataset.peer.endsWith('\(key)'))"
                                let received = try await browser.evaluate(
                                    "\(card)?.querySelector('.total-received').dataset.bytes")
                                let sent = try await browser.evaluate(
                                    "\(card)?.querySelector('.total-sent').dataset.bytes")
                                if received != "\(peer.receivedBytes)" || sent != "\(peer.sentBytes)" { return false }
                            }
                            return true
                        }
                    }
                }
                #expect(try await browser.evaluate("document.querySelectorAll('.card').length") == "12")
                #expect(
                    try await browser.evaluate("document.querySelector('[data-cell=\"node1>node2\"]').className")
                        == "encrypted")
                // The filter works by keyboard alone, and everything that can be focused says what it is.
                try await browser.call("Runtime.evaluate", ["expression": "document.getElementById('filter').focus()"])
                try await browser.call("Input.insertText", ["text": "node1-pod1 udp"])
                let shown = try await browser.evaluate(
                    "[...document.querySelectorAll('#flows tbody tr')].every((r) => r.cells[0].textContent === 'udp' && r.textContent.includes('node1-pod1'))"
                )
                #expect(shown == "true")
                let unnamed = try await browser.evaluate(
                    "[...document.querySelectorAll('button, input, [tabindex=\"0\"]')].filter((e) => !(e.ariaLabel || e.getAttribute('aria-labelledby') || e.labels?.length || e.textContent.trim())).length"
                )
                #expect(unnamed == "0")
                // Strict mode, seen; and a lost connection, said.
                try await Cluster.configure(lab, ["dashboardAddress": "None"])
                try await lab.wait("the setting is shown") {
                    try await browser.evaluate(
                        "document.getElementById('settings').textContent.includes('DataplaneConfiguration/default')")
                        == "true"
                }
                try await browser.end()
            }
        }
    }

    /// No sideways scrolling, no text that its background swallows, at three widths in both themes.
    private func picturesAreSound(_ browser: Browser, _ folder: String) async throws {
        for width in [Int64(400), 900, 1600] {
            for isDark in [false, true] {
                try await browser.look(width: width, isDark: isDark)
                let overflow = try await browser.evaluate("document.documentElement.scrollWidth - innerWidth")
                #expect(Int(overflow).map { $0 <= 0 } ?? false, "\(width): \(overflow)")
                #expect(Double(try await browser.evaluate(Self.lowestContrast)) ?? 0 >= 4.5, "\(width) \(isDark)")
                let picture = try await browser.screenshot()
                #expect(picture.starts(with: [0x89, 0x50, 0x4e, 0x47]) && picture.count > 10_000)
                if let keep = ProcessInfo.processInfo.environment["WGPLANE_TEST_PICTURES"] {
                    try picture.write(
                        to: URL(fileURLWithPath: "\(keep)/page-\(width)-\(isDark ? "dark" : "light").png"))
                }
            }
        }
    }

    /// The least contrast of a text with what is behind it (WCAG 2.1, 1.4.3).
    private static let lowestContrast = """
        (() => {
          const channels = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
          const light = (c) => c.slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; })
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          let least = 21;
          for (const node of document.querySelectorAll('body *')) {
            const text = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
            if (!text || !node.checkVisibility() || node.className === 'skip') continue;
            let back = node;
            while (back && (channels(getComputedStyle(back).backgroundColor)[3] ?? 1) === 0) back = back.parentElement;
            const a = light(channels(getComputedStyle(node).color));
            const b = light(channels(getComputedStyle(back || document.body).backgroundColor));
            least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
          }
          return least;
        })()
        """

    @Test("Prometheus scrapes the lab; promtool finds no fault with metrics and rules; Felix's families by their names")
    func prometheus() async throws {
        try await inFolder { folder in
            try await Cluster.run { lab in
                _ = try await LabCheck(lab).run()
                _ = try await servePage(lab, folder)
                for node in lab.nodeNames() {
                    let text = try await Cluster.execute(
                        lab, "underlay", ["curl", "-s", "http://127.0.0.1:9600/nodes/\(node)/metrics"]
                    ).output
                    try Data(text.utf8).write(to: URL(fileURLWithPath: "\(folder)/\(node).txt"))
                    let verdict = try await Collectors.run([
                        "sh", "-c", "promtool check metrics < \(folder)/\(node).txt",
                    ])
                    #expect(verdict.isEmpty, "\(verdict)")
                    let own = try #require(lab.status(node)?.ipv4?.publicKey).description
                    for (name, labels) in [
                        ("wireguard_meta", ["hostname", "iface", "listen_port", "public_key"]),
                        ("wireguard_bytes_rcvd", ["hostname", "peer_endpoint", "peer_key", "public_key"]),
                        ("wireguard_bytes_sent", ["hostname", "peer_endpoint", "peer_key", "public_key"]),
                        (
                            "wireguard_latest_handshake_seconds",
                            ["hostname", "peer_endpoint", "peer_key", "public_key"]
                        ),
                    ] {
                        let samples = text.split(separator: "\n").filter { $0.hasPrefix("\(name){") }
                        #expect(samples.count == 2, "\(name): a device or a peer of each family")
                        for sample in samples {
                            let found = sample.matches(of: /[{,]([a-z_]+)="/).map { String($0.1) }
                            #expect(found.sorted() == labels)
                        }
                        #expect(
                            samples.contains {
                                $0.contains("public_key=\"\(own)\"") && $0.contains("hostname=\"\(node)\"")
                            })
                    }
                    for name in [
                        "wgplane_packets_total", "wgplane_map_entries", "wgplane_peers",
                        "wgplane_datastore_age_seconds",
                        "wgplane_reconcile_duration_seconds_bucket", "wgplane_masquerade_mappings", "wgplane_flows",
                    ] { #expect(text.contains("\n\(name)"), "\(name)") }
                }
                try await documented(lab)
                let rules = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
                    .appendingPathComponent("../../scripts/observe/alerts.yaml").path
                let verdict = try await Collectors.run(["promtool", "check", "rules", rules])
                #expect(verdict.contains("SUCCESS"))
                let configuration = """
                    global: {scrape_interval: 1s}
                    rule_files: [\(rules)]
                    scrape_configs:
                    \(lab.nodeNames().map { "- {job_name: \($0), metrics_path: /nodes/\($0)/metrics, static_configs: [{targets: ['127.0.0.1:9600']}]}" }.joined(separator: "\n"))
                    """
                try Data(configuration.utf8).write(to: URL(fileURLWithPath: "\(folder)/prometheus.yml"))
                _ = try Collectors.start(
                    lab, "underlay",
                    [
                        "prometheus", "--config.file=\(folder)/prometheus.yml", "--storage.tsdb.path=\(folder)/tsdb",
                        "--web.listen-address=127.0.0.1:9091",
                    ], log: "\(folder)/prometheus.log")
                func query(_ expression: String) async throws -> [ManifestValue] {
                    let answer = try await Cluster.execute(
                        lab, "underlay",
                        [
                            "curl", "-s", "-G", "http://127.0.0.1:9091/api/v1/query", "--data-urlencode",
                            "query=\(expression)",
                        ])
                    let value = try JSONDecoder().decode(ManifestValue.self, from: Data(answer.output.utf8))
                    guard case .array(let items)? = value["data"]?["result"] else { return [] }
                    return items
                }
                try await lab.wait("Prometheus has scraped both nodes", within: .seconds(30)) {
                    try await query("up == 1 and on(job) wireguard_meta").count == 2
                }
                #expect(try await query("wireguard_bytes_sent > 0").count == 4)
                #expect(try await query("ALERTS{alertstate=\"firing\"}").isEmpty)
            }
        }
    }

    /// Every family that is served stands in the documentation, with its labels.
    private func documented(_ lab: Lab) async throws {
        let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../Sources/Dashboard/DASHBOARD.md")
        var labels: [String: Set<String>] = [:]
        for row in try String(contentsOf: file, encoding: .utf8).split(separator: "\n") where row.hasPrefix("| `w") {
            let cells = row.split(separator: "|", omittingEmptySubsequences: false).map(String.init)
            let words = Set(cells[2].split(whereSeparator: { " ,".contains($0) }).map(String.init))
            for name in cells[1].matches(of: /`([a-z_]+)`/) { labels[String(name.1)] = words }
        }
        let text = try await Cluster.execute(
            lab, "node1", ["curl", "-s", "--unix-socket", "/run/wgplane/http.sock", "http://node/metrics"]
        ).output
        let names = text.split(separator: "\n").filter { $0.hasPrefix("# TYPE ") }.map {
            String($0.split(separator: " ")[2])
        }
        #expect(names.count > 25)
        for name in names {
            let known = try #require(labels[name], "\(name) is not documented")
            let found = text.split(separator: "\n").filter {
                $0.hasPrefix("\(name){") || $0.hasPrefix("\(name)_bucket{")
            }
            .flatMap { $0.matches(of: /[{,]([a-z_]+)="/).map { String($0.1) } }
            // Families with one line may have labels that not all of the line's have.
            #expect(Set(found).isSubset(of: known) || known.contains("same"), "\(name): \(Set(found)), \(known)")
        }
    }

    @Test("who may read: loopback by its names only; beyond it, TLS and a token; a port that is taken is told of")
    func access() async throws {
        try await inFolder { folder in
            _ = try await Collectors.run([
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-days", "2", "-subj", "/CN=node1", "-addext", "subjectAltName=IP:10.0.0.1", "-keyout",
                "\(folder)/key.pem", "-out", "\(folder)/cert.pem",
            ])
            try Data("0123456789abcdef0123456789abcdef\n".utf8).write(to: URL(fileURLWithPath: "\(folder)/token"))
            try await Cluster.run { lab in
                let opened = try await Cluster.wgplane(lab, "node1", "open")
                #expect(opened.output == "http://127.0.0.1:9586/\n")
                let url = "http://127.0.0.1:9586/"
                try await lab.wait("the page answers") { try await get(lab, "node1", url).contains("200 OK") }
                let page = try await get(lab, "node1", url)
                #expect(page.contains("default-src 'none'") && page.contains("<title>wgplane</title>"))
                #expect(try await get(lab, "node1", "-H", "Host: rebound.example", url).contains("421 "))
                #expect(try await get(lab, "node1", "-X", "POST", url + "api/v1/state").contains("404 "))
                #expect(try await get(lab, "node2", "http://10.0.0.1:9586/").isEmpty, "not beyond loopback")
                #expect(
                    try await get(lab, "node1", "-H", "X-Long: \(String(repeating: "x", count: 40_000))", url)
                        .contains("200 OK") == false)
                let socket = try await Cluster.wgplane(lab, "node1", "open", "--socket").output
                    .trimmingCharacters(in: .whitespacesAndNewlines)
                let mode = try await Cluster.execute(lab, "node1", ["stat", "-c", "%a", socket]).output
                #expect(mode == "600\n")
                // As many connections as there may be that say nothing: others there wait, the socket's are served, the
                // agent works, and when these have gone all is well.
                do {
                    let node = try lab.place("node1")
                    let silent = try await Task.detachedThread {
                        try node.run {
                            try (0..<140).map { _ in
                                let socket = try InternetSocket(.tcp, isIPv6: false, timeoutMilliseconds: 3000)
                                try socket.connect(SocketAddress([127, 0, 0, 1], port: 9586))
                                return socket
                            }
                        }
                    }
                    #expect(try await get(lab, "node1", "-m", "1", url).isEmpty)
                    #expect(try await get(lab, "node1", "--unix-socket", socket, "http://node/").contains("200 OK"))
                    let pod = try await lab.addPod(
                        "late", node: 1, addresses: [LabAddresses.pod(1, 30, .ipv4)], device: "cali1late")
                    try await lab.wait("the agent knows of pods that come") {
                        try lab.maps("node1").locals.entries()[pod.addresses[0]] != nil
                    }
                    #expect(silent.count == 140)
                }
                try await lab.wait("the page answers again") { try await get(lab, "node1", url).contains("200 OK") }
                // Without token and certificate it stays on loopback.
                try await Cluster.configure(lab, ["dashboardAddress": "10.0.0.1:9586"], node: "node1")
                try await lab.wait("status names the field") {
                    lab.status("node1")?.problems.contains { $0.field == "spec.dashboardAddress" } ?? false
                }
                #expect(try await get(lab, "node2", "http://10.0.0.1:9586/").isEmpty)
                try await Cluster.configure(
                    lab,
                    [
                        "dashboardAddress": "10.0.0.1:9586", "dashboardCertFile": .string("\(folder)/cert.pem"),
                        "dashboardKeyFile": .string("\(folder)/key.pem"),
                        "dashboardTokenFile": .string("\(folder)/token"),
                    ], node: "node1")
                let secure = "https://10.0.0.1:9586/"
                let trust = ["--cacert", "\(folder)/cert.pem"]
                try await lab.wait("it is served to others") {
                    try await get(lab, "node2", trust[0], trust[1], secure + "metrics").contains("401 ")
                }
                let bearer = "Authorization: Bearer 0123456789abcdef0123456789abcdef"
                #expect(
                    try await get(lab, "node2", trust[0], trust[1], "-H", bearer, secure + "metrics").contains("200 OK")
                )
                #expect(try await get(lab, "node2", trust[0], trust[1], "-H", bearer + "0", secure).contains("401 "))
                let form = try await get(lab, "node2", trust[0], trust[1], "-H", "Accept: text/html", secure)
                #expect(form.contains("401 ") && form.contains("<form"))
                let login = try await get(
                    lab, "node2", trust[0], trust[1], "-d", "token=0123456789abcdef0123456789abcdef", secure + "login")
                #expect(login.contains("303 ") && login.contains("HttpOnly") && login.contains("Secure"))
                let cookie = "Cookie: wgplane_token=0123456789abcdef0123456789abcdef"
                #expect(try await get(lab, "node2", trust[0], trust[1], "-H", cookie, secure).contains("200 OK"))
                // A port that somebody has.
                try await Cluster.patch(
                    lab, .dataplaneConfiguration, "node.node1",
                    .object(["spec": .object(["dashboardAddress": "127.0.0.1:9700"])]))
                try await lab.wait("it has moved") {
                    try await get(lab, "node1", "-k", "-H", bearer, "https://127.0.0.1:9700/").contains("200 OK")
                }
                _ = try Collectors.start(lab, "node1", ["nc", "-k", "-l", "127.0.0.1", "9701"], log: "/dev/null")
                try await lab.wait("the port is taken") {
                    try await Cluster.execute(lab, "node1", ["ss", "-ltn"]).output.contains(":9701")
                }
                try await Cluster.patch(
                    lab, .dataplaneConfiguration, "node.node1",
                    .object(["spec": .object(["dashboardAddress": "127.0.0.1:9701"])]))
                try await lab.wait("status says so") {
                    lab.status("node1")?.problems.contains {
                        $0.field == "spec.dashboardAddress" && $0.value == "127.0.0.1:9701"
                    } ?? false
                }
            }
        }
    }
}
