#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what building, testing and the demo need, from Debian's packages. Does nothing
# when all of it is there. Needs root for installing. Swift 6.2 or later must be there already.
# scripts/bootstrap.sh uml: what building user-mode Linux needs, too.
set -euo pipefail

packages=(
	libbpf-dev libelf-dev zlib1g-dev libsodium-dev pkg-config   # to build
	wireguard-go wireguard-tools iproute2                       # to run
	tcpdump netcat-openbsd iputils-ping jq nftables iptables bpftool procps bsdextrautils util-linux strace       # to show and to look
	nfdump tshark openssl curl prometheus chromium ca-certificates # to read what is exported and shown
	clang-format                                                # to check
	xz-utils debian-archive-keyring                             # for virtual machines
	etcd-server etcd-client patch                               # datastores for tests and labs, one of which is built
)
# Whoever has another package of kubectl keeps it.
command -v kubectl >/dev/null || packages+=(kubernetes-client)
# For helm, and to check units.
python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
command -v systemd-analyze >/dev/null || packages+=(systemd)
[ "${1:-}" != uml ] || packages+=(gcc make flex bison m4 bc dwarves)

command -v swift >/dev/null || {
	echo "bootstrap: swift is not installed; install Swift 6.2 or later from https://swift.org/install" >&2
	exit 1
}

missing=()
for package in "${packages[@]}"; do
	dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0

if [ "$(id -u)" != 0 ]; then
	echo "bootstrap: these packages are missing, and installing needs root: ${missing[*]}" >&2
	exit 1
fi
echo "bootstrap: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
