#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real kube-apiserver for the tests, built once from Debian's source package, which has no binary one.
# Prints where it is. About six minutes on two processors, 2.5 GB of disk meanwhile, 110 MB after.
#
#   scripts/servers/kube-apiserver.sh            builds it where it is missing
#   scripts/servers/kube-apiserver.sh --path     only prints where it is or would be
#
# It is kept in $WGPLANE_SERVER_CACHE, by default ~/.cache/wgplane-servers. The archive is the one that the system's
# own apt has, or $WGPLANE_DEBIAN_MIRROR.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "kube-apiserver: $*" >&2 && exit 1; }
say() { echo "kube-apiserver: $*" >&2; }

cache=${WGPLANE_SERVER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/wgplane-servers}
# Another recipe makes another one; the link names the newest.
recipe=$(sed -n '/^compile() {/,/^}/p' "$here/kube-apiserver.sh" | sha256sum | cut -c 1-12)
binary=$cache/kube-apiserver-$recipe/kube-apiserver
case ${1:-} in
'') ;;
--path) echo "$binary" && exit 0 ;;
-h | --help) sed -n '3,11s/^# \{0,1\}//p' "$0" && exit 0 ;;
*) die "\"$1\" is no option; see --help" ;;
esac
mkdir -p "$cache"
exec {lock}>"$cache/kube-apiserver.lock"
flock "$lock"
name_newest() { ln -sfn "kube-apiserver-$recipe" "$cache/kube-apiserver"; }
[ ! -x "$binary" ] || { name_newest && echo "$binary" && exit 0; }

for tool in patch tar xz; do command -v $tool >/dev/null || die "needs $tool; run scripts/bootstrap.sh"; done
# shellcheck source=scripts/vm/debian.sh
. "$here/../vm/debian.sh"

new=$cache/new log=$cache/kube-apiserver.log
rm -rf "$new"
mkdir "$new"
trap 'rm -rf "$new"' EXIT
say "downloading the source of Kubernetes and Go 1.19"
room kubernetes bookworm
sed 's/^deb /deb-src /' "$cache/apt/kubernetes/sources.list" >"$new/sources.list"
cat "$new/sources.list" >>"$cache/apt/kubernetes/sources.list"
apt-get "${apt[@]}" update >&2 || die "the archive has no sources"
(cd "$new" && apt-get "${apt[@]}" source --download-only kubernetes) >"$log" 2>&1 ||
	{ tail -n 5 "$log" >&2 && die "cannot download the source"; }
unpack "$new/go" golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev

compile() {
	set -e
	local go=$new/go/usr/lib/go-1.19 tree=$new/path/src/k8s.io/kubernetes name list
	mkdir -p "$tree"
	tar -xzf "$new"/kubernetes_*.orig.tar.gz -C "$tree" --strip-components=1
	tar -xJf "$new"/kubernetes_*.debian.tar.xz -C "$tree"
	while read -r name; do
		case $name in '' | '#'*) ;; *) patch -d "$tree" -p1 -s -f <"$tree/debian/patches/$name" ;; esac
	done <"$tree/debian/patches/series"
	# The one of its vendor folder is broken from Go 1.18 on.
	rm -rf "$tree/vendor/github.com/modern-go/reflect2"
	cp -r "$new/go/usr/share/gocode/src/github.com/modern-go/reflect2" "$tree/vendor/github.com/modern-go/"
	export GOROOT=$go GOPATH=$new/path GOCACHE=$new/cache GO111MODULE=off CGO_ENABLED=0 GOFLAGS='' GOTMPDIR=$new
	cd "$tree"
	# The one generated file that is not in the source.
	"$go/bin/go" build -o "$new/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
	list=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg staging/src/k8s.io vendor/k8s.io |
		grep -vE 'testdata|/examples/|code-generator|/abac/|_test\.go|zz_generated' | xargs -n 1 dirname | sort -u |
		sed -e 's|^staging/src/||' -e 's|^vendor/||' -e 's|^pkg/|k8s.io/kubernetes/pkg/|' | sort -u | paste -sd,)
	"$new/openapi-gen" --logtostderr -O zz_generated.openapi -p k8s.io/kubernetes/pkg/generated/openapi \
		-h /dev/null -r "$new/violations" --output-base "$new/path/src" -i "$list"
	"$go/bin/go" build -o "$new/kube-apiserver" \
		-ldflags "-s -w $(for package in vendor/k8s.io/component-base/version vendor/k8s.io/client-go/pkg/version pkg/version; do
			for pair in gitVersion=v1.20.2 gitMajor=1 gitMinor=20; do printf -- '-X k8s.io/kubernetes/%s.%s ' $package $pair; done
		done)" \
		./cmd/kube-apiserver
}
say "building, once; about six minutes on two processors"
(compile) >"$log" 2>&1 || { tail -n 20 "$log" >&2 && die "building failed; the whole log is $log"; }
mkdir -p "${binary%/*}"
mv "$new/kube-apiserver" "$binary"
name_newest
echo "$binary"
