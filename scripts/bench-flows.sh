#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What many live flows cost: makes them in a lab, and measures `wgplane flows`, the agent's cycle with
# an export to nfcapd, and what is lost. Needs root; WGPLANE_BINARY names a release build.
#
#   scripts/bench-flows.sh [--flows 100000] [--json]
set -euo pipefail
cd "$(dirname "$0")/.."

flows=100000 json=
while [ $# -gt 0 ]; do
	case $1 in
	--flows) flows=${2:?how many flows} && shift 2 ;;
	--json) json=1 && shift ;;
	-h | --help) sed -n '3,6s/^# \{0,1\}//p' "$0" && exit 0 ;;
	*) echo "bench-flows: \"$1\" is no option; see --help" >&2 && exit 2 ;;
	esac
done
scripts/bootstrap.sh
wgplane=$(realpath "${WGPLANE_BINARY:-.build/release/wgplane}")
[ -x "$wgplane" ] || { echo "bench-flows: no $wgplane; build it: swift build -c release --product wgplane" >&2 && exit 1; }
lab=bench$$
scratch=$(mktemp -d)
finish() {
	"$wgplane" lab down --name $lab >/dev/null 2>&1 || true
	rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM
on() { "$wgplane" lab exec --name $lab "$@"; }
metric() { on node1 -- curl -s --unix-socket /run/wgplane/http.sock http://node/metrics | sed -n "s/^$1 //p"; }
wait_for() { # WHAT SECONDS COMMAND...
	local what=$1 end=$((SECONDS + $2))
	shift 2
	until "$@"; do
		[ $SECONDS -lt $end ] || { echo "bench-flows: waited in vain until $what" >&2 && exit 1; }
		sleep 0.2
	done
}

"$wgplane" lab up --name $lab --nodes 2 --pods 1 --dual >/dev/null
eval "$("$wgplane" lab env --name $lab)"
mkdir "$scratch/nfcapd"
on underlay -- nfcapd -b 10.0.0.254 -p 4739 -B 33554432 -w "$scratch/nfcapd" -t 3600 >"$scratch/nfcapd.log" 2>&1 &
listening() { on underlay -- ss -lun | grep -q :4739; }
wait_for "nfcapd listens" 10 listening

# One datagram a flow, half of them IPv6; bash has sockets of its own.
make() { # ADDRESS COUNT
	on node1-pod1 -- bash -c 'n=0; while ((n < $2)); do echo x >"/dev/udp/$1/$((10000 + n++ % 50000))"; done' - "$1" "$2" 2>/dev/null
}
make 10.48.2.1 $((flows / 2)) &
make fd48:0:0:2::1 $((flows / 2)) &
wait %2 %3
count() { on node1 -- "$wgplane" flows -o json --proto udp | jq length; }

time_of() { # COMMAND...: seconds, best of five
	local best=
	for _ in 1 2 3 4 5; do
		local started ended
		started=$(date +%s%N)
		"$@" >/dev/null
		ended=$(date +%s%N)
		best=$(printf '%s\n%s\n' "${best:-9e18}" $((ended - started)) | sort -g | head -1)
	done
	awk "BEGIN { printf \"%.3f\", $best / 1e9 }"
}
present=$(count)
table=$(time_of on node1 -- "$wgplane" flows)
top=$(time_of on node1 -- "$wgplane" flows --limit 20)
lines=$(time_of on node1 -- "$wgplane" flows -o json)

cpu() { awk '{print $14 + $15}' "/proc/$(cat "/run/wgplane-lab/$lab/nodes/node1/run/wgplane/agent.lock")/stat"; }
first=$(metric wgplane_flow_cycles_total)
before=$(cpu) cycles_from=$(date +%s%N)
printf '%s\n' 'apiVersion: wgplane.io/v1' 'kind: DataplaneConfiguration' 'metadata: {name: node.node1}' \
	'spec: {flowExportCollector: "udp://10.0.0.254:4739", flowExportActiveTimeout: 30s, flowExportIdleTimeout: 10s}' |
	"$wgplane" apply -f - >/dev/null
# The agent is not asked meanwhile, which would cost it: the collector's side says when no more comes.
datagrams=0 quiet=$SECONDS
all_out() {
	local now
	now=$(on underlay -- awk '/^Udp:/ { n = $2 } END { print n }' /proc/net/snmp)
	if [ "$now" != "$datagrams" ]; then datagrams=$now quiet=$SECONDS cycles_to=$(date +%s%N); fi
	[ "$datagrams" -gt 0 ] && [ $((SECONDS - quiet)) -ge 8 ]
}
wait_for "all records are out" 90 all_out
after=$(cpu)
cycles=$(metric wgplane_flow_cycles_total)
exported=$(metric 'wgplane_export_records_total{to="collector"}')
lost=$(metric 'wgplane_export_lost_records_total{to="collector"}')
ticks=$(getconf CLK_TCK)
spent=$(awk "BEGIN { printf \"%.2f\", ($after - $before) / $ticks }")
elapsed=$(awk "BEGIN { printf \"%.1f\", ($cycles_to - $cycles_from) / 1e9 }")
cycle=$(metric wgplane_flow_cycle_seconds)
collector=$(pgrep -f "nfcapd -b 10.0.0.254 -p 4739 -B 33554432 -w $scratch" | tail -1)
kill "$collector"
wait_for "nfcapd ends" 10 bash -c "! kill -0 $collector 2>/dev/null"
received=$(nfdump -R "$scratch/nfcapd" -q -N -o 'fmt:%pr' 'proto udp' | grep -c .)

result=$(jq -n --argjson flows "$present" --argjson table "$table" --argjson top "$top" --argjson json "$lines" \
	--argjson exported "$exported" --argjson received "$received" --argjson lost "$lost" --argjson cpu "$spent" \
	--argjson elapsed "$elapsed" --argjson cycle "$cycle" --argjson cycles $((cycles - first)) \
	'{schema: 1, flows: $flows, flowsTableSeconds: $table, flowsLimitSeconds: $top, flowsJSONSeconds: $json,
	  exported: $exported, received: $received, lost: $lost, agentCPUSeconds: $cpu, cycles: $cycles,
	  elapsedSeconds: $elapsed, idleCycleSeconds: $cycle}')
if [ -n "$json" ]; then
	echo "$result"
else
	echo "$result" | jq -r '
		"\(.flows) live flows of UDP, half of them IPv6",
		"wgplane flows: \(.flowsTableSeconds) s; --limit 20: \(.flowsLimitSeconds) s; -o json: \(.flowsJSONSeconds) s",
		"all exported within \(.elapsedSeconds) s: \(.exported) records, \(.lost) lost, nfcapd has \(.received) of UDP",
		"the agent took \(.agentCPUSeconds) s of a processor in the \(.cycles) cycles until then and after; one with nothing to tell takes \(.idleCycleSeconds) s"'
fi
