#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the tests that need no kernel of their own with a sanitizer of the compiler's, which sees what a passing test does
# not: memory used after it was freed or past its end (address), data that two threads touch without a lock (thread).
#
#   scripts/sanitize.sh [address|thread]... [--filter NAME]
#
#   --filter NAME  as `swift test` takes it; the unit tests (hostile bytes and messages on the wire among them) unless said
#
# Both, one after the other, unless said. Exit status 1: something was found, or a test failed.
set -euo pipefail
cd "$(dirname "$0")/.."
kinds=() filter='^UnitTests\.'
while [ $# -gt 0 ]; do
	case $1 in
	address | thread) kinds+=("$1") && shift ;;
	--filter) filter=${2:?name a test} && shift 2 ;;
	-h | --help) sed -n '3,10s/^# \{0,1\}//p' "$0" && exit 0 ;;
	*) echo "sanitize: \"$1\" is no option; see --help" >&2 && exit 2 ;;
	esac
done
[ ${#kinds[@]} -gt 0 ] || kinds=(address thread)
scripts/bootstrap.sh
status=0
for kind in "${kinds[@]}"; do
	scratch=.build-$kind
	mkdir -p "$scratch"
	echo "sanitize: building ($kind)" >&2
	swift build --build-tests --sanitize "$kind" --scratch-path "$scratch" >"$scratch/build.log" 2>&1 || {
		grep -E 'error' "$scratch/build.log" | sort -u | head -20 >&2
		exit 1
	}
	binaries=$(swift build --sanitize "$kind" --scratch-path "$scratch" --show-bin-path)
	# Where two threads meet at a Synchronization.Mutex, the one that waits does so in the compiler's library, of which the
	# thread sanitizer sees nothing: what both do with the value in hand, in closures that are given it to change (their mangled
	# names end so), is no race, and only there the value is in reach.
	echo "race:zYuYTXEfU" >"$scratch/suppressions"
	# What is kept for the program's life is no leak.
	ended=0
	ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=halt_on_error=0:exitcode=66:suppressions=$PWD/$scratch/suppressions \
		"$binaries/wgplanePackageTests.xctest" --testing-library swift-testing --no-parallel --filter "$filter" \
		>"$scratch/tests.log" 2>&1 || ended=$?
	found=$(grep -cE 'WARNING: ThreadSanitizer|ERROR: AddressSanitizer' "$scratch/tests.log" || true)
	passed=$(grep -E '^. +Test ' "$scratch/tests.log" | grep -v 'Test run with' | grep -c ' passed after ' || true)
	echo "sanitize: $kind: $passed tests passed, $found findings, exit status $ended; see $scratch/tests.log"
	[ "$found" = 0 ] && [ "$ended" = 0 ] && [ "$passed" != 0 ] || status=1
done
exit $status
