#!/usr/bin/env bash
# Installs everything (timm, OpenMMLab, exporters, test tools) and runs all tests, the fast ones first.
# First run: about 5 minutes of installing (17 where mmcv must be built) and up to an hour of tests on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "The first run installs for 5 to 20 minutes; the tests take up to an hour on 2 cores."
. tools/_environment.sh
choose_python
DEBIAN=()
[ -d /usr/share/datasets/fashion-mnist ] || DEBIAN+=(dataset-fashion-mnist)
command -v chromium > /dev/null || DEBIAN+=(chromium)
if [ ${#DEBIAN[@]} -gt 0 ] && command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    say "Installing from Debian: ${DEBIAN[*]}"
    apt-get update -qq > /dev/null || true
    for package in "${DEBIAN[@]}"; do
        apt-get install -y -qq "$package" > /dev/null || echo "$package is not available; the tests do without"
    done
fi
install_package timm,openmmlab,deploy,analysis,dev,docs
say "Style"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
export OMP_NUM_THREADS=1  # two test processes share the cores
say "Fast tests"
"$PYTHON" -m pytest -q -n 2 --durations=15 "$@"
say "Slow tests"
"$PYTHON" -m pytest -q -n 2 --durations=15 -m slow "$@"
