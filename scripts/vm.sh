#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a command as root in a virtual machine whose kernel has WireGuard.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
	cat <<'USAGE'
Usage: scripts/vm.sh [--kernel 5.10|6.1|6.12|newest | --uml] [OPTION...] -- COMMAND [ARGUMENT...]

Runs COMMAND as root on another kernel: one of Debian's stock kernels in qemu (the default is
6.12), or, with --uml, a user-mode Linux built from Debian's source (first use: five minutes).
The machine sees this system's files as they are, the checkout included; what it writes
goes to memory and is gone with it. Standard output, standard error and the exit status are
the command's own; standard input is empty. Files that the command puts into $WGPLANE_VM_OUT
are kept with --out. Variables named WGPLANE_... are handed on; $WGPLANE_LAB_PATIENCE, the factor
for the lab's deadlines, is 5 unless it is set.

  --kernel K       5.10 (bullseye), 6.1 (bookworm), 6.12 (backports), or the newest released
  --uml            user-mode Linux 6.12: boots in half a second, one processor, no JIT
  --timeout N      ends the machine after N seconds, with status 124 (default 1800)
  --memory M       of the machine, in MiB (default 2048)
  --out DIR        what the command wrote to $WGPLANE_VM_OUT is copied there
  --accel A        kvm or tcg; unset: KVM where it boots this kernel, else TCG
  --console        the kernel's messages go to standard error
  --fetch          downloads (and builds) what is missing, runs nothing
  --refresh        looks for a newer kernel even if one is there
  -h, --help       this text

Downloads are kept in $WGPLANE_VM_CACHE, by default ~/.cache/wgplane-vm. They come from the
archive that this system's own apt uses, or from $WGPLANE_DEBIAN_MIRROR and
$WGPLANE_DEBIAN_SECURITY_MIRROR. Exit status 125: no machine could be started, or it died.
USAGE
}
say() { printf 'vm: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 125
}

kernel=6.12 uml= limit=1800 memory=2048 out= accel= console= fetch_only= refresh=
while [ $# -gt 0 ]; do
	case $1 in
	--kernel | --timeout | --memory | --out | --accel) [ $# -ge 2 ] || die "$1 needs a value; see --help" ;;
	esac
	case $1 in
	--kernel) kernel=$2 && shift 2 ;;
	--uml) uml=1 && shift ;;
	--timeout) limit=$2 && shift 2 ;;
	--memory) memory=$2 && shift 2 ;;
	--out) out=$2 && shift 2 ;;
	--accel) accel=$2 && shift 2 ;;
	--console) console=1 && shift ;;
	--fetch) fetch_only=1 && shift ;;
	--refresh) refresh=1 && shift ;;
	-h | --help) usage && exit 0 ;;
	--) shift && break ;;
	*) die "unknown option $1; the command goes after --, see --help" ;;
	esac
