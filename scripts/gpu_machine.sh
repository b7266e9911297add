#!/bin/sh
# For a machine with a GPU, torch and nvcc but no package index.
#
#   sh scripts/gpu_machine.sh pack [3.12]   where there is an index: wheels for that Python into build/wheels
#   sh scripts/gpu_machine.sh setup         over there: an environment build/gpu beside the torch that is installed
#
# Then: build/gpu/bin/python -m pytest -m gpu -rs tests/geo4d/test_procedural.py tests/geo4d/test_stream.py \
#           tests/render/test_rasterizer.py tests/render/test_parity_raster.py tests/render/test_views.py \
#           tests/recon/test_feedforward_training.py            (make test-gpu without what is not there)
#       build/gpu/bin/python -m geo4d.cli train recon --resume FOLDER --minutes 9
#       build/gpu/bin/python benchmarks/geo4d_s.py --device cuda
set -eu
cd "$(dirname "$0")/.."

# torch, numpy, numba, scipy, opencv, safetensors, jaxtyping, rich, pytest and ninja are taken from there.
NEEDED="beartype tyro typeguard shtab docstring-parser gsplat"

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
    [ -x build/gpu/bin/python ] || python3 -m venv --system-site-packages build/gpu
    build/gpu/bin/python -m pip install -q --no-index --no-deps build/wheels/*.whl
    echo "$PWD" > "$(build/gpu/bin/python -c 'import site; print(site.getsitepackages()[0])')/geo4d.pth"
    build/gpu/bin/python -c "import torch, gsplat, recon; print(torch.__version__, torch.cuda.get_device_name(0))"
    ;;
*)
    sed -n '2,12p' "$0"
    exit 2
    ;;
esac
