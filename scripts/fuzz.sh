#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Feeds what reads others' bytes with ever other ones (libFuzzer, with the address sanitizer), and says how much of the
# code they have reached. Needs no root.
#
#   scripts/fuzz.sh [--minutes M] [--jobs N] [TARGET...]
#
#   --minutes M  for each target; 10 unless said
#   --jobs N     so many targets at a time; one for each processor unless said
#   TARGET       as in Tests/FuzzTargets; all unless said
#
# What is found is kept in .build-fuzz/found, what it has learned in .build-fuzz/corpora, from one run to the next; the
# seeds are Tests/UnitTests/Corpora. Exit status 1: something was found.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=10 jobs=$(nproc) targets=()
while [ $# -gt 0 ]; do
	case $1 in
	--minutes) minutes=${2:?so many minutes} && shift 2 ;;
	--jobs) jobs=${2:?so many} && shift 2 ;;
	-h | --help) sed -n '3,14s/^# \{0,1\}//p' "$0" && exit 0 ;;
	-*) echo "fuzz: \"$1\" is no option; see --help" >&2 && exit 2 ;;
	*) targets+=("$1") && shift ;;
	esac
done
seeds=Tests/UnitTests/Corpora
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/.*FuzzTarget(name: "\([a-z-]*\)").*/\1/p' Tests/FuzzTargets/*.swift)
scratch=.build-fuzz
echo "fuzz: building" >&2
mkdir -p $scratch
WGPLANE_FUZZ=1 swift build -c release --product wgplane-fuzz --scratch-path $scratch --sanitize fuzzer --sanitize address \
	-Xswiftc -enable-testing -Xswiftc -DWGPLANE_FUZZ >$scratch/log 2>&1 || {
	grep -E 'error' $scratch/log | sort -u | head -20 >&2
	exit 1
}
binary=$(WGPLANE_FUZZ=1 swift build -c release --scratch-path $scratch --show-bin-path)/wgplane-fuzz

one() { # TARGET
	local corpus=$scratch/corpora/$1 found=$scratch/found/$1 status=0 folders
	mkdir -p "$corpus" "$found"
	folders=("$corpus")
	[ ! -d "$seeds/$1" ] || folders+=("$seeds/$1")
	WGPLANE_FUZZ_TARGET=$1 ASAN_OPTIONS=detect_leaks=0 "$binary" -max_total_time="$(awk "BEGIN { print int($minutes * 60) }")" \
		-max_len=65536 -timeout=20 -rss_limit_mb=4096 -use_value_profile=1 -print_final_stats=1 \
		-artifact_prefix="$found/" "${folders[@]}" >"$scratch/$1.log" 2>&1 || status=$?
	local last
	last=$(grep -E 'cov: [0-9]+' "$scratch/$1.log" | tail -1 | sed -E 's/^#([0-9]+).*cov: ([0-9]+) ft: ([0-9]+) corp: ([^ ]+).*/\1 inputs, \2 edges and \3 features reached, corpus \4/')
	# What ends with status 0 and has not said so was not the fuzzer.
	grep -q '^Done [0-9]* runs' "$scratch/$1.log" || [ $status != 0 ] || status=1
	if [ $status = 0 ]; then echo "fuzz: $1: nothing found; $last"; else
		echo "fuzz: $1: FOUND $(find "$found" -type f -newer "$binary" | tr '\n' ' ')(see $scratch/$1.log); $last"
		return 1
	fi
}
export -f one
export scratch seeds binary minutes
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} bash -c 'one {}'
