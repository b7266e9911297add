#!/bin/sh
# For a machine with a GPU, torch, nvcc and no package index, that is there for some minutes only.
#
#   sh scripts/gpu_machine.sh pack [3.12]             where there is an index: wheels for that Python into build/wheels,
#                                                     which go over with the tree
#   sh scripts/gpu_machine.sh lease FOLDER MINUTES [OPTION ...]
#                                                     over there: all that follows for geo4d-s, most useful things
#                                                     first, in so many minutes; called again, it goes on
#   sh scripts/gpu_machine.sh setup | tests | render  over there: one step alone
#
# `lease` installs the wheels beside the torch of `python3`, runs the GPU tests of scenes and training, measures how fast
# scenes are made, learnt from and predicted, trains in FOLDER (one that git ignores, such as build/geo4d-s) with the
# time that is left, OPTIONs are those of `geo4d train recon` (--whole-minutes 20: the training is planned for that long,
# over several calls), and scores what was trained. A step that fails is said,
# and the next one follows; what each printed is in build/lease.
# If the variable OUT names a folder, it gets the weights that were kept (best/) and records.tar: log, curve, recipe,
# results and what was printed. The training itself stays in FOLDER. Other variables: DEVICE (cuda), GEO4D_COMMIT (what
# results say of the tree, where there is no git: git rev-parse --short=12 HEAD).
# `render` tests the rasteriser, which compiles gsplat for minutes first; nothing of `lease` needs it.
set -eu
cd "$(dirname "$0")/.."

# torch, numpy, numba, scipy, opencv, safetensors, jaxtyping, rich, pytest and ninja are taken from there.
NEEDED="beartype tyro typeguard shtab docstring-parser gsplat"
DEVICE="${DEVICE:-cuda}"
# A virtual environment would not see what that of `python3` holds, but only what lies below both.
export PYTHONPATH="$PWD:$PWD/build/site" PYTHONUNBUFFERED=1

now() { date +%s; }

# Seconds of which a step takes at most `$1`, and no more than a `$2`th of all.
at_most() { if [ "$1" -lt $((total / $2)) ]; then echo "$1"; else echo $((total / $2)); fi; }

# step NAME SECONDS COMMAND ...: run it, stop it after so long (first kindly), say how it ended.
step() {
    name="$1" seconds="$2"
    shift 2
    [ "$seconds" -lt $((end - $(now) - 5)) ] || seconds=$((end - $(now) - 5))
    if [ "$seconds" -lt 1 ]; then
        echo "== $name: no time left"
        return
    fi
    echo "== $name, at most $seconds s"
    { timeout -k 5 "$seconds" "$@" 2>&1 && echo "== $name: done" || echo "== $name: failed with $?"; } |
        tee "build/lease/$name.txt"
}

# What is to be kept of a training, for whoever is asked for OUT.
bring() {
    [ -n "${OUT:-}" ] || return 0
    mkdir -p "$OUT"
    if [ -d "$1/best" ]; then
        rm -rf "$OUT/best"
        cp -R "$1/best" "$OUT/best"
    fi
    rm -rf build/lease/records
    mkdir -p build/lease/records
    for file in "$1/log.jsonl" "$1/curve.svg" "$1/recipe.json" benchmarks/results/geo4d_s.json build/lease/*.txt; do
        [ ! -f "$file" ] || cp "$file" build/lease/records/
    done
    tar -cf "$OUT/records.tar" -C build/lease records
}

case "${1:-}" in
pack)
    for name in $NEEDED; do
        python3 -m pip download -q --no-deps -c constraints.txt -d build/wheels --only-binary=:all: \
            --python-version "${2:-3.12}" --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
            --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any "$name"
    done
    du -sh build/wheels
    ;;
setup)
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/site build/wheels/*.whl
    python3 -c "import torch, recon; print(torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())"
    ;;
tests)
    python3 -m pytest -m gpu -q -rs --durations=5 -p no:cacheprovider \
        tests/geo4d/test_stream.py tests/geo4d/test_procedural.py tests/recon/test_feedforward_training.py
    ;;
render)
    python3 -m pytest -m gpu -q -rs --durations=5 -p no:cacheprovider \
        tests/render/test_rasterizer.py tests/render/test_parity_raster.py tests/render/test_views.py
    ;;
lease)
    if [ $# -lt 3 ]; then
        echo "lease needs a folder and minutes: sh scripts/gpu_machine.sh lease build/geo4d-s 9" >&2
        exit 2
    fi
    folder="$2" total=$((60 * $3)) end=$(($(now) + 60 * $3))
    shift 3
    rm -rf build/lease
    mkdir -p build/lease
    step setup "$(at_most 60 4)" sh scripts/gpu_machine.sh setup
    step tests "$(at_most 120 5)" sh scripts/gpu_machine.sh tests
    step speed "$(at_most 90 5)" python3 benchmarks/geo4d_s.py --device "$DEVICE"
    scoring=$(at_most 120 5)
    # Besides its minutes a slice imports, reads its state and writes what it learnt.
    seconds=$((end - $(now) - scoring - 40))
    if [ "$seconds" -ge 10 ]; then
        step train $((seconds + 30)) python3 -m geo4d.cli train recon --resume "$folder" --device "$DEVICE" \
            --minutes "$(echo "$seconds" | awk '{ print $1 / 60 }')" "$@"
    else
        echo "== train: no time left"
    fi
    bring "$folder"
    step scores "$total" python3 benchmarks/geo4d_s.py --training "$folder" --device "$DEVICE"
    bring "$folder"
    if grep -q '^== [a-z]*: failed' build/lease/*.txt; then exit 1; fi
    ;;
*)
    sed -n '2,/^set -eu/p' scripts/gpu_machine.sh | sed '$d; s/^# \{0,1\}//'
    exit 2
    ;;
esac
