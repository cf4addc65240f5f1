#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures wgplane beside what it replaces, each with its yardstick in the same run and in turn with it, and prints
# medians, least and most, and the ratio. Needs root; builds what it measures. Everything happens in network namespaces
# of its own, and in a virtual machine for the kernel's WireGuard.
#
#   scripts/bench.sh [--quick] [--only NAME]... [--json FILE] [--readme] [--no-vm]
#
#   --quick      fewer repeats and smaller loads: for a look, not for quoting
#   --only NAME  packet, steering, tunnel, accounting, peers, maps, churn, scale, start, first-run
#   --json FILE  writes an array of objects: name, case, value, minimum, maximum, unit, yardstick, yardstickValue, ratio,
#                ratioMinimum, ratioMaximum, goal, met, spread, noisy, repeats, note; what there is not is null
#   --readme     writes the table into README.md, when all could be measured
#   --no-vm      leaves the kernel's WireGuard out, where this machine's own kernel has none
#
# ± marks what varies by more than a tenth between repeats. Exit status 1: something could not be measured. A goal that
# is missed is printed, and no failure.
set -euo pipefail
cd "$(dirname "$0")/.."

all=(packet steering tunnel accounting peers maps churn scale start first-run)
only=() quick=() json= readme= vm=1
while [ $# -gt 0 ]; do
	case $1 in
	--quick) quick=(--quick) && shift ;;
	--only) only+=("${2:?name a benchmark}") && shift 2 ;;
	--json) json=${2:?name a file} && shift 2 ;;
	--readme) readme=1 && shift ;;
	--no-vm) vm= && shift ;;
	-h | --help) sed -n '3,19s/^# \{0,1\}//p' "$0" && exit 0 ;;
	*) echo "bench: \"$1\" is no option; see --help" >&2 && exit 2 ;;
	esac
done
for name in "${only[@]}"; do
	[[ " ${all[*]} " == *" $name "* ]] || { echo "bench: --only \"$name\": choose of ${all[*]}" >&2 && exit 2; }
done
[ ${#only[@]} -gt 0 ] || only=("${all[@]}")
[ -z "$readme" ] || [ ${#quick[@]} = 0 ] || { echo "bench: --readme with --quick: figures for a look are not for quoting" >&2 && exit 2; }
[ "$(id -u)" = 0 ] || { echo "bench: needs root to make network namespaces and load BPF programs; run it as root" >&2 && exit 1; }
scripts/bootstrap.sh

say() { printf 'bench: %s\n' "$*" >&2; }
chosen() { [[ " ${only[*]} " == *" $1 "* ]]; }
scratch=$(mktemp -d)
set -m
finish() {
	status=$?
	trap - EXIT INT TERM
	# What was ended does not end this.
	set +e
	for process in $(jobs -pr); do kill -- -"$process" 2>/dev/null && wait "$process" 2>/dev/null; done
	# What a runner that was ended has left, by its number.
	if [ -n "$runner" ]; then
		[ ! -e /run/wgplane-lab/bench"$runner" ] || "$binaries/wgplane" lab down --name bench"$runner" --partial >/dev/null 2>&1
		rm -rf /sys/fs/bpf/wgplane-bench-"$runner" /sys/fs/bpf/wgplane-bench-"$runner"-*
		for left in /run/wgplane-bench-"$runner" /run/wgplane-bench-"$runner"-*; do
			[ ! -e "$left" ] || { umount -Rl "$left" 2>/dev/null; rm -rf "$left"; }
		done
		# Without its socket, wireguard-go ends.
		rm -f /var/run/wireguard/b"$runner"-*.sock
	fi
	# A build that was ended may write for a moment longer.
	for _ in 1 2 3 4 5; do rm -rf "$scratch" 2>/dev/null && break || sleep 1; done
	exit $status
}
binaries= runner=
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "building (release)"
for product in wgplane wgplane-bench; do
	swift build -c release --product $product >"$scratch/build" 2>&1 || { grep -E 'error|warning' "$scratch/build" | sort -u | head -20 >&2 && exit 1; }
done
built=$(swift build -c release --show-bin-path)
# Copies, so that a build meanwhile does not change what is measured.
binaries=$scratch/bin
mkdir "$binaries"
cp "$built/wgplane" "$built/wgplane-bench" "$binaries/"

failed=0
inside=()
for name in "${only[@]}"; do [ "$name" = first-run ] || inside+=("$name"); done
if [ ${#inside[@]} -gt 0 ]; then
	"$binaries/wgplane-bench" run "${inside[@]}" "${quick[@]}" --lines "$scratch/host" --wgplane "$binaries/wgplane" &
	runner=$!
	wait $runner || failed=1
fi
machine=()
for name in tunnel peers; do ! chosen $name || machine+=($name); done
if [ -n "$vm" ] && [ ${#machine[@]} -gt 0 ]; then
	say "${machine[*]} with the kernel's WireGuard, in a virtual machine"
	scripts/vm.sh --kernel 6.12 --timeout 3000 --out "$scratch/vm" -- bash -c '
		"$1/wgplane-bench" run "${@:2}" --lines "$WGPLANE_VM_OUT/lines" --wgplane "$1/wgplane" --wireguard kernel' \
		- "$binaries" "${machine[@]}" "${quick[@]}" &
	wait $! || failed=1
	[ ! -s "$scratch/vm/lines" ] || cp "$scratch/vm/lines" "$scratch/machine"
fi
note() { # CASE SECONDS
	"$binaries/wgplane-bench" note --lines "$scratch/first" first-run "$1" "$2" s
}
if chosen first-run; then
	say "first run: a clone of what is committed, the demo"
	began=$SECONDS
	(git clone -q . "$scratch/clone" && cd "$scratch/clone" && exec scripts/demo.sh) >"$scratch/demo" 2>&1 &
	if wait $!; then note "clone to demo passed, packages there" $((SECONDS - began)); else failed=1 && tail -20 "$scratch/demo" >&2; fi
	if [ ${#quick[@]} = 0 ]; then
		say "first run: another clone, the tests"
		rm -rf "$scratch/clone"
		began=$SECONDS
		(git clone -q . "$scratch/clone" && cd "$scratch/clone" && exec scripts/test.sh) >"$scratch/tests" 2>&1 &
		if wait $!; then note "clone to tests passed, packages there" $((SECONDS - began)); else failed=1 && tail -20 "$scratch/tests" >&2; fi
	fi
fi

files=()
for file in host machine first; do [ ! -s "$scratch/$file" ] || files+=("$scratch/$file"); done
[ ${#files[@]} -gt 0 ] || { say "nothing was measured" && exit 1; }
model=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1)
where="$(date -u +%Y-%m-%d), $(nproc) processors (${model:-unknown}), Linux $(uname -r | cut -d- -f1)$([ ! -s "$scratch/machine" ] || echo "; kernel WireGuard: Linux 6.12 in an emulated machine, whose ratios alone say something")"
echo "$where"
"$binaries/wgplane-bench" table ${json:+--json "$json"} "${files[@]}"
if [ -n "$readme" ] && [ $failed != 0 ]; then
	say "README.md is left as it is, for not all could be measured"
elif [ -n "$readme" ]; then
	{
		sed '/<!-- scripts\/bench.sh begins -->/q' README.md
		printf '\n%s:\n\n' "$where"
		"$binaries/wgplane-bench" table --markdown "${files[@]}"
		echo
		sed -n '/<!-- scripts\/bench.sh ends -->/,$p' README.md
	} >"$scratch/readme"
	cp "$scratch/readme" README.md
fi
exit $failed
