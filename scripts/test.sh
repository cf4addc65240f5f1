#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and runs every test. Needs root: most tests make network
# namespaces and load BPF programs.
#
#   scripts/test.sh                 on this kernel, and on Debian's stock kernels in virtual machines
#                                   the packet tests and the proof with the kernel's own WireGuard
#   scripts/test.sh --all           the whole matrix: the packet and cluster tests on every kernel and
#                                   attachment, and in user-mode Linux; hours. Writes scripts/MATRIX.md
#   scripts/test.sh --record        as without an option, and in user-mode Linux; writes scripts/MATRIX.md
#   scripts/test.sh --host [OPTION...]   this kernel only; options go to the tests (--filter NAME)
#   scripts/test.sh --machine K     one machine only: 5.10, 6.1, 6.12, newest, or uml
#
# Ends with one line: N passed, N failed, N skipped. A test that is skipped although this kernel
# has what it needs fails the run.
set -uo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8 # the marks in a test's log are no ASCII
started=$SECONDS
say() { printf 'test: after %d s: %s\n' $((SECONDS - started)) "$*"; }

kernels=(5.10 6.1 6.12 newest) set=proof host=1 matrix=
case ${1:-} in
--all) set=whole matrix=scripts/MATRIX.md && kernels+=(uml) && shift ;;
--record) matrix=scripts/MATRIX.md && kernels+=(uml) && shift ;;
--host) kernels=() && shift ;;
--machine) host= && kernels=("${2:?name a machine: 5.10, 6.1, 6.12, newest or uml}") && shift 2 ;;
-h | --help) sed -n '3,18s/^# \{0,1\}//p' "$0" && exit 0 ;;
esac
[ $# = 0 ] || [ ${#kernels[@]} = 0 ] || {
	echo "test: $* goes with --host only; see --help" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || {
	echo "test: needs root to make network namespaces and load BPF programs; run it as root" >&2
	exit 1
}
case " ${kernels[*]} " in *" uml "*) scripts/bootstrap.sh uml ;; *) scripts/bootstrap.sh ;; esac || exit 1
# shellcheck source=scripts/vm/matrix.sh
. scripts/vm/matrix.sh

