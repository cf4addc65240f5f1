// swift-tools-version: 6.2
// SPDX-License-Identifier: Apache-2.0
//
// This file is the picture of the product's structure: a target may depend only
// on targets that stand below it here.

import PackageDescription

let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
]
/// For the modules that touch memory by hand: every unsafe expression is marked.
let memorySafe: [SwiftSetting] = strict + [.strictMemorySafety()]

let log = Target.Dependency.product(name: "Logging", package: "swift-log")
let arguments = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")
let lifecycle = Target.Dependency.product(name: "ServiceLifecycle", package: "swift-service-lifecycle")
let signals = Target.Dependency.product(name: "UnixSignals", package: "swift-service-lifecycle")
let algorithms = Target.Dependency.product(name: "AsyncAlgorithms", package: "swift-async-algorithms")
let collections = Target.Dependency.product(name: "OrderedCollections", package: "swift-collections")
let deque = Target.Dependency.product(name: "DequeModule", package: "swift-collections")
let yaml = Target.Dependency.product(name: "Yams", package: "Yams")
let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
let table = Target.Dependency.product(name: "TextTable", package: "TextTable")
let nio = Target.Dependency.product(name: "NIOCore", package: "swift-nio")
let nioHTTP = Target.Dependency.product(name: "NIOHTTP1", package: "swift-nio")
let sockets = Target.Dependency.product(name: "NIOPosix", package: "swift-nio")
let tls = Target.Dependency.product(name: "NIOSSL", package: "swift-nio-ssl")
let handshakes = Target.Dependency.product(name: "NIOTLS", package: "swift-nio")
let http = Target.Dependency.product(name: "Hummingbird", package: "hummingbird")
let httpCore = Target.Dependency.product(name: "HummingbirdCore", package: "hummingbird")
let https = Target.Dependency.product(name: "HummingbirdTLS", package: "hummingbird")
let grpc = Target.Dependency.product(name: "GRPCCore", package: "grpc-swift-2")
let grpcTransport = Target.Dependency.product(name: "GRPCNIOTransportHTTP2Posix", package: "grpc-swift-nio-transport")
let grpcProtobuf = Target.Dependency.product(name: "GRPCProtobuf", package: "grpc-swift-protobuf")
let protobuf = Target.Dependency.product(name: "SwiftProtobuf", package: "swift-protobuf")
let certificates = Target.Dependency.product(name: "X509", package: "swift-certificates")
let asn1 = Target.Dependency.product(name: "SwiftASN1", package: "swift-asn1")
let crypto = Target.Dependency.product(name: "Crypto", package: "swift-crypto")
let subprocess = Target.Dependency.product(name: "Subprocess", package: "swift-subprocess")
let client = Target.Dependency.product(name: "AsyncHTTPClient", package: "async-http-client")

