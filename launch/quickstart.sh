#!/usr/bin/env bash
# From nothing to scored masks on the embedded shapes set: set-up, data, training, seeds, dense CRF,
# scores, PNG masks, report. Run it again after an interruption: finished steps are skipped.
#   launch/quickstart.sh [OUT]                     default OUT: quickstart
#   launch/quickstart.sh OUT --set key=value …     the same with other settings (a baseline, …)
set -euo pipefail
if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"
    exit 0
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
out="${1:-quickstart}"
[ $# -gt 0 ] && shift
data="${MORE_SHAPES:-quickstart/data}"
started=$SECONDS
say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

say "drawing the shapes set"
python -m data_tools.shapes "$data/shapes"
for split in train val; do
    python -m data_tools.voc "$data/shapes" "$data/$split" --split "$split"
done

say "training"
bash launch/train.sh configs/shapes_micro.py --train "$data/train" --val "$data/val" \
    --run "$out/run" "$@"

say "seeds: CAM, LAM, decoder"
python -m more localize --run "$out/run" --data "$data/train" --out "$out/run/seeds" \
    --map cam --map lam --map decoder

say "dense CRF"
for map in lam decoder; do
    python -m more refine "$out/run/seeds/$map" --data "$data/train" --out "$out/run/masks/$map"
done
python -m more export "$out/run/masks/lam" --format png --out "$out/masks_png"

say "scores"
for set in seeds/cam seeds/lam masks/lam seeds/decoder masks/decoder; do
    python -m more evaluate "$out/run/$set" --data "$data/train" \
        --save "$out/run/scores/${set/\//_}.json" --json > /dev/null
done
python -m more report --run "$out/run" --data "$data/train"
python -m more scores --run "$out/run"
say "done; open $out/run/report.html, masks are in $out/masks_png"
