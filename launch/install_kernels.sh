#!/usr/bin/env bash
# Installs fused kernels for the CUDA that is present into the environment of launch/setup_env.sh (.venv, or $MEGALM_VENV).
#
#   bash launch/install_kernels.sh [apex] [flash-attn] [transformer-engine] [liger]      default: all of them
#
# Each one is built or downloaded, then verified by `megalm doctor`; one that fails does not stop the others. A summary stands at
# the end. Exit code: 0 all are usable, 1 some are not, 2 there is nothing to do (no CUDA, or a name that is not known).
# MAX_JOBS limits compilers that run at once; APEX_SOURCE names a clone or mirror of apex to build from.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MEGALM_VENV:-$root/.venv}
python=$venv/bin/python

apex_source=${APEX_SOURCE:-https://github.com/NVIDIA/apex}
apex_revision=6424da3b4faa6c8f062da4a48c424fff3f02d42d
known=(apex flash-attn transformer-engine liger)

refuse() {
    echo "install_kernels.sh: $*" >&2
    exit 2
}

# what `megalm doctor` calls it
doctor_name() {
    case $1 in
        apex) echo apex ;;
        flash-attn) echo flash_attn ;;
        transformer-engine) echo transformer_engine ;;
        liger) echo liger_kernel ;;
    esac
}

pip_install() { "$python" -m pip install --disable-pip-version-check --constraint "$root/constraints/cuda.txt" "$@"; }

need_nvcc() {
    if [ -n "$nvcc" ]; then return 0; fi
    echo "no nvcc on the PATH nor under CUDA_HOME: install the CUDA toolkit $cuda that torch was built with" >&2
    return 1
}

install_apex() {
    local sources
    need_nvcc || return 1
    sources=$(mktemp -d) || return 1
    # a shallow fetch of that one revision: what is built is what is named here
    git init --quiet "$sources" &&
        git -C "$sources" fetch --quiet --depth 1 "$apex_source" "$apex_revision" &&
        git -C "$sources" checkout --quiet FETCH_HEAD &&
        APEX_CPP_EXT=1 APEX_CUDA_EXT=1 APEX_PARALLEL_BUILD=${MAX_JOBS:-4} \
            pip_install --no-build-isolation --no-cache-dir --no-deps "$sources"
    local status=$?
    rm -rf "$sources"
    return $status
}

install_flash-attn() { need_nvcc && pip_install --no-build-isolation "flash-attn>=2.7,<3"; }

install_transformer-engine() { pip_install --no-build-isolation "transformer-engine[pytorch]>=2.3"; }

install_liger() { pip_install liger-kernel triton; }

verify() {
    "$python" -m megalm doctor --json | "$python" -c '
import json, sys
row = next(row for row in json.load(sys.stdin)["kernels"] if row["name"] == sys.argv[1])
print("usable, version " + row["version"] if row["usable"] else "not usable: " + row["problem"])
sys.exit(not row["usable"])' "$(doctor_name "$1")"
}

for name in "$@"; do
    case " ${known[*]} " in
        *" $name "*) ;;
        *) refuse "$name is unknown (known: ${known[*]})" ;;
    esac
done
if ! nvidia-smi >/dev/null 2>&1; then refuse "no CUDA here (nvidia-smi does not answer): there is nothing to install for"; fi
if [ ! -x "$python" ]; then refuse "no environment at $venv: run launch/setup_env.sh first"; fi
cuda=$("$python" -c 'import torch; print(torch.version.cuda or "")' 2>/dev/null)
if [ -z "$cuda" ]; then refuse "torch in $venv is built without CUDA: make the environment anew on this machine (launch/setup_env.sh)"; fi
nvcc=$(command -v nvcc || true)
if [ -z "$nvcc" ] && [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc; fi

wanted=("$@")
if [ $# -eq 0 ]; then wanted=("${known[@]}"); fi
echo "install_kernels.sh: CUDA $cuda, nvcc ${nvcc:-not found}, into $venv"
pip_install --quiet ninja packaging psutil setuptools wheel || echo "install_kernels.sh: build tools were not installed" >&2

summary=()
failed=0
for name in "${wanted[@]}"; do
    echo "== $name"
    if ! "install_$name"; then
        summary+=("$(printf '%-20s failed: not installed, see above' "$name")")
        failed=1
    elif verdict=$(verify "$name"); then
        summary+=("$(printf '%-20s %s' "$name" "$verdict")")
    else
        summary+=("$(printf '%-20s failed: %s' "$name" "${verdict:-megalm doctor does not run}")")
        failed=1
    fi
done
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
