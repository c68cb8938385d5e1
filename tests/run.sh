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
    # Tests of worlds of two to eight processes, one after another; all others beside them, shown when they are through.
    worlds=(checkpoint convert engine generate kill model parallel parity plan train)
    others=$(mktemp)
    trap 'rm -f "$others"' EXIT
    "$bin/python" -m pytest "${worlds[@]/#/--ignore=tests/}" >"$others" 2>&1 &
    "$bin/python" -m pytest "${worlds[@]/#/tests/}" || failed+=("pytest of worlds")
    wait $! || failed+=("pytest of all others")
    cat "$others"
fi
if [ ${#failed[@]} -gt 0 ]; then echo "FAILED: $(IFS=';'; echo "${failed[*]}")"; fi
[ ${#failed[@]} -eq 0 ]
