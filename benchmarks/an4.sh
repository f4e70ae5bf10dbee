#!/usr/bin/env bash
# The AN4 table of the README: a teacher, an undistilled student and five recipes of distillation, all students for the same epochs.
#
#   benchmarks/an4.sh MANIFESTS OUTPUT [EPOCHS] [SEED]      JOBS=2 trains two students side by side
#
# MANIFESTS holds an4_train.jsonl, an4_valid.jsonl and an4_test.jsonl (see the README). What is finished is not run again, and an
# interrupted run resumes. Validation figures are printed first; the test set is read once, at the end.
set -euo pipefail
manifests=$(realpath "$1"); mkdir -p "$2"; output=$(realpath "$2"); epochs=${3:-20}; seed=${4:-1}
cd "$(dirname "$0")/.."
unset NEMO_EXPM_VERSION  # would move each run into a dated folder
# One thread a run where several run side by side.
if [ "${JOBS:-1}" -gt 1 ]; then export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1; fi

train() {  # train DIR NAME CONFIG OVERRIDE...: one run of the example script, unless it is done
  local folder=$1 name=$2 config=$3; shift 3
  [ -f "$folder/$name/checkpoints/$name.nemo" ] && return
  echo "training $name (log: $folder/$name.log)"
  mkdir -p "$folder"
  python examples/speech_to_text_ctc_tutornet.py --config-path=../conf/small --config-name="$config" \
    model.train_ds.manifest_filepath="$manifests/an4_train.jsonl" \
    model.validation_ds.manifest_filepath="$manifests/an4_valid.jsonl" \
    exp_manager.exp_dir="$folder" exp_manager.name="$name" trainer.enable_progress_bar=false seed="$seed" "$@" \
    >>"$folder/$name.log" 2>&1
}

student() {  # student RECIPE: its overrides
  local rkd=$((epochs / 4)) teacher=model.tutor.teacher.model_path=$output/teacher/checkpoints/teacher.nemo
  local both="[{name:rkd,epochs:$rkd,weights:{rkd:1.0}},{name:skd,weights:{ctc:1.0,skd:0.25}}]"
  local skd="[{name:skd,weights:{ctc:1.0,skd:0.25}}]"
  case $1 in
    undistilled) set -- "$1" model.tutor=null ;;
    skd_l2) set -- "$1" "$teacher" "model.tutor.stages=$skd" model.tutor.skd.divergence=l2 ;;
    skd_kl) set -- "$1" "$teacher" "model.tutor.stages=$skd" model.tutor.skd.divergence=kl ;;
    rkd_cold_skd_l2) set -- "$1" "$teacher" "model.tutor.stages=$both" model.tutor.skd.divergence=l2 model.tutor.rkd.warm_start_decoder=false ;;
    rkd_skd_l2) set -- "$1" "$teacher" "model.tutor.stages=$both" model.tutor.skd.divergence=l2 ;;
    rkd_skd_kl) set -- "$1" "$teacher" "model.tutor.stages=$both" model.tutor.skd.divergence=kl ;;
  esac
  local name=$1; shift
  train "$output/$epochs-epochs-seed-$seed" "$name" quartznet_small trainer.max_epochs="$epochs" "$@"
}

export -f train student; export manifests output epochs seed
recipes=${RECIPES:-undistilled skd_l2 skd_kl rkd_cold_skd_l2 rkd_skd_l2 rkd_skd_kl}

# The teacher hears every utterance at many speeds and noise levels: 0.6 hours are little for a Conformer.
train "$output" teacher conformer_ctc_small trainer.max_epochs="${TEACHER_EPOCHS:-90}" \
  '+model.train_ds.augmentor={speed:{prob:0.8,sr:16000,resample_type:scipy,min_speed_rate:0.85,max_speed_rate:1.15,num_rates:7},white_noise:{prob:0.5,min_level:-80,max_level:-50}}'
printf '%s\n' $recipes | xargs -P "${JOBS:-1}" -I{} bash -euo pipefail -c 'student {}'

models=("$output/teacher/checkpoints/teacher.nemo")
for recipe in $recipes; do models+=("$output/$epochs-epochs-seed-$seed/$recipe/checkpoints/$recipe.nemo"); done
for split in valid test; do
  echo "== $split"
  nemo-tutornet evaluate "${models[@]}" --manifest "$manifests/an4_$split.jsonl" --json \
    >"$output/$epochs-epochs-seed-$seed/$split.json" 2>/dev/null
  python - "$output/$epochs-epochs-seed-$seed/$split.json" <<'PRINT'
import json, pathlib, sys
rows = json.load(open(sys.argv[1]))
base = next((r["wer"] for r in rows if "undistilled" in r["model"]), None)
for row in rows:
    name = pathlib.Path(row["model"]).stem
    change = f"{100 * (row['wer'] / base - 1):+.0f} %" if base else ""
    print(f"{name:18} WER {100 * row['wer']:6.2f} % ({100 * row['wer_low']:.2f} - {100 * row['wer_high']:.2f})  {change}")
PRINT
done
