// SPDX-License-Identifier: Apache-2.0

internal import BPF
internal import DataplaneMaps
internal import Datastore
internal import DesiredState
internal import FlowExport
internal import Logging
internal import Model
internal import Netlink
internal import Steering
internal import SystemDescriptors
internal import WireGuard

/// What the agent tells of itself: problems in the log once, all of it in the status file.
extension NodeController {
    /// Until the datastore has told all: what an earlier agent has told stays, for the next one to read.
    func reportWaiting() async {
        let state = datastoreState == "unavailable" ? datastoreState : "waiting"
        guard var report = earlier else {
            return await self.report(problems: [], plan: nil, datastoreState: state)
        }
        report.process = processIdentifier()
        report.datastoreState = state
        guard report != lastReport else { return }
        let waiting = report
        if (try? await statusWriter.write(waiting)) != nil { lastReport = waiting }
    }

    /// What the node's services cannot do; the data plane goes on without them.
    func serviceProblems() -> [Problem] {
        var problems = audit.result.problems
        if let dashboardFailure, let address = inForce?.dashboard.address, !address.isEmpty {
            problems.append(
                Problem(
                    .warning, resource: "DataplaneConfiguration", field: "spec.dashboardAddress", value: address,
                    message: "is not served (\(dashboardFailure))",
                    remedy: "it is tried again; free the port, mend the files, or set another address or None"))
        }
        let export = flows.exporter.state
        if export.state == "failing" {
            problems.append(
                Problem(
                    .warning, resource: "DataplaneConfiguration", field: "spec.flowExportCollector",
                    value: export.collector, message: "takes no flow records (\(export.reason)); they wait",
                    remedy: "it is tried again; is the collector up, and may this node reach it?"))
        }
        if !export.fileReason.isEmpty {
            problems.append(
                Problem(
                    .warning, resource: "DataplaneConfiguration", field: "spec.flowExportFile",
                    value: inForce?.flowExport.file ?? "", message: "takes no flow records (\(export.fileReason))",
                    remedy: "make room, or set another path"))
        }
        return problems
    }

    func report(problems: [Problem], plan: NodePlan?, datastoreState word: String? = nil) async {
        let distinct = Set(problems)
        for problem in distinct.subtracting(lastProblems).sorted() {
            logger.log(
                level: problem.severity == .error ? .error : .warning, "problem",
                metadata: ["problem": "\(problem.description)"])
        }
        for problem in lastProblems.subtracting(distinct).sorted() {
            logger.info("problem is gone", metadata: ["resource": "\(problem.resource)", "field": "\(problem.field)"])
        }
        lastProblems = distinct
        let path = families.isEmpty || mode.mode != .ebpf ? nil : plan.map(path)
        var report = StatusReport(
            node: options.node, process: processIdentifier(),
            mode: mode.mode.rawValue, modeReason: mode.reason,
            datastore: datastore.location, datastoreState: word ?? (inventory.stale.isEmpty ? datastoreState : "stale"),
            routeSource: plan?.routeSource.rawValue ?? "", backend: backend?.kind.rawValue ?? "",
            attachment: steering?.mechanism.rawValue ?? "", steeringPath: path?.path.rawValue ?? "",
            steeringPathReason: path?.reason ?? "", attachments: attachments(),
            problems: distinct.sorted())
        report.datastoreArgument = options.datastoreArgument
        if mode.mode == .ebpf, !firewall.exceptions.isEmpty || firewall.hasRules {
            report.firewall = firewall.kind?.rawValue ?? ""
            report.firewallExceptions = firewall.exceptions
        }
        if mode.mode == .route, let routing {
            report.routeTable = routing.table
            report.firewall = routing.firewallKind
            report.firewallExceptions = routing.exceptions
        }
        report.work = StatusReport.Work(
            netlinkChanges: NetlinkWork.changes, mapWrites: BPFWork.changes, peerChanges: peerChanges)
        if let plan {
            report.settings = plan.effective.listing
            report.strictMode = isStrict(plan)
            report.hostEncryption = !families.isEmpty && plan.encryptsHosts
            for (family, state) in families { report[family] = familyReport(family, state, plan[family]) }
        }
        guard report != lastReport else { return }
        let latest = report
        do {
            isInPass = false
            try await statusWriter.write(latest)
            lastReport = latest
        } catch {
            logger.error("status cannot be written", metadata: ["error": "\(error)"])
        }
    }

    func familyReport(_ family: AddressFamily, _ state: FamilyState, _ plan: FamilyPlan) -> StatusReport.Family {
        var peers = plan.peers.values.map { peer in
            StatusReport.Peer(
                node: peer.node, publicKey: peer.publicKey, endpoint: peer.endpoint?.description ?? "",
                state: state.peers.readiness(peer.node, planned: peer.publicKey).rawValue,
                action: action(for: peer.node, state, plan).name,
                carrier: state.peers.carrier(of: peer.node).flatMap { $0 == peer.publicKey ? nil : $0 })
        }
        for (key, retiring) in state.peers.retiring {
            peers.append(
                StatusReport.Peer(
                    node: retiring.node, publicKey: key, endpoint: retiring.endpoint?.description ?? "",
                    state: PeerTable.Readiness.retiring.rawValue, action: DestinationAction.draining.name))
        }
        peers.sort { ($0.node, $0.publicKey) < ($1.node, $1.publicKey) }
        return StatusReport.Family(
            phase: state.drainingUntil == nil ? "on" : "draining", device: state.deviceName,
            interface: state.device?.interface ?? 0, publicKey: state.device?.publicKey, address: state.address,
            listeningPort: ports(state).now, mtu: state.mtu, peers: peers,
            unencryptedNodes: plan.unencrypted.sorted())
    }

    /// Hooks that are in place.
    private func attachments() -> [StatusReport.Attachment] {
        ((steering?.attachedPoints ?? []) + lock.attachedPoints)
            .map { StatusReport.Attachment(hook: $0.hook.name, device: $0.device) }
            .sorted { ($0.device, $0.hook) < ($1.device, $1.hook) }
    }
}
