#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiles one BPF program and writes it as a Swift constant. Called by the build plugin:
# embed-bpf.sh SOURCE INCLUDE-DIR OUTPUT.swift NAME [own|foreign]; foreign: for a module that BPFImage is not of.
set -eu
source=$1 include=$2 output=$3 name=$4 module=${5:-own}
object=$(mktemp "${TMPDIR:-/tmp}/wgplane-bpf.XXXXXX")
trap 'rm -f "$object"' EXIT INT TERM

# The Swift toolchain brings a clang with the BPF target; so does Debian's.
clang=${WGPLANE_CLANG:-clang}
if ! command -v "$clang" >/dev/null 2>&1; then
	swift=$(readlink -f "$(command -v swift)")
	clang=$(dirname "$swift")/clang
fi
strip() {
	if command -v llvm-objcopy >/dev/null 2>&1; then
		llvm-objcopy --strip-debug "$1"
	elif [ -x "$(dirname "$(readlink -f "$(command -v "$clang")")")/llvm-objcopy" ]; then
		"$(dirname "$(readlink -f "$(command -v "$clang")")")/llvm-objcopy" --strip-debug "$1"
	fi # else the debug sections stay: larger, but no less right
}

"$clang" -target bpf -g -O2 -mcpu=v3 -std=gnu11 -Wall -Wextra -Werror \
	-idirafter "/usr/include/$(uname -m)-linux-gnu" \
	"-ffile-prefix-map=${include%/}=bpf" -I "$include" -I "$include/include" -c "$source" -o "$object"
strip "$object"
{
	echo "// Generated from bpf/$name.bpf.c; do not edit."
	access=public
	[ "$module" = own ] || { access=internal && echo "internal import BPFObjects"; }
	printf 'extension BPFImage {\n    %s static let %s = BPFImage(name: "%s", base64: "' "$access" "$name" "$name"
	base64 -w0 "$object"
	printf '")\n}\n'
} >"$output"
