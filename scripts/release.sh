#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a release of what is committed: the program, its Debian package, a list of all that is in them (SPDX), and
# checksums. Builds in a clone, so that nothing uncommitted gets in.
#
#   scripts/release.sh [--output FOLDER] [--once]
#
#   --output FOLDER  .build-release, unless said
#   --once           without the second build, in another folder, whose result must be the same byte for byte
#
# Exit status 1: it could not be built, or the two builds differ.
set -euo pipefail
cd "$(dirname "$0")/.."
output=.build-release twice=1
while [ $# -gt 0 ]; do
	case $1 in
	--output) output=${2:?name a folder} && shift 2 ;;
	--once) twice= && shift ;;
	-h | --help) sed -n '3,11s/^# \{0,1\}//p' "$0" && exit 0 ;;
	*) echo "release: \"$1\" is no option; see --help" >&2 && exit 2 ;;
	esac
done
say() { printf 'release: %s\n' "$*" >&2; }
command -v jq >/dev/null || { say "needs jq" && exit 1; }
scripts/bootstrap.sh build
commit=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
mkdir -p "$output"
output=$(cd "$output" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Paths of the folder stand nowhere in what is built, and symbols for a debugger are left out. The build ID is the
# commit: the linker's own would be of those symbols, too, which have the folder's paths.
build() { # FOLDER
	git clone -q . "$work/$1"
	[ ! -e Package.resolved ] || cp Package.resolved "$work/$1/"
	(
		cd "$work/$1"
		swift build -c release --product wgplane --static-swift-stdlib \
			-Xswiftc -gnone -Xswiftc -file-prefix-map -Xswiftc "$PWD=." -Xswiftc -no-clang-module-breadcrumbs \
			-Xcc "-ffile-prefix-map=$PWD=." -Xcc -g0 -Xlinker "--build-id=0x$commit" >"$work/$1.log" 2>&1
	) || { grep error "$work/$1.log" | sort -u | head -20 >&2 && exit 1; }
	strip --strip-all -o "$work/$1.bin" "$(cd "$work/$1" && swift build -c release --show-bin-path)/wgplane"
}

say "building $commit"
build first
if [ -n "$twice" ]; then
	say "building it again, elsewhere"
	build another-and-longer-name
	cmp "$work/first.bin" "$work/another-and-longer-name.bin" >&2 || {
		say "the two builds differ"
		exit 1
	}
	say "the two builds are the same, byte for byte"
fi
install -m 755 "$work/first.bin" "$output/wgplane"
(cd "$work/first" && scripts/deploy/package-deb.sh --binary "$output/wgplane" --output "$output" >/dev/null 2>&1)

# Every package that was built in, with version and commit, and the libraries of the system.
version=$("$output/wgplane" --version)
jq -n --arg version "$version" --arg commit "$commit" \
	--arg created "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" \
	--slurpfile resolved "$work/first/Package.resolved" --arg swift "$(swift --version 2>&1 | head -1)" \
	--arg needed "$(ldd "$output/wgplane" | awk '/=>/ { print $1 }' | sort | tr '\n' ' ')" '
	def package($name; $version; $location; $license): {
		SPDXID: ("SPDXRef-" + ($name | gsub("[^A-Za-z0-9.-]"; "-"))), name: $name, versionInfo: $version,
		downloadLocation: $location, filesAnalyzed: false, licenseConcluded: $license, licenseDeclared: $license,
		copyrightText: "NOASSERTION" };
	[$resolved[0].pins[] | package(.identity; .state.version // .state.revision; "git+\(.location)@\(.state.revision)"; "NOASSERTION")]
	+ [$needed | split(" ")[] | select(. != "") | package(.; "of the system"; "NOASSERTION"; "NOASSERTION")]
	+ [package("swift"; $swift; "NOASSERTION"; "Apache-2.0")] as $parts
	| { spdxVersion: "SPDX-2.3", dataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", name: "wgplane-\($version)",
		documentNamespace: "https://wgplane.io/spdx/\($version)-\($commit)",
		creationInfo: { created: $created, creators: ["Organization: wgplane developers"] },
		packages: ([package("wgplane"; $version; "git+https://wgplane.io/wgplane@\($commit)"; "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)")] + $parts),
		relationships: ([{ spdxElementId: "SPDXRef-DOCUMENT", relationshipType: "DESCRIBES", relatedSpdxElement: "SPDXRef-wgplane" }]
			+ [$parts[] | { spdxElementId: "SPDXRef-wgplane", relationshipType: "DEPENDS_ON", relatedSpdxElement: .SPDXID }]) }' \
	>"$output/wgplane.spdx.json"
(cd "$output" && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS)
cat "$output/SHA256SUMS"
