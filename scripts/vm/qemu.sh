# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154,SC2034
# Debian's stock kernels in qemu. The root is the system's own, read-only by virtiofs, under
# an overlay in memory; the initramfs that mounts it is made here.

prepare_tools() { [ -e "$tools/complete" ] || fetch_tools; }

name_kernel() {
	machine_kernel=$cache/kernel-$kernel
	# Of its init: another checkout's may be another.
	initramfs=$machine_kernel/initramfs-$(sha256sum "$here/vm/initramfs-init" | cut -c 1-12)
	verdict=$machine_kernel/accelerator-$(cat /proc/sys/kernel/random/boot_id)
}

prepare_kernel() {
	if [ ! -e "$machine_kernel/complete" ] || [ -n "$refresh" ]; then fetch_kernel; fi
	make_initramfs
	[ -n "$accel" ] || choose_accelerator 2>/dev/null
}

# qemu 7.2 crashed one machine in two, and later ones come without the virtiofsd that is
# written in C: one of each.
fetch_tools() {
	local new=$cache/tools.new needed file
	# shellcheck source=/dev/null
	. /etc/os-release
	[ "${VERSION_CODENAME:-}" = bookworm ] ||
		die "qemu is taken from Debian 12's packages and needs Debian 12's libraries; this is ${PRETTY_NAME:-another system}"
	say "downloading qemu"
	rm -rf "$new"
	room tools bookworm bookworm-security bookworm-backports
	mapfile -t needed < <(apt-get "${apt[@]}" install -s --no-install-recommends -t bookworm-backports \
		--reinstall qemu-system-x86 qemu-system-data seabios |
		awk '$1 == "Inst" { sub(/^\(/, "", $3); if ($3 ~ /^\[/) sub(/^\(/, "", $4); print $2 "=" ($3 ~ /^\[/ ? $4 : $3) }')
	[ ${#needed[@]} -gt 0 ] || die "apt cannot say what qemu-system-x86 depends on"
	unpack "$new" "${needed[@]}" busybox-static
	unpack "$new/virtiofsd" qemu-system-common/bookworm
	for file in usr/bin/qemu-system-x86_64 bin/busybox virtiofsd/usr/lib/qemu/virtiofsd; do
		[ -x "$new/$file" ] || die "the downloaded packages lack $file"
	done
	touch "$new/complete"
	replace "$new" "$tools"
}

# The newest package whose version begins with the one asked for: kernel image, and modules
# unpacked, so that the machine need not.
fetch_kernel() {
	local new=$machine_kernel.new suites pattern packages image version
	rm -rf "$new"
	case $kernel in
	5.10) suites="bullseye bullseye-security" pattern='5\.10\.' ;;
	6.1) suites="bookworm bookworm-security" pattern='6\.1\.' ;;
	6.12) suites="bookworm bookworm-security bookworm-backports" pattern='6\.12\.' ;;
	newest) suites="trixie-backports sid" pattern='[0-9]+\.[0-9]+\.' ;;
	esac
	# shellcheck disable=SC2086
	room "kernel-$kernel" $suites
	image=$(apt-cache "${apt[@]:1}" search --names-only "^linux-image-${pattern}[0-9]+(-[0-9]+|\+deb[0-9]+)-cloud-amd64\$" |
		awk '{ print $1 }' | sort -V | tail -n 1)
	[ -n "$image" ] || die "the suites $suites have no kernel $kernel for the cloud"
	version=${image#linux-image-}
	if [ -e "$machine_kernel/complete" ] && [ "$(cat "$machine_kernel/release")" = "$version" ]; then return; fi
	say "downloading the kernel $version"
	# Since 7.x the image is a package without files that depends on others.
	packages=$(apt-cache "${apt[@]:1}" depends "$image" | awk '$1 == "Depends:" && $2 ~ /^linux-(binary|modules|base)-[0-9]/ { print $2 }')
	# shellcheck disable=SC2086
	unpack "$new" ${packages:-$image}
	[ -e "$new/lib" ] || ln -s usr/lib "$new/lib"
	mv "$new/boot/vmlinuz-$version" "$new/vmlinuz" 2>/dev/null || mv "$new/lib/modules/$version/vmlinuz" "$new/vmlinuz"
	find "$new/lib/modules/$version" -name '*.ko.xz' -exec xz -d {} +
	"$tools/bin/busybox" depmod -b "$new" "$version" || die "depmod failed for $version"
	echo "$version" >"$new/release"
	touch "$new/complete"
	replace "$new" "$machine_kernel"
}

