# Sourced by run_tests.sh after _environment.sh: the stacks besides today's OpenMMLab.
# Each has an environment of its own, .venv-<stack>, with the exact versions of requirements/stacks/<stack>.txt.

UNAVAILABLE=75 # exit code where Python or the packages cannot be had; everything else that fails is our fault

# stack_settings NAME: the version of Python and the extras of this package.
stack_settings() {
    case "$1" in
        oldest) STACK_PYTHON=3.10 EXTRAS=timm,deploy,analysis ;;
        timm-only) STACK_PYTHON=3.11 EXTRAS=timm,transformers ;;
        onedl) STACK_PYTHON=3.11 EXTRAS=timm,onedl,deploy,analysis ;;
        *)
            echo "The stack is '$1'; it may be openmmlab, onedl, oldest or timm-only." >&2
            exit 2
            ;;
    esac
}

# find_python VERSION: prints the path of a Python of exactly that version: BASE_PYTHON, one on PATH, or pyenv's.
find_python() {
    local candidate
    for candidate in "${BASE_PYTHON:-}" "python$1" python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if [ -n "$candidate" ] && "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2> /dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# install_stack NAME: makes the environment and installs the checkout, editable, once for each state of the requirements.
install_stack() {
    local folder=$ROOT/.venv-$1 pins=$ROOT/requirements/stacks/$1.txt base state
    stack_settings "$1"
    PYTHON=$folder/bin/python
    CONSTRAINTS=(-c "$pins")
    state=$(requirements_state)
    if [ -f "$folder/.cnv2-stack" ] && [ "$(cat "$folder/.cnv2-stack")" = "$state" ]; then
        return
    fi
    if [ ! -x "$PYTHON" ]; then
        if ! base=$(find_python "$STACK_PYTHON"); then
            echo "The stack $1 needs Python $STACK_PYTHON: put python$STACK_PYTHON on PATH, install it with pyenv, or set BASE_PYTHON to it." >&2
            exit $UNAVAILABLE
        fi
        say "Making .venv-$1"
        "$base" -m venv "$folder"
    fi
    say "Installing the packages of the stack $1 (the first time: PyTorch, 2 to 10 minutes and 6 GB)"
    if ! install_pins "$pins"; then
        echo "The packages of requirements/stacks/$1.txt could not be installed; the lines above say why." >&2
        exit $UNAVAILABLE
    fi
    # Offline: what our own requirements ask for must be among the versions of the stack.
    pip_install --no-index --no-build-isolation -e "$ROOT[$EXTRAS]"
    echo "$state" > "$folder/.cnv2-stack"
}

# install_pins FILE: all of the file; mmcv's fork comes last, as its source needs PyTorch to build.
install_pins() {
    local mmcv
    pip_install 'setuptools<81' wheel || return
    grep -v '^onedl-mm' "$1" > "$folder/pins.txt"
    pip_install -r "$folder/pins.txt" || return
    mmcv=$(grep '^onedl-mmcv==' "$1") || return 0
    install_mmcv "$mmcv" || return
    pip_install --no-build-isolation -r "$1"
}
