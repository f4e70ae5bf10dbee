#!/usr/bin/env bash
# Riva's road with students made here: one of every kind must pass, three with a wrong class must not.
#
#   examples/riva/self_check.sh BIN      BIN: the folder with this project's python and nemo-tutornet (.venv/bin)
#
# Files and logs stay in build/riva. Minutes on two CPU cores, after the environment is made.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")
bin=$(cd "$1" && pwd)
work=$root/build/riva
rm -rf "$work"
mkdir -p "$work/trained"

refused() {  # refused CLASS WORDS FOLDER: a student of that class, its module in FOLDER, is converted and fails with these words
  local said
  "$bin/python" "$here/make_students.py" retarget "$work/char.nemo" "$1"
  if said=$(PYTHONPATH=$3 "$here/riva_check.sh" "$work/$1.nemo" 2>&1); then
    echo "$said"
    echo "error: a student whose class is $1 passed the check." >&2
    exit 2
  fi
  echo "$said"
  if ! grep -qF "$2" <<<"$said" || [ -e "$work/$1.riva" ]; then
    echo "error: a student whose class is $1 did not fail with '$2', or left an archive." >&2
    exit 2
  fi
  echo "refused, as it must be: $1"
}

echo "making small untrained students of every kind (log: $work/students.log)"
"$bin/python" "$here/make_students.py" models "$work/trained" >"$work/students.log" 2>&1
for student in "$work"/trained/*.nemo; do
  kind=$(basename "$student" .nemo)
  options=()
  # For subwords nemo2riva traces 100,000 frames by default, for which attention needs 10 GB.
  if [ "$kind" = fastconformer ]; then options=(--onnx-opset 19 --max-dim 1000); fi
  "$bin/nemo-tutornet" export "$student" "$work/$kind.nemo" 2>>"$work/students.log"
  "$here/riva_check.sh" "$work/$kind.nemo" "$work/$kind.riva" ${options[@]+"${options[@]}"}
done

# Each of the first two makes nemo2riva return 0.
printf 'from nemo.collections.asr.models import EncDecCTCModel\n\n\nclass CTCModel(EncDecCTCModel):\n    pass\n' >"$work/in_house.py"
refused in_house.CTCModel "obj_cls is in_house.CTCModel" "$work"
refused nemo_tutornet.models.TutorCTCModel "names the class nemo_tutornet.models.TutorCTCModel" "$root"
refused not_installed.CTCModel "nemo2riva did not convert" ""
echo "riva-check: a student of every kind right, three wrong ones refused"
