#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What a large cluster costs an agent whose resources are on a real server: a lab of one node, its etcd filled with
# nodes and pods that nobody runs, routes made of pods' addresses. Measures the time from the agent's start to its
# first complete state, its memory, the bytes on the wire, and the time from a pod's address to its map entry.
# Needs root; WGPLANE_BINARY names a release build.
#
#   scripts/bench-datastore.sh [--datastore etcd|kubernetes|both] [--nodes 5000] [--pods 100000] [--created 100] [--json]
set -euo pipefail
cd "$(dirname "$0")/.."

datastores=both nodes=5000 pods=100000 created=100 json=
while [ $# -gt 0 ]; do
	case $1 in
	--datastore) datastores=${2:?etcd, kubernetes or both} && shift 2 ;;
	--nodes) nodes=${2:?how many nodes} && shift 2 ;;
	--pods) pods=${2:?how many pods} && shift 2 ;;
	--created) created=${2:?how many pods to create} && shift 2 ;;
	--json) json=1 && shift ;;
	-h | --help) sed -n '3,9s/^# \{0,1\}//p' "$0" && exit 0 ;;
	*) echo "bench-datastore: \"$1\" is no option; see --help" >&2 && exit 2 ;;
	esac
done
case $datastores in
etcd | kubernetes) ;;
both) datastores="etcd kubernetes" ;;
*) echo "bench-datastore: --datastore \"$datastores\": choose etcd, kubernetes or both" >&2 && exit 2 ;;
esac
scripts/bootstrap.sh
case $datastores in *kubernetes*) scripts/servers/kube-apiserver.sh >/dev/null ;; esac
wgplane=$(realpath "${WGPLANE_BINARY:-.build/release/wgplane}")
[ -x "$wgplane" ] || { echo "bench-datastore: no $wgplane; build it: swift build -c release --product wgplane" >&2 && exit 1; }
lab=benchstore$$
scratch=$(mktemp -d)
finish() {
	"$wgplane" lab down --name $lab --partial >/dev/null 2>&1 || true
	rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM
root=/run/wgplane-lab/$lab
on() { "$wgplane" lab exec --name $lab "$@"; }
received() { on node1 -- cat /sys/class/net/eth0/statistics/rx_bytes; }
sent() { on node1 -- cat /sys/class/net/eth0/statistics/tx_bytes; }
now() { date +%s%N; }
wait_for() { # WHAT SECONDS COMMAND...
	local what=$1 end=$((SECONDS + $2))
	shift 2
	until "$@"; do
		[ $SECONDS -lt $end ] || { echo "bench-datastore: waited in vain until $what" >&2 && exit 1; }
		sleep 0.2
	done
}
agent() { cat "$root/nodes/node1/run/wgplane/agent.lock" 2>/dev/null; }
memory() { awk -v field="$1:" '$1 == field { print $2 }' "/proc/$(agent)/status"; } # KiB
server() { pgrep -f "$root.*$1" | head -n 1; }
routes() { "$wgplane" maps list --run-directory "$root/nodes/node1/run/wgplane" --pins "$root/bpf/node1/wgplane" -o json | jq '[.[] | select(.name == "route_addresses4") | .entries] | add // 0'; }
complete() { [ "$(routes)" -ge "$pods" ]; }

measure() { # DATASTORE
	"$wgplane" lab up --name $lab --nodes 1 --pods 1 --platform eks --datastore "$1" >/dev/null
	# The agent starts later, on all of it.
	local old
	old=$(agent)
	kill "$old"
	wait_for "the agent ends" 20 bash -c "! kill -0 $old 2>/dev/null"
	rm -f "$root/nodes/node1/run/wgplane/state/resources.jsonl"
	on control -- "$wgplane" lab fill --name $lab --nodes "$nodes" --pods "$pods" >/dev/null
	local before_in before_out began ready
	before_in=$(received) before_out=$(sent) began=$(now)
	on node1 -- "$wgplane" agent >"$scratch/agent.log" 2>&1 &
	wait_for "all routes are in the map" 300 complete
	ready=$(now)
	local bytes_in bytes_out first_memory peak
	bytes_in=$(($(received) - before_in)) bytes_out=$(($(sent) - before_out))
	sleep 12 # a pass or two at rest
	first_memory=$(memory VmRSS) peak=$(memory VmHWM)
	on control -- "$wgplane" lab latency --name $lab --count "$created" -o json >"$scratch/latency.json"
	jq -n --arg datastore "$1" --argjson nodes "$nodes" --argjson pods "$pods" \
		--argjson seconds "$(((ready - began) / 1000000))e-3" --argjson rss "$first_memory" --argjson peak "$peak" \
		--argjson after "$(memory VmRSS)" --argjson in "$bytes_in" --argjson out "$bytes_out" \
		--slurpfile latency "$scratch/latency.json" '{
			datastore: $datastore, nodes: $nodes, pods: $pods, secondsToComplete: $seconds,
			residentMiB: ($rss / 1024 | round), residentAfterChangesMiB: ($after / 1024 | round), peakMiB: ($peak / 1024 | round),
			receivedMB: ($in / 1e6 | round), sentMB: ($out / 1e5 | round / 10), created: $latency[0]}'
	"$wgplane" lab down --name $lab >/dev/null
}

for datastore in $datastores; do measure "$datastore" >>"$scratch/results.json"; done
if [ -n "$json" ]; then
	jq -s . "$scratch/results.json"
else
	jq -r '"\(.datastore): \(.nodes) nodes, \(.pods) pods",
		"  first complete state   \(.secondsToComplete) s after the agent'"'"'s start",
		"  resident memory        \(.residentMiB) MiB (\(.residentAfterChangesMiB) after the changes below, at most \(.peakMiB))",
		"  on the wire            \(.receivedMB) MB received, \(.sentMB) MB sent",
		"  pod to map entry       median \(.created.entry.median * 10 | round / 10) ms, p99 \(.created.entry.p99 * 10 | round / 10) ms, most \(.created.entry.maximum * 10 | round / 10) ms (of which the server: median \(.created.write.median * 10 | round / 10) ms)"
	' "$scratch/results.json"
fi
