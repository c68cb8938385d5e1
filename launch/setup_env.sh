#!/usr/bin/env bash
# Makes the virtual environment that megalm runs in: .venv, or $MEGALM_VENV. Quick when there is nothing to do.
#
#   bash launch/setup_env.sh [EXTRA ...]      extras of setup.py, for instance: dev
#
# Picks the CUDA set where nvidia-smi answers, else the CPU set. pip's own settings (index, proxies, wheels) are honoured;
# MEGALM_TORCH_INDEX_URL, if set, is the index for torch alone. PYTHON names the interpreter to build upon.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MEGALM_VENV:-$root/.venv}
stamp=$venv/.megalm-installed

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "setup_env.sh: no Python >= 3.10 found (tried: ${PYTHON:-python3, python3.10 to python3.13});" \
        "install one, or name it in PYTHON" >&2
    return 1
}

make_venv() {
    local python
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo "setup_env.sh: $python lacks the venv module; install it (Debian and Ubuntu: apt install python3-venv)" >&2
        return 1
    fi
    echo "setup_env.sh: making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
}

installed() {
    local extra
    [ "$(sed -n 1p "$stamp" 2>/dev/null)" = "$state" ] || return 1
    for extra in "$@"; do
        sed -n 2p "$stamp" | tr , '\n' | grep -qx "$extra" || return 1
    done
}

set_name=cpu
if nvidia-smi >/dev/null 2>&1; then set_name=cuda; fi
constraints=$root/constraints/$set_name.txt
state="$set_name $root $(cat "$root/setup.py" "$constraints" | cksum)"
if [ -x "$venv/bin/python" ] && installed "$@"; then exit 0; fi

"$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
extras=$({ sed -n 2p "$stamp" 2>/dev/null | tr , '\n'; printf '%s\n' "$@"; } | sed '/^$/d' | sort -u | paste -sd, -)
torch=$(grep '^torch==' "$constraints")

echo "setup_env.sh: installing the $set_name set${extras:+ with $extras} into $venv"
pip=("$venv/bin/python" -m pip install --disable-pip-version-check --quiet)
if [ -n "${MEGALM_TORCH_INDEX_URL:-}" ]; then
    # That index need not have the other packages in the versions pinned here: they come from the usual one, below.
    "${pip[@]}" --no-deps --index-url "$MEGALM_TORCH_INDEX_URL" "$torch"
else
    "${pip[@]}" --constraint "$constraints" "$torch"
fi
"${pip[@]}" --constraint "$constraints" --editable "$root${extras:+[$extras]}"

printf '%s\n%s\n' "$state" "$extras" >"$stamp"
