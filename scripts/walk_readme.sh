#!/usr/bin/env bash
# The commands of README.md in their order, on the demo's tiny model, in a copy of the repository. What is not
# run as it stands, and why, is listed in tests/walk_readme.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements.txt requirements-web.txt requirements-serve.txt requirements-test.txt
python -m tests.walk_readme
