# Sourced by quickstart.sh and run_tests.sh: gives $PYTHON with this package and the named extras installed.
# An active environment with torch >= 2.4 is used as it is; otherwise .venv is made in the checkout.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\n== %s\n' "$1"; }

has_torch() {
    "$1" -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 4))' 2>/dev/null
}

choose_python() {
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && has_torch python; then
        PYTHON=$(command -v python)
        CONSTRAINTS=()
        say "Using the active environment: $(dirname "$(dirname "$PYTHON")")"
        return
    fi
    if [ ! -x "$ROOT/.venv/bin/python" ]; then
        local base=${BASE_PYTHON:-python3}
        if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            echo "Python 3.10 or newer is needed, but '$base' is $("$base" --version 2>&1); set BASE_PYTHON to a newer one." >&2
            exit 1
        fi
        say "Making .venv"
        "$base" -m venv "$ROOT/.venv"
    fi
    PYTHON=$ROOT/.venv/bin/python
    CONSTRAINTS=(-c "$ROOT/requirements/tested.txt")
}

pip_install() {
    "$PYTHON" -m pip install --quiet --disable-pip-version-check "${CONSTRAINTS[@]}" "$@"
}

# requirements_state: changes with everything that an installation depends on.
requirements_state() {
    cd "$ROOT"
    cat requirements/*.txt requirements/stacks/*.txt setup.py cnv2_plugin/kernels/csrc/* | cksum
    echo "$ROOT"
}

# install_package EXTRAS: installs the checkout, editable, once for each state of the requirements.
install_package() {
    local stamp state
    stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.cnv2-${1//,/-}
    state=$(requirements_state)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ]; then
        return
    fi
    say "Installing packages (the first time: PyTorch, 2 to 10 minutes)"
    pip_install 'setuptools<81' wheel
    has_torch "$PYTHON" || pip_install torch torchvision
    [[ ",$1," != *,openmmlab,* ]] || install_mmcv
    pip_install --no-build-isolation -e "$ROOT[$1]"
    echo "$state" > "$stamp"
}

# install_mmcv [REQUIREMENT]: mmcv has no wheel for current PyTorch: its source asks for C++17, PyTorch's headers need C++20.
install_mmcv() {
    local build requirement=${1:-mmcv==2.1.0}
    "$PYTHON" -c 'import mmcv.ops' 2>/dev/null && return
    pip_install --only-binary "${requirement%%==*}" "$requirement" 2>/dev/null && return
    say "Building $requirement from source (about 12 minutes on 2 cores)"
    build=$(mktemp -d)
    printf '#!/bin/sh\nexec g++ "$@" -std=c++20 -g0 -O2\n' > "$build/cxx"
    chmod +x "$build/cxx"
    pip_install ninja psutil numpy
    CXX=$build/cxx MMCV_WITH_OPS=1 pip_install --no-build-isolation --no-binary "${requirement%%==*}" "$requirement"
    rm -r "$build"
}
