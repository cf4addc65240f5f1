// SPDX-License-Identifier: Apache-2.0

/// Our settings, fields of DataplaneConfiguration.
extension SettingDescription {
    static let dataplane: [SettingDescription] = [
        SettingDescription(
            "mode", .dataplaneConfiguration, \.mode, words(ModeChoice.self),
            "the data plane; Auto: as bpfEnabled says; Disabled: as if wireguardEnabled and V6 were false",
            text: word),
        SettingDescription(
            "wireguardBackend", .dataplaneConfiguration, \.backend, words(WireGuardBackendChoice.self),
            "the kernel's WireGuard or wireguard-go; Auto: the kernel's where it has one",
            change: "at once; the device is replaced", text: word),
        SettingDescription(
            "wireguardSteeringPath", .dataplaneConfiguration, \.steeringPath, words(SteeringPathChoice.self),
            "eBPF mode: redirect from the pod's device, or through the kernel's forwarding; Auto: Direct while nothing filters forwarded packets",
            text: word),
        SettingDescription(
            "wireguardStrictMode", .dataplaneConfiguration, \.strictMode, words(StrictModeChoice.self),
            "what is to be encrypted and cannot be is dropped; unset: what is in force, at first Disabled",
            text: { $0?.rawValue ?? "" }),
        SettingDescription(
            "wireguardKeyPinning", .dataplaneConfiguration, \.keyPinning, words(KeyPinningChoice.self),
            "which of nodes' published keys are believed; Annotation: those that wgplane.io/pinned-key names; FirstUse: the first that was seen, until `wgplane trust` forgets it; unset: what was said last, at first Disabled",
            text: { $0?.rawValue ?? "" }),
        SettingDescription(
            "wireguardMSSClamp", .dataplaneConfiguration, \.segmentClamp, "Auto, Disabled, 536 to 65535",
            "segment size that TCP SYNs through the tunnel may offer; Auto: the MTU less 40 or 60. eBPF mode",
            text: \.text),
        SettingDescription(
            "wireguardHostExemptPorts", .dataplaneConfiguration, \.hostExemptPorts,
            "at most \(Settings.maximumExemptPorts) of PROTOCOL:PORT or PROTOCOL:FIRST:LAST",
            "what stays in clear between nodes under host encryption. eBPF mode",
            text: { $0.isEmpty ? "none" : $0.map(\.description).joined(separator: ",") }),
        SettingDescription(
            "wireguardFirewallMark", .dataplaneConfiguration, \.firewallMark,
            "a number other than 0, without the bits 0x3000", "mark of WireGuard's own packets",
            text: { "0x" + String($0, radix: 16) }),
        SettingDescription(
            "wireguardInputRule", .dataplaneConfiguration, \.inputRule, words(InputRuleChoice.self),
            "Auto: a chain of the node's firewall that would drop WireGuard's packets gets one rule of ours before",
            text: word),
        SettingDescription(
            "sourceCheck", .dataplaneConfiguration, \.sourceCheck, words(SourceCheckChoice.self),
            "pods send from their own addresses only. eBPF mode", text: word),
        SettingDescription(
            "massDeletion", .dataplaneConfiguration, \.massDeletion, words(MassDeletionChoice.self),
            "Hold: a list from the datastore that is empty, or a tenth of what was there, is kept from taking effect, with an alarm; Apply: it is believed",
            text: word),
    ]

    static let flowExport: [SettingDescription] = [
        SettingDescription(
            "flowExportCollector", .dataplaneConfiguration, \.flowExport.collector,
            "udp://, tcp:// or tls://HOST:PORT", "where records of flows are sent by IPFIX; unset: nowhere",
            text: { $0?.description ?? "" }),
        SettingDescription(
            "flowExportFile", .dataplaneConfiguration, \.flowExport.file, "a path, or - for standard output",
            "file on the node that gets a JSON line for each record; unset: none", text: { $0 }),
        SettingDescription(
            "flowExportFileMegabytes", .dataplaneConfiguration, \.flowExport.fileLimit, "1 to 4096",
            "size after which that file becomes FILE.1, of which five are kept"),
        SettingDescription(
            "flowExportAggregation", .dataplaneConfiguration, \.flowExport.aggregation, words(FlowAggregation.self),
            "what a record tells of: a flow, or all flows between two pods, workloads or nodes", text: word),
        SettingDescription(
            "flowExportActiveTimeout", .dataplaneConfiguration, \.flowExport.activeTimeout, "1s to 65535s",
            "how often a flow that goes on gets a record", text: { "\($0)s" }),
        SettingDescription(
            "flowExportIdleTimeout", .dataplaneConfiguration, \.flowExport.idleTimeout, "1s to 65535s",
            "how long a flow must be silent to get one", text: { "\($0)s" }),
        SettingDescription(
            "flowExportTemplateInterval", .dataplaneConfiguration, \.flowExport.templateInterval, "1s to 65535s",
            "how often templates and the exporter's statistics are sent", text: { "\($0)s" }),
        SettingDescription(
            "flowExportEnterpriseNumber", .dataplaneConfiguration, \.flowExport.enterpriseNumber, "0 to 4294967295",
            "private enterprise number of the fields of ours; 0: without them"),
        SettingDescription(
            "flowExportCAFile", .dataplaneConfiguration, \.flowExport.authorityFile, "a path",
            "tls: PEM file of whom to trust; unset: the system's", text: { $0 }),
        SettingDescription(
            "flowExportCertFile", .dataplaneConfiguration, \.flowExport.certificateFile, "a path",
            "tls: PEM file of the certificate to show; unset: none", text: { $0 }),
        SettingDescription(
            "flowExportKeyFile", .dataplaneConfiguration, \.flowExport.keyFile, "a path",
            "tls: PEM file of its key", text: { $0 }),
    ]

    static let dashboard: [SettingDescription] = [
        SettingDescription(
            "dashboardAddress", .dataplaneConfiguration, \.dashboard.address, "ADDRESS:PORT, or None",
            "where the page and the metrics are served, beside the socket in the run directory; beyond loopback with TLS and a token only",
            text: { $0.isEmpty ? "None" : $0 }),
        SettingDescription(
            "dashboardCertFile", .dataplaneConfiguration, \.dashboard.certificateFile, "a path",
            "PEM file of the server's certificate", text: { $0 }),
        SettingDescription(
            "dashboardKeyFile", .dataplaneConfiguration, \.dashboard.keyFile, "a path", "PEM file of its key",
            text: { $0 }),
        SettingDescription(
            "dashboardTokenFile", .dataplaneConfiguration, \.dashboard.tokenFile, "a path",
            "file of the token that readers must show", text: { $0 }),
    ]
}
