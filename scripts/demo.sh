#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The lab of "Securing Data-in-Transit with Calico & WireGuard" on one machine: three nodes
# with two pods each, in network namespaces. A conversation goes on while encryption is
# switched on under it.
#
#   scripts/demo.sh           shows it, and leaves nothing behind
#   scripts/demo.sh --keep    leaves the lab up
#   scripts/demo.sh --json    prints one JSON object on standard output, nothing else
#   scripts/demo.sh --wireguard kernel    not wireguard-go (userspace), nor what is there (auto)
#
# Builds first, unless WGPLANE_BINARY names a wgplane that is ready. On a kernel with WireGuard, after a build:
#   WGPLANE_BINARY=.build/release/wgplane scripts/vm.sh -- scripts/demo.sh --wireguard kernel
set -euo pipefail
cd "$(dirname "$0")/.."

keep=no json=no wireguard_backend=auto
while [ $# -gt 0 ]; do
	case $1 in
	--keep) keep=yes ;;
	--json) json=yes ;;
	--wireguard)
		case ${2:-} in
		auto | kernel | userspace) wireguard_backend=$2 && shift ;;
		*)
			echo "demo: --wireguard \"${2:-}\": choose auto, kernel or userspace" >&2
			exit 2
			;;
		esac
		;;
	-h | --help)
		sed -n '3,14s/^# \{0,1\}//p' "$0"
		exit 0
		;;
	*)
		echo "demo: \"$1\" is no option; the options are --keep, --json and --wireguard" >&2
		exit 2
		;;
	esac
	shift
done
[ "$(id -u)" = 0 ] || {
	echo "demo: needs root to make network namespaces; run it as root" >&2
	exit 1
}

# Everything for people goes to descriptor 3; with --json that is standard error.
if [ $json = yes ]; then exec 3>&2; else exec 3>&1; fi
say() { printf '%s\n' "$*" >&3; }
step() { printf '\n\033[1m%s\033[0m\n' "$*" >&3; }
[ -t 3 ] || step() { printf '\n== %s\n' "$*" >&3; }

lab=demo$$
scratch=$(mktemp -d)
jobs_started=()
finish() {
	status=$?
	trap - EXIT INT TERM
	for job in "${jobs_started[@]}"; do kill "$job" 2>/dev/null || true; done
	if [ -n "${wgplane:-}" ]; then
		if [ $keep = yes ] && [ $status = 0 ]; then
			say "The lab stays up: $wgplane lab status --name $lab; $wgplane lab down --name $lab"
		else
			"$wgplane" lab down --name $lab >/dev/null 2>&1 || true
		fi
	fi
	rm -rf "$scratch"
	exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -n "${WGPLANE_BINARY:-}" ]; then
	wgplane=$WGPLANE_BINARY
else
	step "Installing what is missing, and building (the first time takes some minutes)"
	scripts/bootstrap.sh
	configuration=${WGPLANE_CONFIGURATION:-release}
	swift build -c "$configuration" --product wgplane 2>&1 | sed -u 's/^/  /' >&3
	wgplane=$(swift build -c "$configuration" --show-bin-path)/wgplane
fi
started=$(date +%s.%N)

# Started in the background it must be the program itself, so that its number can be killed.
exec_in() { "$wgplane" lab exec --name $lab "$@"; }
wait_for() { # DESCRIPTION SECONDS COMMAND...
	local what=$1 deadline=$((SECONDS + $2 * ${WGPLANE_LAB_PATIENCE:-1}))
	shift 2
	until "$@" >/dev/null 2>&1; do
		if [ $SECONDS -gt $deadline ]; then
			echo "demo: waited in vain until $what" >&2
			return 1
		fi
		sleep 0.05
	done
}
pcap_count() { tcpdump -r "$1" "$2" 2>/dev/null | wc -l; }
pods='(net 10.48.0.0/16 or net fd48::/48)'
outer='(udp port 51820 or udp port 51821)'

capture() { # FILE: everything that crosses the underlay
	"$wgplane" lab exec --name $lab underlay -- tcpdump -i any -U --immediate-mode -B 16384 -s 200 -Q in -w "$1" 'ip or ip6' 2>"$1.log" &
	jobs_started+=($!)
	wait_for "the capture runs" 5 grep -q 'listening on' "$1.log"
}
stop_capture() { # FILE: when what was sent has arrived in it
	local size=-1
	until [ "$size" = "$(stat -c %s "$1")" ]; do
		size=$(stat -c %s "$1")
		sleep 0.2
	done
	kill "${jobs_started[-1]}"
	wait "${jobs_started[-1]}" 2>/dev/null || true
	unset 'jobs_started[-1]'
	grep -q '^0 packets dropped by kernel' "$1.log" || {
		echo "demo: the capture has lost packets, so its counts prove nothing" >&2
		return 1
	}
}

step "Three nodes, two pods each, IPv4 and IPv6; WireGuard is off"
"$wgplane" lab up --name $lab --nodes 3 --pods 2 --dual --disabled --wireguard $wireguard_backend >&3
"$wgplane" lab status --name $lab >&3
eval "$("$wgplane" lab env --name $lab)"