prefix=t$$
export WGPLANE_TEST_PREFIX=$prefix
results=$(mktemp -d)
log=$results/log
: >"$results/lines"
# Jobs are groups of their own, so that each is ended whole.
set -m
clean_up() {
	status=$?
	trap - EXIT INT TERM
	for process in $(jobs -pr); do kill -- -"$process" 2>/dev/null && wait "$process" 2>/dev/null; done
	# Labs that a failed or interrupted test has left.
	if [ -x "${wgplane:-}" ]; then
		for left in /run/wgplane-lab/"$prefix"-*; do
			[ -e "$left" ] && "$wgplane" lab down --name "${left##*/}" --partial >/dev/null 2>&1
		done
	fi
	rm -rf "$results"
	exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Servers that are built or fetched once are needed by the tests on this kernel; the machines' kernels by theirs.
servers() {
	set +m
	scripts/servers/kube-apiserver.sh && scripts/servers/helm.sh
}
[ -z "$host" ] || {
	servers >"$results/servers" 2>&1 &
	servers=$!
}

# Downloading goes on beside the build, and is waited for before the first machine.
fetch() {
	set +m
	for kernel in "${kernels[@]}"; do
		[ "$kernel" = uml ] || scripts/vm.sh --kernel "$kernel" --fetch || return
	done
}
fetch >"$results/fetch" 2>&1 &
fetcher=$!

say "building"
# The build's own lines only when it fails.
swift build --build-tests >"$log" 2>&1 || {
	grep -E 'error|warning' "$log" | sort -u | head -40
	say "the build failed"
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
}
binaries=$(swift build --show-bin-path)
wgplane=$binaries/wgplane
export WGPLANE_BINARY=$wgplane
say "built"

# Tests on this kernel: PART OPTION...
host_part() {
	local part=$1 log=$results/host-$1.log begun=$SECONDS status=0 runner
	shift
	: >"$log"
	# Not by way of `swift test`, which leaves its tests behind when it is ended.
	"$binaries/wgplanePackageTests.xctest" --testing-library swift-testing --no-parallel "$@" >"$log" 2>&1 &
	runner=$!
	tail -n +1 -f --pid=$runner "$log" 2>/dev/null | grep -v --line-buffered -E '^(◇|􀟈) ' &
	wait $runner || status=$?
	sleep 0.3
	record host "$(uname -r)" "$part" auto auto "$log" $status $((SECONDS - begun))
}

# The machines' own.
if [ ${#kernels[@]} -gt 0 ]; then
	wait $fetcher || {
		cat "$results/fetch"
		say "the machines' kernels cannot be had"
		: >"$results/none"
		record machines - fetch - - "$results/none" 1 0
		kernels=()
	}
	# Binaries of their own, so that a build meanwhile does not change them.
	tests=$results/tests
	mkdir "$tests"
	cp "$binaries/wgplanePackageTests.xctest" "$wgplane" "$tests/"
	limit=2700
	[ $set = proof ] || limit=7200
fi

parts=$set
if [ -n "$host" ]; then
	wait $servers || {
		cat "$results/servers"
		say "kube-apiserver or helm cannot be had: the tests that want them will fail"
	}
	# What no clock is looked at for goes on meanwhile in the machines, with what processors these tests leave.
	programs=
	if [ ${#kernels[@]} -gt 0 ] && [ $set = proof ]; then
		parts=cluster
		{ set +m && for kernel in "${kernels[@]}"; do machine "$kernel" programs $limit; done; } &
		programs=$!
	fi
	mkdir "$results/host"
	"$wgplane" doctor -o json >"$results/host/doctor.json" 2>/dev/null
	# What waits for servers most of the time goes on beside the machines, if there are any.
	if [ ${#kernels[@]} -gt 0 ]; then host_part all --skip '^DatastoreTests\.'; else host_part all "$@"; fi
fi

if [ ${#kernels[@]} -gt 0 ]; then
	datastores=
	[ -z "$host" ] || {
		{ set +m && host_part datastores --filter '^DatastoreTests\.'; } &
		datastores=$!
	}
	# Two lanes, each mostly on one processor, take one machine after the other, those that take longest first.
	lane() {
		set +m # one group for all that it starts
		for kernel in newest 6.12 6.1 5.10 uml; do
			[[ " ${kernels[*]} " == *" $kernel "* ]] && mkdir "$results/taken-$kernel" 2>/dev/null || continue
			machine "$kernel" $parts $limit
		done
	}
	# From now on, those that went on beside this kernel's tests get processors as all do.
	: >"$results/host-over"
	[ -z "${programs:-}" ] || for process in $(pgrep -g $programs); do chrt -a --other -p 0 "$process" 2>/dev/null; done
	lane &
	lanes=($!)
	# They are still one processor's work.
	[ -z "${programs:-}" ] || wait $programs
	lane &
	lanes+=($!)
	for process in "${lanes[@]}" $datastores; do wait "$process"; done
	for kernel in "${kernels[@]}"; do missing "$kernel" $set; done
fi

write_matrix "$results/matrix.md"
[ -z "$matrix" ] || cp "$results/matrix.md" "$matrix"
say "done"
cat "$results/matrix.md"
read -r passed failed lacking skipped < <(awk '{ p += $6; f += $7; l += $8; s += $9 } END { print p + 0, f + 0, l + 0, s + 0 }' "$results/lines")
[ "$lacking" = 0 ] || say "$lacking tests of what a kernel does not have were left out there"
[ "$skipped" = 0 ] || say "a test that should run was skipped"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$skipped" = 0 ] && [ "$passed" != 0 ]
