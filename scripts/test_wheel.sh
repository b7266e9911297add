#!/bin/sh
# Builds the wheel, installs it (without the sources) beside the tested dependencies and runs the suite from another folder.
set -eu
python=$1
root=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m build --wheel --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
# The dependencies of the development environment are reused: only geo4d itself comes from the wheel.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
target=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "$site" >"$target/zz_dependencies.pth"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -q --no-deps --force-reinstall "$work"/dist/*.whl
cp -r "$root/tests" "$root/pyproject.toml" "$work/"
cd "$work"
GEO4D_INSTALLED_FROM="$target" \
GEO4D_SAMPLE="$root/assets/sample" \
GEO4D_ROOT="$root" \
GEO4D_SHARED_DATA="${GEO4D_SHARED_DATA:-$root/../shared/data}" GOLDEN="${GOLDEN:-$root/../shared/golden}" \
  "$work/venv/bin/python" -m pytest -n 2 --dist loadfile
