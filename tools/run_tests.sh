#!/usr/bin/env bash
# Installs everything (timm, OpenMMLab, exporters, test tools) and runs all tests, the fast ones first, or what -m asks for.
#   tools/run_tests.sh [--stack openmmlab|onedl|oldest|timm-only] [--install-only] [arguments of pytest]
# First run: about 5 minutes of installing (17 where mmcv must be built) and up to an hour of tests on 2 cores.
# The stacks besides openmmlab run the fast tests, or what -m asks for, in an environment of their own (docs/stacks.md).
set -euo pipefail
cd "$(dirname "$0")/.."
STACK=openmmlab
INSTALL_ONLY=
while [ $# -gt 0 ]; do
    case "$1" in
        --stack) STACK=${2:-} && shift $(($# > 1 ? 2 : 1)) ;;
        --stack=*) STACK=${1#--stack=} && shift ;;
        --install-only) INSTALL_ONLY=1 && shift ;;
        *) break ;;
    esac
done
. tools/_environment.sh
run_pytest() { "$PYTHON" -m pytest -q -n 2 --dist worksteal -r fEs --durations=15 "$@"; }
export OMP_NUM_THREADS=1  # two test processes share the cores
if [ "$STACK" != openmmlab ]; then
    . tools/_stack.sh
    install_stack "$STACK"
    [ -z "$INSTALL_ONLY" ] || exit 0
    say "Tests of the stack $STACK"
    run_pytest "$@"
    exit
fi
echo "The first run installs for 5 to 20 minutes; the tests take up to an hour on 2 cores."
choose_python
DEBIAN=()
[ -d /usr/share/datasets/fashion-mnist ] || DEBIAN+=(dataset-fashion-mnist)
command -v chromium > /dev/null || DEBIAN+=(chromium)
command -v qemu-aarch64 > /dev/null || DEBIAN+=(qemu-user libc6-arm64-cross)  # for the kernels of ARM64
if [ ${#DEBIAN[@]} -gt 0 ] && command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    say "Installing from Debian: ${DEBIAN[*]}"
    apt-get update -qq > /dev/null || true
    for package in "${DEBIAN[@]}"; do
        apt-get install -y -qq "$package" > /dev/null || echo "$package is not available; the tests do without"
    done
fi
install_package timm,openmmlab,deploy,analysis,dev,docs
export CNV2_ALL_PACKAGES=1  # a test that misses one of them fails
[ -z "$INSTALL_ONLY" ] || exit 0
say "Style"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
for argument in "$@"; do
    if [[ $argument == -m* ]]; then
        say "Tests that -m asks for"
        run_pytest "$@"
        exit
    fi
done
say "Fast tests"
run_pytest "$@"
say "Slow tests"
run_pytest -m slow "$@"
