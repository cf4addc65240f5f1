# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154
# Debian's packages, downloaded and unpacked, never installed. Each set of suites has an apt
# state of its own below the cache; the system's keys and proxy settings are used, its sources
# and its package state are only read.

# The archive's address ('' or '-security'), as the system's own apt has it.
mirror() {
	local label=Debian given=${WGPLANE_DEBIAN_MIRROR:-} address
	[ -z "$1" ] || { label=Debian-Security given=${WGPLANE_DEBIAN_SECURITY_MIRROR:-}; }
	[ -z "$given" ] || { echo "$given" && return; }
	address=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
		awk -v label="$label" '$1 == label { print $2; exit }')
	[ -n "$address" ] || die "apt knows no archive labelled '$label'; set WGPLANE_DEBIAN_MIRROR and WGPLANE_DEBIAN_SECURITY_MIRROR"
	echo "$address"
}

# room NAME SUITE...: an apt of its own with these suites; its options are left in $apt.
room() {
	local directory=$cache/apt/$1 suite key=/usr/share/keyrings/debian-archive-keyring.gpg address
	shift
	[ -e "$key" ] || die "$key is missing; install debian-archive-keyring"
	mkdir -p "$directory/state/lists/partial" "$directory/cache/archives/partial"
	for suite in "$@"; do
		case $suite in *-security) address=$(mirror -security) ;; *) address=$(mirror '') ;; esac
		[ -n "$address" ] || exit 125
		echo "deb [signed-by=$key] $address $suite main"
	done >"$directory/sources.list"
	# The system's settings for downloading, and none of its hooks.
	mkdir -p "$directory/parts"
	{
		apt-config dump 2>/dev/null | grep '^Acquire::' || true
		echo "Dir::Etc::parts \"$directory/parts\"; Dir::Etc::main \"/dev/null\";"
	} >"$directory/apt.conf"
	export APT_CONFIG=$directory/apt.conf
	apt=(-qq -o Dir::State="$directory/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$directory/cache"
		-o Dir::Etc::sourcelist="$directory/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
	apt-get "${apt[@]}" update >&2 || die "the suites $* cannot be read from $(mirror ''); is the network there?"
}

# unpack INTO PACKAGE...: downloads from the room at hand and unpacks.
unpack() {
	local into=$1 downloads
	shift
	# Those of an earlier run that was cut off; one at a time prepares a part.
	downloads=$cache/download.${into##*/}
	rm -rf "$downloads"
	mkdir "$downloads"
	(cd "$downloads" && apt-get "${apt[@]}" download "$@" >/dev/null) || die "cannot download $*"
	mkdir -p "$into"
	for package in "$downloads"/*.deb; do dpkg -x "$package" "$into" || die "cannot unpack $package"; done
	rm -rf "$downloads"
}
