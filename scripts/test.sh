#!/usr/bin/env bash
# Set up and run the tests; arguments go to pytest, for example: bash scripts/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements.txt requirements-web.txt requirements-test.txt

echo "== ruff"
ruff check .
ruff format --check .
echo "== pytest"
python -m pytest "$@"