server=node2-pod1 client=node1-pod1
server_address=$("$wgplane" get pod $server -o json | jq -r .status.podIP)
step "A conversation by nc: $client to $server, port 12345"
mkfifo "$scratch/talk"
"$wgplane" lab exec --name $lab $server -- nc -l -p 12345 >"$scratch/heard" &
nc_server=$!
jobs_started+=($nc_server)
wait_for "the server listens" 5 exec_in $server -- sh -c 'grep -q 3039 /proc/net/tcp /proc/net/tcp6'
"$wgplane" lab exec --name $lab $client -- nc "$server_address" 12345 <"$scratch/talk" &
nc_client=$!
jobs_started+=($nc_client)
jobs_started+=($nc_client)
exec 4>"$scratch/talk"

capture "$scratch/before.pcap"
echo "attack at dawn" >&4
wait_for "the words arrive" 5 grep -q 'attack at dawn' "$scratch/heard"
wait_for "the capture has the words" 5 sh -c "tcpdump -A -r '$scratch/before.pcap' 2>/dev/null | grep -q 'attack at dawn'"
stop_capture "$scratch/before.pcap"
before_clear=$(pcap_count "$scratch/before.pcap" "$pods and not $outer")
say "On the underlay anybody reads:"
tcpdump -A -r "$scratch/before.pcap" 2>/dev/null | grep -B 3 -A 1 'attack at dawn' | sed 's/^/  /' | head -8 >&3 || true
say "$before_clear packets with a pod's address in clear."

patch='{"spec":{"wireguardEnabled":true,"wireguardEnabledV6":true}}'
step "wgplane patch felixconfiguration default --type=merge -p '$patch'"
"$wgplane" patch felixconfiguration default --type=merge -p "$patch" >&3
all_tunnelled() {
	for node in node1 node2 node3; do
		exec_in $node -- wgplane status -o json | jq -e '[.report.ipv4, .report.ipv6] | all(. != null and
			(.peers | length == 2) and (.peers | all(.action == "tunnel")))' >/dev/null || return 1
	done
}
wait_for "all peers are ready" 15 all_tunnelled

step "The same connection goes on"
capture "$scratch/after.pcap"
echo "retreat at noon" >&4
wait_for "the words arrive" 5 grep -q 'retreat at noon' "$scratch/heard"
say "$server heard: $(paste -sd, "$scratch/heard" | sed 's/,/, /g')"

step "ICMP, TCP and UDP between all pods, and from every node to the pods of the others"
reached=yes
"$wgplane" lab check --name $lab -o json >"$scratch/check.json" || reached=no
stop_capture "$scratch/after.pcap"
exec 4>&-
kill "$nc_client" "$nc_server" 2>/dev/null || true
wait "$nc_client" "$nc_server" 2>/dev/null || true
jobs_started=()
wireguard=$(pcap_count "$scratch/after.pcap" "$outer")
clear=$(pcap_count "$scratch/after.pcap" "$pods and not $outer")
words=$(tcpdump -A -r "$scratch/after.pcap" 2>/dev/null | grep -c 'retreat at noon' || true)
jq -r '["SOURCE","DESTINATION","FAMILY","ICMP","TCP","UDP","WAY","PACKETS"],
	(.pairs | group_by([.source, .destination, .family])[] |
		[.[0].source, .[0].destination, .[0].family] +
		[(sort_by(.protocol)[] | if .reachable then "yes" else "NO" end)] +
		[(map(.way) | unique | join(","))] + [(map(.packets) | add)]) | @tsv' "$scratch/check.json" |
	column -t -s "$(printf '\t')" >&3
say ""
say "Underlay: $wireguard WireGuard packets, $clear with a pod's address in clear, the words seen $words times."

backend=$(exec_in node1 -- wgplane status -o json | jq -r .report.backend)
say "WireGuard of the $backend, kernel $(uname -r)."

step "wgplane status, on node1"
exec_in node1 -- wgplane status >&3
step "wgplane flows, on node1 (the first ten)"
exec_in node1 -- wgplane flows | sed -n 1,11p >&3
step "wgplane maps dump destinations, on node1"
exec_in node1 -- wgplane maps dump destinations >&3

ok=yes
tunnelled=$(jq '.pairs | all(.way == "tunnel" or .way == "local")' "$scratch/check.json")
if [ $reached != yes ] || [ "$tunnelled" != true ] || [ "$wireguard" = 0 ] || [ "$clear" != 0 ] ||
	[ "$before_clear" = 0 ] || [ "$words" != 0 ]; then ok=no; fi
seconds=$(echo "$started $(date +%s.%N)" | awk '{printf "%.1f", $2 - $1}')
if [ $json = yes ]; then
	jq --argjson ok "$([ $ok = yes ] && echo true || echo false)" --argjson wireguard "$wireguard" \
		--argjson clear "$clear" --argjson before "$before_clear" --argjson seconds "$seconds" --arg backend "$backend" \
		'{ok: $ok, wireguard: $backend, nodes: 3, pods: 6, pairs: .pairs, underlay: {wireguardPackets: $wireguard, clearPackets: $clear},
		before: {clearPackets: $before}, seconds: $seconds}' "$scratch/check.json"
fi
if [ $ok = yes ]; then
	step "All of it held, in $seconds s after the build."
else
	step "Something did not hold; see above."
	exit 1
fi
