#!/usr/bin/env bash
# The real nemo2riva on a student, on CPU, and then whether the archive is right.
#
#   examples/riva/riva_check.sh STUDENT.nemo [OUT.riva] [OPTION OF nemo2riva]...
#
# The first run makes an environment in .venv-riva beside the Makefile (VENV_RIVA=DIR: elsewhere): Python 3.10, minutes, 6 GB; an
# interrupted one is completed. OUT.riva (default: STUDENT.riva beside the student) appears only when every check has passed.
# Exit code 0, or 2 with a sentence for each thing that is wrong. nemo2riva's own output goes to OUT.riva.log.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${VENV_RIVA:-$(dirname "$(dirname "$here")")/.venv-riva}

fail() { echo "error: $1" >&2; exit 2; }

find_python() {  # a Python 3.10 with venv, or nothing
  local candidate
  for candidate in "${PYTHON310:-}" python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

environment() {  # makes the environment, unless it is there with these very requirements
  local python wanted=("$here/requirements.txt" "$here/requirements-no-deps.txt" "$here/constraints.txt")
  if cat "${wanted[@]}" | cmp -s - "$venv/.installed"; then return; fi
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    [ -n "$python" ] || fail "no Python 3.10 with venv was found; install one (pyenv install 3.10, or your system's python3.10 and python3.10-venv) or name it with PYTHON310=/path/to/python3.10."
    "$python" -m venv "$venv" || fail "the environment $venv could not be made; remove what is there, or choose another place with VENV_RIVA."
    echo '*' >"$venv/.gitignore"
  fi
  echo "installing nemo2riva into $venv (minutes, 6 GB; once)"
  {
    "$venv/bin/python" -m pip install --quiet -r "${wanted[0]}" -c "${wanted[2]}" &&
      "$venv/bin/python" -m pip install --quiet --no-deps -r "${wanted[1]}"
  } || fail "the packages could not be installed into $venv; read pip's message above and run the same command again."
  cat "${wanted[@]}" >"$venv/.installed"
}

[ $# -ge 1 ] || fail "give the student: examples/riva/riva_check.sh STUDENT.nemo [OUT.riva] [OPTION OF nemo2riva]..."
student=$1
out=${2:-${student%.nemo}.riva}
shift $(($# > 1 ? 2 : 1))
[ -f "$student" ] || fail "there is no file $student; give the .nemo file of an exported student."
[[ $out == *.riva ]] || fail "$out must end in .riva; nemo2riva writes no other name."
mkdir -p "$(dirname "$out")" || fail "the folder of $out cannot be made; choose another place."
environment

temporary=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$temporary"' EXIT
made=$temporary/$(basename "$out")
echo "converting $student (log: $out.log)"
# Without a GPU in sight the network is exported as it is, in float: the BPE schema of nemo2riva asks for autocast.
CUDA_VISIBLE_DEVICES="" "$venv/bin/nemo2riva" --device cpu "$@" --out "$made" "$student" >"$out.log" 2>&1 && code=0 || code=$?
if [ "$code" -ne 0 ] || [ ! -f "$made" ]; then
  reason=$(grep -vE '^[[:space:]]*$' "$out.log" | tail -n 1 | cut -c1-200 || true)
  fail "nemo2riva did not convert $student (exit code $code: $reason); read $out.log."
fi
echo "nemo2riva returned 0, which proves nothing: reading what it wrote"
"$venv/bin/python" "$here/check_riva.py" "$student" "$made"
mv "$made" "$out"
