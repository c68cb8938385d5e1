#!/usr/bin/env bash
# Lint, format, types and all tests, in an environment of its own. Arguments go to pytest: bash tests/run.sh -k gpt -x
# Without arguments in three processes side by side.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONDONTWRITEBYTECODE  # hundreds of processes import the package: what one of them compiled, the others read
bash launch/setup_env.sh dev
bin=${MEGALM_VENV:-.venv}/bin

failed=()
check() {
    echo "== $*"
    "$bin/$1" "${@:2}" || failed+=("$*")
}
check ruff check .
check ruff format --check .
check mypy megalm
echo "== pytest $*"
if [ ${#failed[@]} -gt 0 ]; then echo "FAILED before the tests: $(IFS=';'; echo "${failed[*]}")"; fi
if [ $# -gt 0 ]; then
    "$bin/python" -m pytest "$@" || failed+=("pytest")
else
    # Three groups side by side, which should take alike: move folders from one to the other where they do not. Jobs of a
    # cluster wait most of the time, and what follows them needs one process; worlds are of several; and there are all others.
    timed() {
        local begin=$SECONDS code=0
        "$bin/python" -m pytest "${@:2}" || code=$?
        echo "== $1 took $((SECONDS - begin)) s"
        return $code
    }
    jobs=(cluster slurm corpus dataset)
    worlds=(engine faults kill model parallel parity train watch)
    outputs=$(mktemp -d)
    trap 'rm -rf "$outputs"' EXIT
    timed "pytest of jobs" "${jobs[@]/#/tests/}" >"$outputs/jobs" 2>&1 &
    jobs_process=$!
    timed "pytest of all others" $(printf -- '--ignore=tests/%s ' "${jobs[@]}" "${worlds[@]}") >"$outputs/others" 2>&1 &
    others_process=$!
    timed "pytest of worlds" "${worlds[@]/#/tests/}" || failed+=("pytest of worlds")
    wait $others_process || failed+=("pytest of all others")
    wait $jobs_process || failed+=("pytest of jobs")
    cat "$outputs/jobs" "$outputs/others"
fi
if [ ${#failed[@]} -gt 0 ]; then echo "FAILED: $(IFS=';'; echo "${failed[*]}")"; fi
[ ${#failed[@]} -eq 0 ]
