# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154,SC2034
# User-mode Linux, built once from Debian's kernel source: a process of this system that is a
# kernel of its own. Fast to start and to forward; never the proof for a stock kernel.

# What the default configuration lacks for the lab's networks and for us.
uml_on=(
	HOSTFS TMPFS OVERLAY_FS BPF_SYSCALL CGROUPS CGROUP_BPF NAMESPACES NET_NS
	NET PACKET UNIX INET IPV6 NETDEVICES WIREGUARD VETH TUN DUMMY BRIDGE VLAN_8021Q BONDING VXLAN
	IP_ADVANCED_ROUTER IP_MULTIPLE_TABLES IPV6_MULTIPLE_TABLES
	NET_SCHED NET_SCH_INGRESS NET_SCH_NETEM NET_CLS NET_CLS_ACT NET_CLS_BPF NET_CLS_MATCHALL NET_CLS_FLOWER NET_ACT_GACT
	NETFILTER NETFILTER_ADVANCED NETFILTER_INGRESS NETFILTER_EGRESS NETFILTER_NETLINK NF_CONNTRACK NF_NAT
	NF_TABLES NF_TABLES_INET NF_TABLES_NETDEV NF_TABLES_IPV4 NF_TABLES_IPV6 NFT_CT NFT_NAT NFT_MASQ NFT_REJECT NFT_COMPAT NFT_LIMIT NFT_LOG NFT_FIB_IPV4 NFT_FIB_IPV6
	NETFILTER_XTABLES NETFILTER_XT_MATCH_CONNTRACK NETFILTER_XT_MATCH_COMMENT NETFILTER_XT_MATCH_MARK NETFILTER_XT_MARK NETFILTER_XT_MATCH_ADDRTYPE NETFILTER_XT_MATCH_MULTIPORT
	NETFILTER_XT_TARGET_MASQUERADE NETFILTER_XT_NAT IP_NF_IPTABLES IP_NF_FILTER IP_NF_NAT IP_NF_MANGLE IP_NF_RAW
	IP6_NF_IPTABLES IP6_NF_FILTER IP6_NF_NAT IP6_NF_MANGLE IP6_NF_RAW
	PROC_SYSCTL INOTIFY_USER
	DEBUG_INFO_DWARF5 DEBUG_INFO_BTF # the verifier asks for a packet's type by it
)
uml_off=(MODULES DEBUG_INFO_NONE UML_NET_VDE UML_SOUND SOUND EXT4_FS HID_SUPPORT INPUT WLAN)

name_uml() {
	local id
	id=$(printf '%s\n' "${uml_on[@]}" "${uml_off[@]}" "$(declare -f compile_uml)" | sha256sum | cut -c 1-12)
	uml=$cache/uml-$id/linux
}

prepare_uml() {
	[ -x "$uml" ] && [ -z "$refresh" ] || build_uml
}

compile_uml() {
	local name
	set -e
	cd "$1"
	tar -xJf usr/src/linux-source-6.12.tar.xz --strip-components=1
	rm -rf usr/src
	# Stocks of map entries are filled up at the next tick of the clock.
	sed -i '/^config HZ$/,/default/s/default 100/default 1000/' arch/um/Kconfig
	# And a stock begins full, not with one: here no interrupt of a stock's own fills it.
	grep -q 'alloc_bulk(c, cnt, cpu_to_node(cpu), false)' kernel/bpf/memalloc.c
	sed -i 's/alloc_bulk(c, cnt, cpu_to_node(cpu), false)/alloc_bulk(c, 256, cpu_to_node(cpu), false)/' kernel/bpf/memalloc.c
	make ARCH=um x86_64_defconfig
	for name in "${uml_off[@]}"; do scripts/config -d "$name"; done
	for name in "${uml_on[@]}"; do scripts/config -e "$name"; done
	make ARCH=um olddefconfig
	for name in "${uml_on[@]}"; do
		grep -q "^CONFIG_$name=y" .config || { echo "CONFIG_$name cannot be switched on"; exit 1; }
	done
	make ARCH=um -j "$(nproc)" linux
}

build_uml() {
	local new=$cache/uml.new source log=$cache/uml-build.log tool missing=()
	for tool in gcc make flex bison m4 bc xz pahole; do command -v "$tool" >/dev/null || missing+=("$tool"); done
	rm -rf "$new" "$new.built"
	mkdir -p "$new"
	if [ ${#missing[@]} -gt 0 ]; then
		die "building user-mode Linux needs ${missing[*]}; run scripts/bootstrap.sh uml"
	fi
	say "downloading the source of Linux 6.12"
	room uml bookworm bookworm-security bookworm-backports
	unpack "$new" linux-source-6.12
	say "building user-mode Linux, once; about five minutes on two processors"
	compile_uml "$new" >"$log" 2>&1 &
	wait $! || { tail -n 20 "$log" >&2; die "building failed; the whole log is $log"; }
	mkdir "$new.built"
	strip -o "$new.built/linux" "$new/linux"
	cp "$new/.config" "$new.built/config"
	replace "$new.built" "${uml%/*}"
	rm -rf "$new"
}

start_uml() {
	(exec "$uml" "mem=${memory}M" "uml_dir=$exchange/uml-dir/" umid=vm rootfstype=hostfs hostfs=/ ro con=null con0=null,fd:3 panic=-1 \
		init="$here/vm/uml-init" "WGPLANE_EXCHANGE=$exchange" "WGPLANE_BUSYBOX=$tools/bin/busybox" \
		</dev/null 3>"$exchange/console" >"$exchange/uml" 2>&1) &
	machine=$!
}
