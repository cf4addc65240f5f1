// SPDX-License-Identifier: Apache-2.0

/// What the agent tells others: flow records, its page, its metrics.
extension Settings {
    mutating func readFlowExport(_ spec: inout FieldReader) {
        if let text = spec.string("flowExportCollector") {
            if text.isEmpty {
                flowExport.collector = nil
            } else if let collector = CollectorAddress(text) {
                flowExport.collector = collector
            } else {
                spec.report(
                    "flowExportCollector", value: text, "is no address of a collector",
                    remedy:
                        "write it like udp://192.0.2.9:4739, tcp://[2001:db8::9]:4739 or tls://collector.example:4740"
                )
            }
        }
        if let path = path("flowExportFile", orDash: true, &spec) { flowExport.file = path }
        if let count = spec.integer("flowExportFileMegabytes", in: 1...4096) { flowExport.fileLimit = UInt32(count) }
        if let choice: FlowAggregation = spec.choice("flowExportAggregation") { flowExport.aggregation = choice }
        if let time = atLeastOne("flowExportActiveTimeout", &spec) { flowExport.activeTimeout = time }
        if let time = atLeastOne("flowExportIdleTimeout", &spec) { flowExport.idleTimeout = time }
        if let time = atLeastOne("flowExportTemplateInterval", &spec) { flowExport.templateInterval = time }
        if let number = spec.integer("flowExportEnterpriseNumber", in: 0...Int64(UInt32.max)) {
            flowExport.enterpriseNumber = UInt32(number)
        }
        if let path = path("flowExportCAFile", &spec) { flowExport.authorityFile = path }
        if let path = path("flowExportCertFile", &spec) { flowExport.certificateFile = path }
        if let path = path("flowExportKeyFile", &spec) { flowExport.keyFile = path }
        if flowExport.aggregation != .flow, flowExport.collector != nil, flowExport.enterpriseNumber == 0 {
            spec.report(
                "flowExportAggregation", value: flowExport.aggregation.rawValue,
                "needs fields of ours, which flowExportEnterpriseNumber 0 switches off",
                remedy: "set flowExportEnterpriseNumber, or flowExportAggregation to Flow")
            flowExport.aggregation = .flow
        }
        if flowExport.certificateFile.isEmpty != flowExport.keyFile.isEmpty {
            let (name, other) =
                flowExport.keyFile.isEmpty
                ? ("flowExportCertFile", "flowExportKeyFile") : ("flowExportKeyFile", "flowExportCertFile")
            spec.report(
                name, value: flowExport.certificateFile + flowExport.keyFile, "stands without \(other)",
                remedy: "set both in one resource, or neither")
            (flowExport.certificateFile, flowExport.keyFile) = ("", "")
        }
    }

    mutating func readDashboard(_ spec: inout FieldReader) {
        if let text = spec.string("dashboardAddress") {
            if text.isEmpty || text == "None" {
                dashboard.address = ""
            } else if let (host, port) = HostPort.split(text), port ?? 0 != 0, IPAddress(host) != nil {
                dashboard.address = text
            } else {
                spec.report(
                    "dashboardAddress", value: text, "is no address with a port",
                    remedy: "write it like 127.0.0.1:9586 or [::1]:9586, or None")
            }
        }
        if let path = path("dashboardCertFile", &spec) { dashboard.certificateFile = path }
        if let path = path("dashboardKeyFile", &spec) { dashboard.keyFile = path }
        if let path = path("dashboardTokenFile", &spec) { dashboard.tokenFile = path }
        let files = [dashboard.certificateFile, dashboard.keyFile, dashboard.tokenFile]
        if !dashboard.isLoopback, files.contains("") {
            spec.report(
                "dashboardAddress", value: dashboard.address, "is open to others, without TLS or without a token",
                remedy: "set dashboardCertFile, dashboardKeyFile and dashboardTokenFile, or use 127.0.0.1:9586")
            dashboard.address = DashboardSettings.defaultAddress
        }
    }

    /// A duration of at least a second.
    private func atLeastOne(_ name: String, _ spec: inout FieldReader) -> UInt16? {
        guard let seconds = spec.seconds(name) else { return nil }
        if seconds == 0 {
            spec.report(name, value: "0s", "is too short", remedy: "use 1s or more")
            return nil
        }
        return seconds
    }

    private func path(_ name: String, orDash: Bool = false, _ spec: inout FieldReader) -> String? {
        guard let text = spec.string(name) else { return nil }
        if text.isEmpty || text.hasPrefix("/") || orDash && text == "-" { return text }
        spec.report(
            name, value: text, "is no absolute path",
            remedy: "begin it with /\(orDash ? ", or use - for standard output" : "")")
        return nil
    }
}