# busybox, the modules that mount the root with what they depend on, and an init.
make_initramfs() {
	local root=$machine_kernel/initramfs.d module number=100 file
	release=$(cat "$machine_kernel/release")
	[ ! -e "$initramfs" ] || return 0
	rm -rf "$root"
	mkdir -p "$root"/{bin,modules,proc,dev,sys,lower,upper,new}
	cp "$tools/bin/busybox" "$root/bin/busybox"
	ln -s busybox "$root/bin/sh"
	cp "$here/vm/initramfs-init" "$root/init"
	chmod 755 "$root/init"
	for module in virtio_pci virtiofs overlay; do
		dependencies "$module"
	done | awk '!seen[$0]++' | while read -r file; do
		cp "$machine_kernel/lib/modules/$release/$file" "$root/modules/$number-${file##*/}"
		number=$((number + 1))
	done
	(cd "$root" && find . | "$tools/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$initramfs.new"
	mv "$initramfs.new" "$initramfs"
	rm -rf "$root"
}

# The files of a module and of all it depends on, in the order of loading; none if it is built in.
dependencies() {
	awk -v name="$1" '
		{ file = $1; sub(/:$/, "", file); base = file; sub(/.*\//, "", base); sub(/\.ko$/, "", base); gsub(/-/, "_", base)
		  path[base] = file; needs[file] = ""; for (i = 2; i <= NF; i++) needs[file] = $i " " needs[file] }
		END { if (name in path) { n = split(needs[path[name]], list, " "); for (i = 1; i <= n; i++) print list[i]; print path[name] } }
	' "$machine_kernel/lib/modules/$release/modules.dep"
}

qemu() {
	LD_LIBRARY_PATH=$tools/usr/lib/x86_64-linux-gnu:$tools/lib/x86_64-linux-gnu \
		exec "$tools/usr/bin/qemu-system-x86_64" -L "$tools/usr/share/qemu" -L "$tools/usr/share/seabios" \
		-M q35 -nodefaults -no-user-config -display none -no-reboot -net none \
		-smp "$(nproc)" -m "$memory" \
		-object "memory-backend-memfd,id=memory,size=${memory}M,share=on" -numa node,memdev=memory \
		-kernel "$machine_kernel/vmlinuz" -initrd "$initramfs" "$@"
}
accelerated() {
	case $1 in
	kvm) echo "-accel kvm -cpu host" ;;
	tcg) echo "-accel tcg,thread=multi,tb-size=512 -cpu max,-la57,-pku" ;;
	esac
}
kernel_words="console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable"

# KVM may be there and yet not run a stock kernel (nested, or filtered): tried once a boot and kernel.
choose_accelerator() {
	local found=tcg log machine
	[ ! -e "$verdict" ] || return 0
	if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
		log=$(mktemp)
		# shellcheck disable=SC2046
		(qemu $(accelerated kvm) -serial stdio -append "$kernel_words wgplane.probe") </dev/null >"$log" 2>&1 &
		machine=$!
		for _ in {1..200}; do
			! grep -q 'wgplane: kernel runs' "$log" || { found=kvm && break; }
			kill -0 $machine 2>/dev/null || break
			sleep 0.1
		done
		kill $machine 2>/dev/null || true
		wait $machine 2>/dev/null || true
		rm -f "$log"
	fi
	rm -f "$machine_kernel"/accelerator-*
	echo $found >"$verdict"
}

# In a mount namespace of its own: the system's files as they are, and none that can be written.
serve_root() {
	mount --rbind / "$exchange/root"
	local place options
	while read -r place options; do
		printf -v place '%b' "${place//\\/\\0}" # blanks are written in octal
		case $place in
		"$exchange/root" | "$exchange/root/"*)
			case ,$options, in *,ro,*) ;; *) mount -o remount,bind,ro "$place" || umount -l "$place" ;; esac
			;;
		esac
	done < <(awk '{ print $5, $6 }' /proc/self/mountinfo)
	exec "$tools/virtiofsd/usr/lib/qemu/virtiofsd" --socket-path="$exchange/socket0" -o "source=$exchange/root" \
		-o cache=always -o sandbox=chroot
}

start_qemu() {
	local number
	mkdir "$exchange/root"
	export exchange tools
	unshare --mount --propagation private bash -euc "$(declare -f serve_root); serve_root" >"$exchange/virtiofsd0" 2>&1 &
	started+=($!)
	"$tools/virtiofsd/usr/lib/qemu/virtiofsd" --socket-path="$exchange/socket1" -o "source=$exchange" \
		-o cache=none -o sandbox=chroot >"$exchange/virtiofsd1" 2>&1 &
	started+=($!)
	for number in 0 1; do
		until [ -S "$exchange/socket$number" ]; do
			kill -0 "${started[$number]}" 2>/dev/null || die "virtiofsd ended: $(tail -n 1 "$exchange/virtiofsd$number")"
			sleep 0.05
		done
	done
	# shellcheck disable=SC2046
	(qemu $(accelerated "$accel") -serial "file:$exchange/console" \
		-chardev "socket,id=root,path=$exchange/socket0" -device vhost-user-fs-pci,chardev=root,tag=root,queue-size=1024 \
		-chardev "socket,id=exchange,path=$exchange/socket1" -device vhost-user-fs-pci,chardev=exchange,tag=exchange \
		-append "$kernel_words wgplane.modules=$machine_kernel/lib/modules wgplane.init=$here/vm/guest-init wgplane.busybox=$tools/bin/busybox" \
		</dev/null >"$exchange/qemu" 2>&1) &
	machine=$!
}