done
case $kernel in 5.10 | 6.1 | 6.12 | newest) ;; *) die "--kernel $kernel: choose 5.10, 6.1, 6.12 or newest" ;; esac
case $accel in '' | kvm | tcg) ;; *) die "--accel $accel: choose kvm or tcg" ;; esac
case $limit$memory in *[!0-9]*) die "--timeout and --memory take whole numbers" ;; esac
[ $# -gt 0 ] || [ -n "$fetch_only" ] || die "no command; it goes after --, see --help"
[ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m); the kernels used here are for x86_64"
[ "$(id -u)" = 0 ] || die "needs root, to share the system's files with the machine"

cache=${WGPLANE_VM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/wgplane-vm}
mkdir -p "$cache"
for part in debian qemu uml; do
	# shellcheck source=/dev/null
	. "$here/vm/$part.sh"
done

# One at a time prepares a part of the cache, and machines run side by side.
locked() { # PART COMMAND...
	local lock
	exec {lock}>"$cache/$1.lock"
	flock "$lock"
	"${@:2}"
	exec {lock}>&-
}
# Downloading, unpacking and building: a group of processes that ends with this script.
preparation() { # PART COMMAND...
	local status=0
	set -m
	(
		set +m
		locked "$@"
	) </dev/null &
	preparing=$!
	set +m
	trap 'kill -- -$preparing 2>/dev/null; wait; exit 143' INT TERM
	wait $preparing || status=$?
	trap - INT TERM
	[ $status = 0 ] || exit $status
}
# What a machine runs on is not replaced before it has ended.
in_use() {
	exec {used}>"$1.used"
	flock -s "$used"
}
replace() { # NEW OLD
	local lock
	exec {lock}>"$2.used"
	flock -n "$lock" || die "${2##*/} is in use by a machine; end it first"
	rm -rf "$2"
	mv "$1" "$2"
	exec {lock}>&-
}
tools=$cache/tools
preparation tools prepare_tools
in_use "$tools"
if [ -n "$uml" ]; then
	name_uml
	preparation uml prepare_uml
	in_use "${uml%/*}"
else
	name_kernel
	preparation "kernel-$kernel" prepare_kernel
	in_use "$machine_kernel"
fi
[ -z "$fetch_only" ] || exit 0
[ -n "$uml" ] || [ -n "$accel" ] || accel=$(cat "$verdict")

# What the machine and this script tell each other: the command going in, its output and status coming out.
exchange=$(mktemp -d "${TMPDIR:-/tmp}/wgplane-vm.XXXXXX")
started=()
clean_up() {
	status=$?
	trap - EXIT INT TERM
	for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
	for process in "${started[@]}"; do wait "$process" 2>/dev/null || true; done
	rm -rf "$exchange"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$exchange/out"
: >"$exchange/stdout"
: >"$exchange/stderr"
: >"$exchange/console"
printf '%s\0' "$@" >"$exchange/command"
printf '%s' "$PWD" >"$exchange/directory"
{
	# Emulated, everything takes its time: the lab's deadlines are stretched.
	printf '%s\0' "PATH=$PATH" "HOME=${HOME:-/root}" "LANG=${LANG:-C.UTF-8}" "USER=root" \
		"WGPLANE_LAB_PATIENCE=${WGPLANE_LAB_PATIENCE:-5}"
	env -0 | grep -z '^WGPLANE_' | grep -z -vE '^WGPLANE_(VM_|LAB_PATIENCE=)' || true
} >"$exchange/environment"

if [ -n "$uml" ]; then start_uml; else start_qemu; fi # sets $machine
started+=("$machine")
follow() { tail -q -s 0.2 -c +1 -f --pid="$machine" "$1"; }
follow "$exchange/stdout" 2>/dev/null &
readers=($!)
follow "$exchange/stderr" >&2 2>/dev/null &
readers+=($!)
[ -z "$console" ] || { follow "$exchange/console" >&2 2>/dev/null & readers+=($!); }

(
	sleep "$limit" &
	sleeper=$!
	trap 'kill $sleeper 2>/dev/null; exit' TERM
	wait $sleeper
	: >"$exchange/timed-out"
	kill "$machine" 2>/dev/null
) &
started+=($!)
wait "$machine" 2>/dev/null || true
for reader in "${readers[@]}"; do wait "$reader" 2>/dev/null || true; done

[ -z "$out" ] || { mkdir -p "$out" && cp -a "$exchange/out/." "$out/"; }
if [ -s "$exchange/status" ]; then exit "$(cat "$exchange/status")"; fi
if [ -e "$exchange/timed-out" ]; then
	say "ended after $limit s, as asked for by --timeout; the command was still running"
	exit 124
fi
tail -q -n 20 "$exchange"/qemu "$exchange"/uml "$exchange"/virtiofsd? "$exchange/console" >&2 2>/dev/null || true
die "the machine ended without a result; its last messages are above"
