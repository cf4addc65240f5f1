// SPDX-License-Identifier: Apache-2.0

#if DEBUG || WGPLANE_FUZZ
    @testable import Agent
    import Addresses
    @testable import BPF
    @testable import DataplaneMaps
    @testable import Datastore
    import DesiredState
    @testable import Flows
    import Foundation
    @testable import KubernetesDatastore
    import Model
    @testable import Netlink
    import Steering
    @testable import WireGuard

    /// Something that reads bytes of others: it may refuse them, and never more than that. What is read is held against
    /// what is written again, where it can be.
    public struct FuzzTarget: Sendable {
        public var name: String
        public var run: @Sendable ([UInt8]) -> Void

        /// Ends the process where what was read is not what it should be.
        static func require(_ condition: Bool, _ what: @autoclosure () -> String) {
            if !condition { fatalError(what()) }
        }

        public static let all = netlink + [userspace, manifest, plan, watch] + archives + [packet, text]

        // MARK: Of the kernel

        static let netlink: [FuzzTarget] = [
            FuzzTarget(name: "wireguard-netlink") { bytes in
                var state = DeviceState(name: "x", interface: 0, listeningPort: 0, firewallMark: 0, peers: [:])
                WireGuardMessages.merge(NetlinkAttributes(bytes[...]), into: &state)
                _ = WireGuardMessages.endpoint(bytes[...])
            },
            FuzzTarget(name: "route-netlink") { bytes in
                let message = NetlinkMessage(type: 0, payload: bytes[...])
                _ = RouteSession.link(message)
                _ = RouteSession.route(message)
                for family in AddressFamily.allCases { _ = RouteSession.rule(message, family) }
            },
            FuzzTarget(name: "firewall-netlink") { bytes in
                _ = FirewallInspection.rule(NetlinkAttributes(bytes[...]))
                _ = FirewallInspection.chain(NetlinkMessage(type: 0, payload: bytes[...]))
            },
        ]

        /// A device as wireguard-go tells it.
        static let userspace = FuzzTarget(name: "userspace") { bytes in
            var text = bytes
            guard let state = try? UserspaceProtocol.decode(&text, device: "x") else { return }
            for (key, peer) in state.peers {
                require(PublicKey(key.description) == key, "a key is another when it is read again")
                for cidr in peer.allowedIPs { require(CIDR(cidr.description) == cidr, "\(cidr) is another") }
            }
        }

        // MARK: Of the datastore

        /// A resource's text: what is read is the same when it is written and read again.
        static let manifest = FuzzTarget(name: "manifest") { bytes in
            guard let values = try? ManifestText.parseAll(String(decoding: bytes, as: UTF8.self), origin: "x") else {
                return
            }
            for value in values {
                guard let text = try? ManifestText.yaml(value) else { continue }
                let again = try? ManifestText.parse(text, origin: "x")
                require(again == value, "written as \(text), read as \(String(describing: again))")
            }
        }

        /// A cluster's resources, and what one of its nodes makes of them.
        static let plan = FuzzTarget(name: "plan") { bytes in
            guard let values = try? ManifestText.parseAll(String(decoding: bytes, as: UTF8.self), origin: "x") else {
                return
            }
            let manifests = values.compactMap { try? Manifest($0, origin: "x") }
            let plan = NodePlan(ClusterState(manifests), node: "node1")
            let reverse = NodePlan(ClusterState(manifests.reversed()), node: "node1")
            // Of two of one name the later counts; else no order is another's advantage.
            guard Set(manifests.map(\.key)).count == manifests.count else { return }
            require(
                plan.ipv4 == reverse.ipv4 && plan.ipv6 == reverse.ipv6,
                "the plan depends on the order in which resources came")
        }

        /// A line of an API server's watch.
        static let watch = FuzzTarget(name: "watch") { bytes in
            let decoder = JSONDecoder()
            _ = try? decoder.decode(WatchLine.self, from: Data(bytes))
            _ = try? decoder.decode(ListPage.self, from: Data(bytes))
        }

        // MARK: Of files

        static let archives: [FuzzTarget] = [
            FuzzTarget(name: "archive") { bytes in
                let decoder = JSONDecoder()
                decoder.dateDecodingStrategy = .iso8601
                guard let archive = try? decoder.decode(NodeArchive.self, from: Data(bytes)), let maps = archive.maps,
                    let opened = try? NodeMaps(maps)
                else { return }
                for map in opened.all { _ = try? opened.dump(map.name, names: DumpNames()) }
            },
            FuzzTarget(name: "status") { bytes in _ = try? JSONDecoder().decode(StatusReport.self, from: Data(bytes)) },
            FuzzTarget(name: "guard-state") { bytes in _ = try? JSONDecoder().decode(GuardState.self, from: Data(bytes))
            },
            FuzzTarget(name: "flow-memory") { bytes in
                var cache = FlowCache(.init(active: .seconds(60), idle: .seconds(15)))
                if cache.remember(bytes) { _ = cache.memory }
            },
        ]

        // MARK: Of the wire

        static let packet = FuzzTarget(name: "packet") { bytes in
            for hasEthernet in [true, false] { _ = ParsedPacket(bytes, hasEthernet: hasEthernet) }
        }

        /// Addresses, prefixes, keys and ports as text: what is accepted is the same when it is written and read again.
        static let text = FuzzTarget(name: "text") { bytes in
            let text = String(decoding: bytes, as: UTF8.self)
            if let address = IPAddress(text) { require(IPAddress(address.description) == address, text) }
            if let cidr = CIDR(text) { require(CIDR(cidr.description) == cidr, text) }
            if let key = PublicKey(text) { require(PublicKey(key.description) == key, text) }
            if let endpoint = UserspaceProtocol.endpoint(bytes[...]) {
                require(UserspaceProtocol.endpoint(Array("\(endpoint)".utf8)[...]) == endpoint, text)
            }
        }
    }
#endif
