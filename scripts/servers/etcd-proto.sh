#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes Sources/EtcdDatastore/Generated of etcd.proto: needs Debian's protobuf-compiler, and builds
# the two generators from their packages in a folder of its own. Only for who changes etcd.proto.
set -euo pipefail
cd "$(dirname "$0")/../../Sources/EtcdDatastore"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
generator() { # REPOSITORY VERSION PRODUCT
	git -c advice.detachedHead=false clone -q --depth 1 -b "$2" "https://github.com/$1" "$work/$3"
	swift build --package-path "$work/$3" --product "$3" >&2
	echo "$work/$3/.build/debug/$3"
}
messages=$(generator apple/swift-protobuf 1.39.0 protoc-gen-swift)
services=$(generator grpc/grpc-swift-protobuf 2.4.1 protoc-gen-grpc-swift-2)
mkdir -p Generated
protoc --plugin=protoc-gen-swift="$messages" --plugin=protoc-gen-grpc-swift-2="$services" \
	--swift_out=Generated --swift_opt=Visibility=Internal,UseAccessLevelOnImports=true \
	--grpc-swift-2_out=Generated \
	--grpc-swift-2_opt=Visibility=Internal,Server=false,UseAccessLevelOnImports=true etcd.proto
