#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a Debian package of the release build: the program and its units, which are not started.
#
#   scripts/deploy/package-deb.sh [--output FOLDER] [--binary FILE]
#
# Without --binary: builds it first. Prints the package's path.
set -euo pipefail
cd "$(dirname "$0")/../.."
output=. binary=
while [ $# -gt 0 ]; do
	case $1 in
	--output) output=${2:?name a folder} && shift ;;
	--binary) binary=${2:?name a file} && shift ;;
	-h | --help) sed -n '3,7s/^# \{0,1\}//p' "$0" && exit 0 ;;
	*) echo "package-deb: \"$1\" is no option; see --help" >&2 && exit 2 ;;
	esac
	shift
done
command -v dpkg-deb >/dev/null || { echo "package-deb: needs dpkg-deb" >&2 && exit 1; }
if [ -z "$binary" ]; then
	swift build -c release --product wgplane --static-swift-stdlib >&2
	binary=$(swift build -c release --show-bin-path)/wgplane
fi
[ -x "$binary" ] || { echo "package-deb: $binary is no program" >&2 && exit 1; }
version=$("$binary" --version)
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
install -D -m 755 "$binary" "$root/usr/bin/wgplane"
install -D -m 644 -t "$root/usr/lib/systemd/system" scripts/deploy/systemd/wgplane.service scripts/deploy/systemd/wgplane-guard.service
install -D -m 644 LICENSE "$root/usr/share/doc/wgplane/copyright"
install -D -m 644 README.md "$root/usr/share/doc/wgplane/README.md"
mkdir -p "$root/DEBIAN" "$root/etc/wgplane"
cat >"$root/etc/wgplane/agent.env" <<'ENV'
# WGPLANE_DATASTORE=etcd:https://10.0.0.1:2379
# WGPLANE_NODE=node1
ENV
echo /etc/wgplane/agent.env >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<CONTROL
Package: wgplane
Version: $version
Architecture: $architecture
Section: net
Priority: optional
Maintainer: wgplane developers <developers@wgplane.io>
Installed-Size: $(du -ks "$root/usr" | cut -f 1)
Depends: libc6, libstdc++6, libbpf1 | libbpf0, libelf1 | libelf1t64, libsodium23, zlib1g
Recommends: wireguard-go, nftables
Description: encrypts traffic between pods of different nodes
 Node agent and command-line tool: WireGuard peers driven from a datastore (directory, etcd, Kubernetes),
 traffic steered by eBPF programs at TC hooks, or by routes and rules.
CONTROL
cat >"$root/DEBIAN/postinst" <<'POST'
#!/bin/sh
set -e
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# The next agent takes over what runs.
[ -z "$2" ] || systemctl try-restart wgplane.service
POST
cat >"$root/DEBIAN/prerm" <<'PRERM'
#!/bin/sh
set -e
[ "$1" = remove ] || exit 0
[ ! -d /run/systemd/system ] || systemctl stop wgplane.service
# From the datastore that the agent had: others go on sending into the tunnel unless they are told.
set -a
[ ! -r /etc/wgplane/agent.env ] || . /etc/wgplane/agent.env
wgplane cleanup || echo "wgplane: cleanup has failed; see above" >&2
PRERM
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm"
mkdir -p "$output"
package=$output/wgplane_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$package" >&2
echo "$package"
