# Sourced by the other scripts: the project's own .venv with the given requirement files, made where missing.
#
#   source scripts/environment.sh requirements.txt [more files]

fail() {
    echo "error: $*" >&2
    exit 2
}

python="${PYTHON:-python3}"
command -v "$python" >/dev/null || fail "no $python; install Python 3.11 or newer (Debian: apt-get install python3)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old; install Python 3.11 or newer, or name one: PYTHON=python3.12 bash $0"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments (Debian: apt-get install python3-venv)"

[ -x .venv/bin/python ] || { echo "== making .venv" && "$python" -m venv .venv; }
# shellcheck disable=SC1091
source .venv/bin/activate

# Installed again only when a requirement file changes; otherwise nothing here needs a network.
for requirements in "$@"; do
    stamp=".venv/installed-$(python -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()[:16])' "$requirements")"
    if [ ! -e "$stamp" ]; then
        echo "== installing $requirements"
        pip install --quiet --disable-pip-version-check -r "$requirements"
        touch "$stamp"
    fi
done
