#!/usr/bin/env bash
# Trains a small CondenseNetV2 on scikit-learn's digits, prunes it in stages, condenses, verifies, exports and measures it.
# First run: 5 to 15 minutes, most of it for installing PyTorch; later runs: about 4 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "The first run takes 5 to 15 minutes, most of it for installing PyTorch; later runs take about 4."
. tools/_environment.sh
choose_python
install_package timm,deploy,analysis
exec "$PYTHON" tools/quickstart.py "$@"
