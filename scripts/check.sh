#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Format and lint, house rules, and a build in which warnings are errors.
# scripts/check.sh --fast leaves the build out.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
complain() {
	echo "check: $*" >&2
	failed=1
}

swift format lint --strict --recursive --parallel Package.swift Sources Tests || complain "swift format: run swift format -i -r Package.swift Sources Tests"
mapfile -t c_files < <(git ls-files --cached --others --exclude-standard '*.c' '*.h')
clang-format --dry-run -Werror "${c_files[@]}" || complain "clang-format: run clang-format -i on the files above"

# Memory is touched by hand in these modules alone.
unsafe=$(grep -rlE 'Unsafe(Mutable)?(Raw)?(Buffer)?Pointer|withUnsafe|unsafeBitCast' Sources --include='*.swift' |
	grep -vE '^Sources/(BPF|Netlink|SystemDescriptors|DataplaneMaps)/' || true)
[ -z "$unsafe" ] || complain "unsafe memory outside its modules: $unsafe"
missing_license=$(grep -rL 'SPDX-License-Identifier' Sources bpf Tests scripts --include='*.swift' --include='*.c' --include='*.h' --include='*.sh' || true)
[ -z "$missing_license" ] || complain "no SPDX line: $missing_license"
long=$(git ls-files '*.swift' '*.c' '*.h' ':!*/Generated/*' | xargs wc -l | awk '$1 > 400 && $2 != "total" {print $2 " (" $1 ")"}')
[ -z "$long" ] || complain "files of more than 400 lines: $long"
ignored=$(git ls-files | grep -E '^\.build|Package\.resolved' || true)
[ -z "$ignored" ] || complain "must not be committed: $ignored"

if [ "${1:-}" != --fast ]; then
	# Only our own modules: the packages' warnings are theirs.
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	swift build --build-tests --scratch-path "${WGPLANE_CHECK_SCRATCH:-.build}" >"$log" 2>&1 || complain "the build failed: $(grep -E 'error:' "$log" | head -5)"
	warnings=$(grep -E "^$PWD/(Sources|Tests|bpf)/.*warning:" "$log" | sort -u || true)
	[ -z "$warnings" ] || complain "warnings: $warnings"
fi
[ $failed = 0 ] && echo "check: ok"
exit $failed
