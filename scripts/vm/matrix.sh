# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The matrix of machines and tests: runs the machines, adds up, writes the table. Sourced by
# scripts/test.sh, which defines say, tests (the folder of the binaries) and results.

# Of a test log: how many have passed, failed, were skipped for want of something in this
# kernel ("kernel: ..."), or were skipped although they should have run.
count() { # LOG PATTERN
	grep -E '^. +Test ' "$1" | grep -v 'Test run with' | grep -cE "$2"
}
tally() { # LOG STATUS: "PASSED FAILED LACKING SKIPPED"
	local passed failed lacking skipped
	passed=$(count "$1" ' passed after ')
	failed=$(count "$1" ' failed after ')
	lacking=$(count "$1" ' skipped: "kernel: ')
	skipped=$(($(count "$1" ' skipped') - lacking))
	# A run that broke off, or ran nothing, has failed.
	if [ "$2" != 0 ] && [ "$failed" = 0 ] || [ "$passed" = 0 ]; then failed=$((failed + 1)); fi
	echo "$passed $failed $lacking $skipped"
}

# record MACHINE RELEASE PART WIREGUARD ATTACHMENT LOG STATUS SECONDS: a line of the table.
record() {
	local line
	line="$1 $2 $3 $4 $5 $(tally "$6" "$7") $8"
	(
		flock 9
		echo "$line" >>"$results/lines"
	) 9>"$results/lock"
	# shellcheck disable=SC2086
	set -- $line
	say "$1 ($2), $3, WireGuard $4, attachment $5: $6 passed, $7 failed, $8 lacking in this kernel, ${10} s"
}

# parts_of MACHINE proof|whole: what is to run there.
parts_of() {
	case $2:$1 in
	whole:5.10 | whole:6.1) echo programs cluster-tc ;;
	whole:*) echo programs cluster-tc cluster-tcx ;;
	# The verifier of 6.1 lies between those of 5.10 and 6.12, and that of 6.12, where no matrix is to be written, between
	# that of 5.10 and the newest.
	proof:6.1) echo cluster ;;
	proof:6.12) [ -z "$matrix" ] && echo cluster || echo programs cluster ;;
	proof:*) echo programs cluster ;;
	esac
}

# machine NAME SET SECONDS: boots it, runs its tests, records them.
machine() {
	local out=$results/$1 options="--kernel $1" prefix status log try part wireguard attachment ended seconds release
	[ "$1" != uml ] || options=--uml
	[ "$2" != programs ] || out+=-programs
	[[ $2 != programs || " $(parts_of "$1" proof) " == *" programs "* ]] || return 0
	for try in 1 2; do
		rm -rf "$out" && mkdir -p "$out"
		status=0
		# Beside the tests on this kernel, with what processors these leave.
		prefix=
		[ "$2" != programs ] || [ -e "$results/host-over" ] || prefix="chrt --idle 0"
		# shellcheck disable=SC2086
		$prefix scripts/vm.sh $options --timeout "$3" --memory 3072 --out "$out" -- scripts/vm/machine-tests "$tests" "$2" \
			>"$out/machine.log" 2>&1 &
		wait $! || status=$?
		# One that stands still is no test's word: once more, and the log says so.
		case $status:$try in
		124:1 | 125:1)
			say "$1, $2: the machine ended with $status, and is started once more:"
			tail -n 5 "$out/machine.log"
			;;
		*) break ;;
		esac
	done
	release=$(cat "$out/release" 2>/dev/null || echo unknown)
	while read -r part wireguard attachment ended seconds; do
		log=$out/$part.log
		[ -e "$log" ] || : >"$log"
		record "$1" "$release" "$part" "$wireguard" "$attachment" "$log" "$ended" "$seconds"
		grep -E '^✘ .*(recorded an issue|failed after)' "$log" | cut -c 1-500
	done < <(cat "$out/parts" 2>/dev/null)
	if [ "$status" != 0 ]; then
		say "$1: the machine ended with $status:"
		tail -n 5 "$out/machine.log"
		: >"$out/none.log"
		record "$1" "$release" machine - - "$out/none.log" "$status" 0
	fi
}

# missing MACHINE SET: what should have run there and left no result has failed.
missing() {
	local part
	: >"$results/none"
	for part in $(parts_of "$1" "$2"); do
		grep -q "^$1 [^ ]* $part " "$results/lines" || record "$1" unknown "$part" - - "$results/none" 1 0
	done
}

# Tables in Markdown: what was run where, and which features were found where.
write_matrix() {
	{
		echo "# Kernels and tests"
		echo
		echo "Written by \`scripts/test.sh\` on $(date -u +%F) at commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ' with changes')."
		echo "Machines are Debian's stock kernels in qemu with the kernel's own WireGuard; \`host\` is the kernel"
		echo "that the script ran on, \`uml\` user-mode Linux. Lacking: tests of what this kernel does not have."
		echo
		echo "| machine | kernel | tests | WireGuard | attachment | passed | failed | lacking | seconds |"
		echo "|---|---|---|---|---|---|---|---|---|"
		sort -V "$results/lines" | awk '{ printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5, $6, $7, $8, $10 }'
		echo
		echo "What \`wgplane doctor\` found in each, by trying. Where something is not there, the entry says what"
		echo "takes its place."
		echo
		features
	} >"$1"
}

features() {
	local machines=() name check row
	for name in host 5.10 6.1 6.12 newest uml; do [ -s "$results/$name/doctor.json" ] && machines+=("$name"); done
	[ ${#machines[@]} -gt 0 ] || return 0
	printf '| feature |'
	printf ' %s |' "${machines[@]}"
	printf '\n|---|'
	printf -- '---|%.0s' "${machines[@]}"
	echo
	jq -r '.[].check' "$results/${machines[0]}/doctor.json" | grep -vE '^(privileges|bpffs|forwarding|netfilter)$' | while read -r check; do
		row="| $check |"
		for name in "${machines[@]}"; do
			row+=" $(jq -r --arg check "$check" '.[] | select(.check == $check) | .found' "$results/$name/doctor.json") |"
		done
		echo "$row"
	done
}