let package = Package(
    name: "wgplane",
    products: [
        .executable(name: "wgplane", targets: ["wgplane"]),
        // WireGuard devices and netlink for other programs; Addresses is what both speak of.
        .library(name: "WireGuard", targets: ["WireGuard", "Addresses"]),
        .library(name: "Netlink", targets: ["Netlink", "Addresses"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-async-algorithms", from: "1.1.4"),
        .package(url: "https://github.com/apple/swift-collections", from: "1.6.0"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
        .package(url: "https://github.com/ordo-one/TextTable", from: "0.0.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.2"),
        .package(url: "https://github.com/grpc/grpc-swift-2", from: "2.4.3"),
        .package(url: "https://github.com/grpc/grpc-swift-nio-transport", from: "2.9.2"),
        .package(url: "https://github.com/grpc/grpc-swift-protobuf", from: "2.4.1"),
        .package(url: "https://github.com/apple/swift-protobuf", from: "1.39.0"),
        .package(url: "https://github.com/apple/swift-certificates", from: "1.21.1"),
        .package(url: "https://github.com/apple/swift-asn1", from: "1.7.4"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
    ],
    targets: [
        .executableTarget(
            name: "wgplane",
            dependencies: [
                "Chaos", "Lab", "Agent", "Dashboard", "KubernetesDatastore", "EtcdDatastore", "Datastore",
                "DesiredState",
                "Flows", "DataplaneMaps", "WireGuard",
                "BPF", "SystemDescriptors", "Model", arguments,
                table, collections, lifecycle, signals, log,
            ], swiftSettings: strict),
        // Measures the others; no part of the product (scripts/bench.sh).
        .executableTarget(
            name: "wgplane-bench",
            dependencies: [
                "Lab", "Agent", "Datastore", "DesiredState", "Steering", "WireGuard", "Flows", "DataplaneMaps",
                "BPFObjects", "BPF", "Netlink", "SystemDescriptors", "Model", "CBenchmark", arguments, collections, log,
            ], path: "Sources/Benchmarks", swiftSettings: strict, plugins: ["BPFBuildPlugin"]),
        .target(
            name: "Chaos",
            dependencies: [
                "Lab", "Agent", "Datastore", "WireGuard", "DataplaneMaps", "BPF", "Netlink", "SystemDescriptors",
                "Model",
                collections,
            ],
            swiftSettings: strict),
        .target(
            name: "Lab",
            dependencies: [
                "Agent", "Dashboard", "EtcdDatastore", "Datastore", "Flows", "Steering", "DataplaneMaps", "Netlink",
                "SystemDescriptors", "Model", client, nio, nioHTTP, certificates, asn1, crypto, lifecycle, collections,
                log, system,
            ],
            swiftSettings: strict),
        .target(
            name: "Agent",
            dependencies: [
                "Dashboard", "FlowExport", "Datastore", "DesiredState", "Steering", "Flows", "WireGuard",
                "DataplaneMaps", "BPF", "Netlink",
                "SystemDescriptors", "Model", crypto, lifecycle, algorithms, collections, log,
            ],
            exclude: ["SECURITY.md"],
            swiftSettings: strict),

        .target(
            name: "Dashboard",
            dependencies: ["Flows", "Model", http, httpCore, https, tls, nio, log],
            exclude: ["DASHBOARD.md"],
            resources: [
                .embedInCode("Page/page.html"), .embedInCode("Page/page.css"), .embedInCode("Page/page.js"),
            ],
            swiftSettings: strict),
        .target(
            name: "FlowExport",
            dependencies: ["Flows", "SystemDescriptors", "Model", nio, sockets, tls, handshakes, deque, log],
            exclude: ["EXPORT.md"],
            swiftSettings: strict),

        .target(
            name: "KubernetesDatastore",
            dependencies: [
                "Datastore", "SystemDescriptors", "Model", client, subprocess, tls, nio, nioHTTP, sockets,
                collections, system, log,
            ],
            swiftSettings: strict),
        .target(
            name: "EtcdDatastore",
            dependencies: [
                "Datastore", "SystemDescriptors", "Model", grpc, grpcTransport, grpcProtobuf, protobuf, nio, log,
            ],
            exclude: ["etcd.proto"], swiftSettings: strict),
        .target(
            name: "Datastore", dependencies: ["Model", "SystemDescriptors", yaml, collections, log],
            exclude: ["DATASTORES.md"], swiftSettings: strict),
        .target(name: "DesiredState", dependencies: ["Model", collections], swiftSettings: strict),
        .target(
            name: "Steering",
            dependencies: ["DataplaneMaps", "BPF", "Netlink", "Reconciler", "SystemDescriptors", "Model", log],
            exclude: ["MODES.md"],
            swiftSettings: strict),
        .target(name: "Flows", dependencies: ["DataplaneMaps", "BPF", "Model"], swiftSettings: strict),
        .target(
            name: "WireGuard",
            dependencies: ["Netlink", "SystemDescriptors", "Addresses", "CLinuxUAPI", system],
            swiftSettings: strict),
        .target(name: "Reconciler", swiftSettings: strict),
        .target(
            name: "DataplaneMaps", dependencies: ["CDataplaneABI", "BPFObjects", "BPF", "SystemDescriptors", "Model"],
            swiftSettings: memorySafe),

        .target(name: "BPFObjects", plugins: ["BPFBuildPlugin"]),
        .target(
            name: "BPF", dependencies: ["CLibbpf", "CLinuxUAPI", "SystemDescriptors", log], swiftSettings: memorySafe),
        .target(
            name: "Netlink", dependencies: ["SystemDescriptors", "Addresses", "CLinuxUAPI", system],
            swiftSettings: memorySafe),

        .target(name: "SystemDescriptors", dependencies: ["CLinuxUAPI", "CSodium", system], swiftSettings: memorySafe),
        .target(
            name: "Model", dependencies: ["Addresses", collections], exclude: ["SETTINGS.md"], swiftSettings: strict),
        .target(name: "Addresses", swiftSettings: strict),

        .target(name: "CDataplaneABI", path: "bpf", sources: ["abi.c"], publicHeadersPath: "include"),
        .target(name: "CLinuxUAPI"),
        .target(name: "CBenchmark"),
        .systemLibrary(name: "CLibbpf", pkgConfig: "libbpf", providers: [.apt(["libbpf-dev", "libelf-dev"])]),
        .systemLibrary(name: "CSodium", pkgConfig: "libsodium", providers: [.apt(["libsodium-dev"])]),
        .plugin(name: "BPFBuildPlugin", capability: .buildTool(), path: "Sources/BPFBuildPlugin"),

        .testTarget(
            name: "UnitTests",
            dependencies: [
                "Agent", "Lab", "KubernetesDatastore", "EtcdDatastore", "Datastore", "DesiredState", "Reconciler",
                "Steering", "Flows", "WireGuard", "Netlink",
                "DataplaneMaps", "BPF", "CDataplaneABI", "SystemDescriptors", "Model", "FuzzTargets", collections, log,
            ], exclude: ["Platforms", "Corpora"], swiftSettings: strict),
        // What reads others' bytes, for the unit tests and for libFuzzer (scripts/fuzz.sh).
        .target(
            name: "FuzzTargets",
            dependencies: [
                "Agent", "KubernetesDatastore", "Datastore", "DesiredState", "Steering", "Flows", "WireGuard",
                "Netlink",
                "DataplaneMaps", "BPF", "Addresses", "Model",
            ], path: "Tests/FuzzTargets", swiftSettings: strict),
        .testTarget(
            name: "DatastoreTests",
            dependencies: [
                "Lab", "KubernetesDatastore", "EtcdDatastore", "Datastore", "DesiredState", "SystemDescriptors",
                "Model", nio, sockets, collections, log,
            ], swiftSettings: strict),
        .target(name: "AllocationCounter", path: "Tests/AllocationCounter"),
        .target(
            name: "CTestSupport", dependencies: ["CLinuxUAPI"], path: "Tests/CTestSupport",
            linkerSettings: [.linkedLibrary("bpf")]),
        .testTarget(
            name: "ProgramTests",
            dependencies: [
                "Lab", "DesiredState", "Steering", "Flows", "DataplaneMaps", "BPF", "Netlink", "SystemDescriptors",
                "Model",
                "AllocationCounter", "CTestSupport", collections, system,
            ], exclude: ["bounds.json"], swiftSettings: strict),
        .testTarget(
            name: "ClusterTests",
            dependencies: [
                "wgplane", "Chaos", "Lab", "Agent", "Flows", "DataplaneMaps", "BPF", "Datastore", "Netlink",
                "WireGuard",
                "SystemDescriptors", "Model", "Addresses", "CTestSupport", collections, log,
            ], swiftSettings: strict),
    ]
)

// With libFuzzer's own main, which no other build has.
if Context.environment["WGPLANE_FUZZ"] != nil {
    package.targets.append(
        .executableTarget(
            name: "wgplane-fuzz", dependencies: ["FuzzTargets"], path: "Tests/Fuzzer", swiftSettings: strict))
}
