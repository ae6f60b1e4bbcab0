# Sourced by run.sh and test.sh: a virtual environment with the given requirements file.
# Sets PYTHON. Installs again only when the requirements have changed, and makes an environment anew
# that has no pip: its making was interrupted, or Debian's python3-venv was missing.
requirements="$1"
export PYTHON="$PWD/.venv/bin/python"

if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
  for candidate in "${BASE_PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      found="$candidate"
      break
    fi
  done
  if [ -z "${found:-}" ]; then
    echo "error: Python 3.11 or newer not found (python3 is $(python3 --version 2>&1)): install it" \
      "or set BASE_PYTHON" >&2
    exit 1
  fi
  "$found" -m venv --clear .venv
fi

stamp=".venv/installed-$(basename "$requirements")"
wanted="$(cat requirements.txt "$requirements")"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "installing $requirements into .venv"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements"
  printf '%s' "$wanted" >"$stamp"
fi
