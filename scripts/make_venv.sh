#!/bin/sh
# Creates the virtual environment and installs everything. Python 3.12 comes from the PATH, pyenv or uv.
set -eu
venv="$1"

is_312() { [ -n "${1:-}" ] && "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

find_python() {
    for candidate in python3.12 python3 python \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python \
        "$(command -v uv >/dev/null 2>&1 && uv python find 3.12 2>/dev/null || true)"; do
        if is_312 "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

if ! python="$(find_python)"; then
    echo "srpo-robot needs Python 3.12 and found none on the PATH, in pyenv or in uv." >&2
    echo "Install one, for example: pyenv install 3.12, uv python install 3.12, or apt-get install python3.12-venv" >&2
    exit 1
fi

echo "Creating $venv with $python"
if command -v uv >/dev/null 2>&1; then
    uv="uv"
    uv venv --quiet --clear --python "$python" "$venv"
else
    if ! "$python" -m venv --clear "$venv" 2>/dev/null; then
        echo "$python cannot create environments; install its venv module, for example: apt-get install python3.12-venv" >&2
        exit 1
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.8
    uv="$venv/bin/uv"
fi

echo "Installing srpo-robot and its dependencies (about 6 GB with torch's CUDA libraries; they are not needed to run)"
"$uv" pip install --quiet --python "$venv/bin/python" --constraint constraints.txt --editable ".[dev]"
