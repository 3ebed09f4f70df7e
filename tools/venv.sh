#!/bin/sh
# Makes .venv with a Python that the locked requirements serve. `make setup` calls it.
set -eu

is_served() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

make_venv() {
    for python in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if is_served "$python"; then
            "$python" -m venv .venv
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        echo "make: PYTHON=$PYTHON is not Python 3.11, 3.12 or 3.13" >&2
        exit 1
    fi
    if command -v uv >/dev/null; then
        echo "make: no Python 3.11, 3.12 or 3.13 on PATH; uv gets one" >&2
        uv run --quiet --no-project --python 3.11 python -m venv .venv
        return
    fi
    cat >&2 <<'END'
make: no Python 3.11, 3.12 or 3.13 on PATH. Any of these helps:
  Debian 12 and 13, Ubuntu 24.04:  apt-get install python3 python3-venv
  without root:                    install uv (https://docs.astral.sh/uv), which gets a Python by itself
  a Python elsewhere:              make serve PYTHON=/path/to/python3.11
  no Python at all:                docker build -t infalign .   and   docker run -p 8000:8000 infalign
END
    exit 1
}

make_venv
if ! .venv/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
    echo "make: vLLM needs libnuma (Debian, Ubuntu: apt-get install libnuma1)" >&2
    exit 1
fi
