#!/usr/bin/env bash
# Set up and run all checks and tests. Arguments, where there are any, go to one run of pytest instead of the
# quick and the slow tests, for example: bash scripts/test.sh tests/text
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements.txt requirements-web.txt requirements-serve.txt requirements-modelscope.txt requirements-test.txt

# Some tests train with offload, for which DeepSpeed builds its Adam.
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler (Debian: apt-get install g++)"
[ -f "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
    fail "no Python.h (Debian: apt-get install python3-dev)"

echo "== ruff"
ruff check .
ruff format --check .
echo "== codespell"
codespell
echo "== pyright"
# Its own node, from the wheel, and no query over the network for a newer version.
PYRIGHT_PYTHON_GLOBAL_NODE=0 PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright
if [ $# -gt 0 ]; then
    echo "== pytest $*"
    exec python -m pytest "$@"
fi
echo "== the quick tests, in two processes"
python -m pytest -n 2 --dist worksteal -m "not slow"
# Each starts launchers and servers, which mostly load packages, on one core. The tests of a file stay in one
# process: they share what is costly to make, and those of the README follow each other.
echo "== the slow tests but those of the web page, in two processes"
python -m pytest -n 2 --dist loadfile -m slow --ignore=tests/inference/test_web_browser.py --durations=25
# A browser that waits for a busy machine waits too long.
echo "== the slow tests of the web page"
python -m pytest -m slow tests/inference/test_web_browser.py
