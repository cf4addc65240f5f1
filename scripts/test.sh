#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and runs every test. Needs root: most tests make network
# namespaces and load BPF programs. Options are handed to `swift test` (--filter NAME).
#
# Ends with one line: N passed, N failed, N skipped. A test that is skipped fails the run.
set -uo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
say() { printf 'test: %s\n' "$*"; }

[ "$(id -u)" = 0 ] || {
	echo "test: needs root to make network namespaces and load BPF programs; run it as root" >&2
	exit 1
}
scripts/bootstrap.sh || exit 1

prefix=t$$
export WGPLANE_TEST_PREFIX=$prefix
log=$(mktemp)
clean_up() {
	status=$?
	trap - EXIT INT TERM
	[ -n "${runner:-}" ] && kill "$runner" 2>/dev/null
	# Labs that a failed or interrupted test has left.
	if [ -x "${wgplane:-}" ]; then
		for left in /run/wgplane-lab/"$prefix"-*; do
			[ -e "$left" ] && "$wgplane" lab down --name "${left##*/}" --partial >/dev/null 2>&1
		done
	fi
	rm -f "$log"
	exit $status
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "building"
# The build's own lines only when it fails.
swift build --build-tests >"$log" 2>&1 || {
	grep -E 'error|warning' "$log" | sort -u | head -40
	say "the build failed"
	echo "0 passed, 1 failed, 0 skipped"
	exit 1
}
wgplane=$(swift build --show-bin-path)/wgplane
export WGPLANE_BINARY=$wgplane
say "built after $((SECONDS - started)) s"

swift test --skip-build --no-parallel "$@" >"$log" 2>&1 &
runner=$!
tail -n +1 -f --pid=$runner "$log" 2>/dev/null | grep -v --line-buffered -E '^(◇|􀟈) ' &
wait $runner
status=$?
runner=
sleep 0.3
count() { grep -E "^. +Test " "$log" | grep -v 'Test run with' | grep -cE "$1"; }
passed=$(count ' passed after ')
failed=$(count ' failed after ')
skipped=$(count ' skipped')
[ $status != 0 ] && [ "$failed" = 0 ] && failed=1
[ "$skipped" != 0 ] && say "a test that should run was skipped" && status=1
[ "$passed" = 0 ] && status=1
say "done after $((SECONDS - started)) s"
echo "$passed passed, $failed failed, $skipped skipped"
exit $status
