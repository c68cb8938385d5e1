#!/usr/bin/env bash
# Lint, format, types and all tests, in an environment of its own. Arguments go to pytest: bash tests/run.sh -k gpt -x
# Without arguments in two processes side by side.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
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
    # Most tests that need several processes, one after another; all others beside them, shown when they are through.
    # Both should take alike: move folders from one to the other where they do not.
    timed() {
        local begin=$SECONDS code=0
        "$bin/python" -m pytest "${@:2}" || code=$?
        echo "== $1 took $((SECONDS - begin)) s"
        return $code
    }
    worlds=(engine kill model parallel parity train)
    others=$(mktemp)
    trap 'rm -f "$others"' EXIT
    timed "pytest of all others" "${worlds[@]/#/--ignore=tests/}" >"$others" 2>&1 &
    timed "pytest of worlds" "${worlds[@]/#/tests/}" || failed+=("pytest of worlds")
    wait $! || failed+=("pytest of all others")
    cat "$others"
fi
if [ ${#failed[@]} -gt 0 ]; then echo "FAILED: $(IFS=';'; echo "${failed[*]}")"; fi
[ ${#failed[@]} -eq 0 ]
