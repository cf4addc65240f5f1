#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Lets things go wrong at random in a lab of three nodes, under traffic, with every packet between the nodes looked at.
# Needs root; builds what it runs. Everything happens in network namespaces of its own.
#
#   scripts/chaos.sh [--minutes M] [--seed N] [--fault NAME]... [--wireguard KIND] [--attach KIND]
#
#   --minutes M   for so long; 10 unless said
#   --seed N      repeats a run's choices
#   --fault NAME  only this one; `wgplane lab chaos --help` names them all
#
# The last line is P=<count> F=<count> faults=<count> seed=<seed>: P packets in clear, F broken connections, gaps and
# faults that were not mended. Exit status 0 only where both are 0 and nothing has grown.
# WGPLANE_BINARY: a binary that is there, instead of building one.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
-h | --help) sed -n '3,14s/^# \{0,1\}//p' "$0" && exit 0 ;;
esac
[ "$(id -u)" = 0 ] || { echo "chaos: needs root to make network namespaces and load BPF programs; run it as root" >&2 && exit 1; }
binary=${WGPLANE_BINARY:-}
if [ -z "$binary" ]; then
	scripts/bootstrap.sh
	echo "chaos: building (release)" >&2
	log=$(mktemp)
	swift build -c release --product wgplane >"$log" 2>&1 || { grep -E 'error|warning' "$log" | sort -u | head -20 >&2 && exit 1; }
	rm -f "$log"
	binary=$(swift build -c release --show-bin-path)/wgplane
fi
name=chaos$$
trap '"$binary" lab down --name "$name" --partial >/dev/null 2>&1 || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$binary" lab chaos --name "$name" "$@"
