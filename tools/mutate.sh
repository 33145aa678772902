#!/usr/bin/env bash
# Puts small faults into a copy of the sources, one at a time, and tells which of them no fast test notices.
#   tools/mutate.sh [--sample N] [--seed N] [--room ROOM ...] [--minutes N] [--folder DIR] [--again] [--report]
# Takes about an hour for the default sample; a second call with the same arguments goes on where the first stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/_environment.sh
choose_python
install_package timm,openmmlab,deploy,analysis,dev
"$PYTHON" -c 'import cosmic_ray, coverage' 2>/dev/null || pip_install cosmic-ray coverage
exec "$PYTHON" tools/mutate.py "$@"
