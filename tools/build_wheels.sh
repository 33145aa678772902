#!/usr/bin/env bash
# Builds wheels with native kernels for other machines on one Linux machine: ziglang (pip) brings a C++ compiler with the
# libraries of each platform. C++'s library is linked in; auditwheel checks what Linux wheels need.
#   tools/build_wheels.sh [--out FOLDER] [PLATFORM ...]
# Platforms: manylinux2014_x86_64 manylinux2014_aarch64 macosx_13_0_arm64 macosx_13_0_x86_64 win_amd64 (default: all).
# The first run installs 150 MB into build/wheel-tools and takes about 10 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=dist
[ "${1:-}" != --out ] || { OUT=$2 && shift 2; }
[ $# -gt 0 ] || set -- manylinux2014_x86_64 manylinux2014_aarch64 macosx_13_0_arm64 macosx_13_0_x86_64 win_amd64
TOOLS=build/wheel-tools
[ -x $TOOLS/bin/python ] || "${BASE_PYTHON:-python3}" -m venv $TOOLS
PYTHON=$PWD/$TOOLS/bin/python
"$PYTHON" -m pip install --quiet --disable-pip-version-check 'ziglang==0.17.*' 'auditwheel>=6' 'setuptools>=70,<81' wheel
mkdir -p "$OUT"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
"$PYTHON" setup.py --quiet sdist --dist-dir "$WORK" 2> /dev/null  # wheels are built from it: nothing of other builds gets in
for platform in "$@"; do
    echo "== $platform"
    CNV2_PLATFORM=$platform "$PYTHON" -m pip wheel --quiet --no-deps --no-build-isolation -w "$OUT" "$WORK"/*.tar.gz
    wheel=$(ls "$OUT"/cnv2_plugin-*-py3-none-"$platform".whl)
    case $platform in
        manylinux2014_*)
            needs=$("$PYTHON" -m auditwheel show "$wheel" | tr '\n' ' ')
            grep -q "platform tag: \"manylinux_2_17_${platform#manylinux2014_}\"" <<< "$needs" || { echo "$needs" >&2; exit 1; } ;;
    esac
    echo "$wheel"
done
