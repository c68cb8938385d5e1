#!/usr/bin/env bash
# Lint, format, types and all tests, in an environment of its own. Arguments go to pytest: bash tests/run.sh -k gpt -x
# The tests run in as many processes as there are cores and memory for (`-n 0`: in one, for --pdb or to see output at once).
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
"$bin/python" -m pytest -n auto --dist loadgroup "$@"
[ ${#failed[@]} -eq 0 ]
