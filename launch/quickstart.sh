#!/usr/bin/env bash
# From nothing to masks and a segmenter on the embedded shapes set: set-up, data, training on tags,
# seeds, dense CRF, PNG masks, training on the masks, its fully supervised reference, scores, report. Run it again after an interruption: finished steps are skipped.
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
export MORE_NEXT=off  # the next command of each stage stands here
say() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - started)); }

say "drawing the shapes set"
python -m data_tools.shapes "$data/shapes"
for split in train val; do
    python -m data_tools.voc "$data/shapes" "$data/$split" --split "$split"
done

say "stage one: training on tags"
bash "$MORE_LAUNCH/train.sh" configs/shapes_micro.py --train "$data/train" --val "$data/val" \
    --run "$out/run" "$@"

say "seeds: CAM, LAM"
python -m more localize --run "$out/run" --data "$data/train" --out "$out/run/seeds" \
    --map cam --map lam

say "dense CRF"
python -m more refine "$out/run/seeds/lam" --data "$data/train" --out "$out/run/masks/lam" \
    --threshold auto
python -m more export "$out/run/masks/lam" --format png --out "$out/masks_png"

# The masks train the network for new pictures; true masks the reference to hold it against.
for stage in two true; do
    masks="$out/run/masks/lam"
    [ "$stage" = two ] || masks="$data/train"
    say "stage two: training on $([ "$stage" = two ] && echo "these masks" || echo "true masks")"
    bash "$MORE_LAUNCH/train.sh" configs/shapes_micro.py --train "$data/train" --val "$data/val" \
        --masks "$masks" --init "$out/run" --run "$out/run/$stage" "$@"
    python -m more localize --run "$out/run/$stage" --data "$data/val" \
        --out "$out/run/$stage/seeds/val" --map decoder
    python -m more refine "$out/run/$stage/seeds/val" --data "$data/val" \
        --out "$out/run/$stage/masks/val"
done

say "scores"
for set in seeds/cam seeds/lam masks/lam; do
    python -m more evaluate "$out/run/$set" --data "$data/train" \
        --save "$out/run/scores/${set/\//_}.json" --json > /dev/null
done
for stage in two true; do
    for set in seeds/val masks/val; do
        python -m more evaluate "$out/run/$stage/$set" --data "$data/val" \
            --save "$out/run/$stage/scores/${set/\//_}.json" --json > /dev/null
    done
done
python -m more report --run "$out/run" --data "$data/train"
python -m more scores --run "$out/run"
say "done; open $out/run/report.html, masks are in $out/masks_png, the network for new pictures in \
$out/run/two"
