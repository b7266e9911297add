"""Weights on disk: formats, caches, and refusals that say what is wrong."""

from __future__ import annotations

import json
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from geo4d.core.errors import InputError
from recon.feedforward.da3 import DA3, DA3_BASE, DA3_SMALL, Da3Config
from recon.feedforward.layers import VitConfig
from recon.feedforward.vggt import VGGT, VGGT_1B, CameraConfig, DptConfig, TrackConfig, VggtConfig
from recon.feedforward.weights import cached_weights, find_weights, load_weights, looks_like, read_weights

VIT = VitConfig(dim=16, depth=4, heads=2, img_size=28)
TINY = Da3Config(
    VIT, alternate_from=1, out_layers=(0, 1, 2, 3), features=8, channels=(4, 4, 4, 4), camera_heads=2, camera_depth=1
)
DPT = DptConfig((0, 0, 0, 0), 8, (4, 4, 4, 4))
TRACK = TrackConfig(DPT, hidden=16, levels=2, radius=1, depth=1, heads=2, virtual=4)
TINY_VGGT = VggtConfig(
    VIT, depth=1, heads=2, camera_head=CameraConfig(2, 1), depth_head=DPT, point_head=DPT, track_head=TRACK
)
REPO = "depth-anything/DA3-SMALL"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v.shape, generator=generator) for k, v in DA3(TINY).state_dict().items()}


@pytest.fixture
def file(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def _meta(config: Da3Config = TINY) -> DA3:
    with torch.device("meta"):
        return DA3(config)


def _shards(weights: dict[str, Tensor], folder: Path) -> Path:
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({n: weights[n] for n in own}, folder / part)
    index = {"weight_map": {n: part for part, own in parts.items() for n in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def _saved(content: object, path: Path, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


WRITERS: dict[str, Callable[[dict[str, Tensor], Path], Path]] = {
    "safetensors": lambda w, d: (save_file(w, d / "a.safetensors"), d / "a.safetensors")[1],
    "folder": lambda w, d: (save_file(w, d / "model.safetensors"), d)[1],
    "index": _shards,
    "folder with an index": lambda w, d: _shards(w, d).parent,
    "folder of shards": lambda w, d: (_shards(w, d).unlink(), d)[1],
    "pt": lambda w, d: _saved(w, d / "a.pt"),
    "pth in model": lambda w, d: _saved({"model": w, "epoch": 3}, d / "a.pth"),
    "bin in state_dict": lambda w, d: _saved({"state_dict": w}, d / "a.bin"),
    "folder of a bin": lambda w, d: _saved(w, d / "pytorch_model.bin").parent,
    "old pt": lambda w, d: _saved(w, d / "a.pt", _use_new_zipfile_serialization=False),
    "prefix model.": lambda w, d: (save_file({f"model.{k}": v for k, v in w.items()}, d / "a.safetensors"), d)[1],
    "prefix module.model.": lambda w, d: _saved({f"module.model.{k}": v for k, v in w.items()}, d / "a.pt"),
}


@pytest.mark.parametrize("writer", list(WRITERS))
@pytest.mark.parametrize("on_meta", [False, True])
def test_every_format_loads_exactly(weights: dict[str, Tensor], tmp_path: Path, writer: str, on_meta: bool) -> None:
    path = WRITERS[writer](weights, tmp_path)
    model = _meta() if on_meta else DA3(TINY)
    load_weights(model, path)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in weights.items())
    assert all(p.requires_grad and p.dtype == torch.float32 and not p.is_meta for p in model.parameters())
    with torch.no_grad():
        assert torch.isfinite(model(torch.zeros(1, 2, 3, 28, 42)).K).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(weights: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({k: v.to(dtype) for k, v in weights.items()}, tmp_path / "a.safetensors")
    model = _meta()
    load_weights(model, tmp_path / "a.safetensors")
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name].to(dtype).float())


def test_weights_stay_mapped_from_the_file(file: Path) -> None:
    """The tensors of a float32 file are its pages: the resident memory that is not the file's hardly grows."""
    save_file({"w": torch.zeros(20_000_000)}, file)
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.zeros(20_000_000, device="meta")))
    before = _own_memory()
    load_weights(model, file)
    assert _own_memory() - before < 8_000_000
    stamp = file.stat().st_mtime_ns
    with torch.no_grad():
        model.get_parameter("w").add_(1)  # copy on write: training leaves the file as it is
    assert float(read_weights(file)["w"].abs().max()) == 0
    assert file.stat().st_mtime_ns == stamp


def _own_memory() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs /proc")
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon"))


def test_names_that_no_output_depends_on_may_be_absent(weights: dict[str, Tensor], tmp_path: Path) -> None:
    unused = [k for k in weights if "_aux.0." in k or "_aux.1." in k or "_aux.2." in k]
    unused = [k for k in unused if "output_conv" in k]
    assert len(unused) == 48
    save_file({k: v for k, v in weights.items() if k not in unused}, tmp_path / "a.safetensors")
    outputs = []
    for model in (DA3(TINY), _meta()):
        load_weights(model, tmp_path / "a.safetensors")
        with torch.no_grad():
            outputs.append(model(torch.ones(1, 2, 3, 28, 42)).ray)
    assert torch.equal(*outputs)


def test_heads_that_are_not_built_are_not_read(tmp_path: Path) -> None:
    full = VGGT(TINY_VGGT)
    state = {**full.state_dict(), "aggregator.patch_embed.mask_token": torch.zeros(1, 16)}
    save_file(state, tmp_path / "a.safetensors")
    load_weights(VGGT(TINY_VGGT), tmp_path / "a.safetensors")
    lean = VGGT(
        VggtConfig(
            VIT, depth=1, heads=2, camera_head=CameraConfig(2, 1), depth_head=None, point_head=None, track_head=None
        )
    )
    load_weights(lean, tmp_path / "a.safetensors")
    save_file(lean.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"missing: depth_head\.norm\.weight"):
        load_weights(full, tmp_path / "b.safetensors")


def test_what_is_missing_extra_or_mis_shaped_is_listed(weights: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = {k: v for k, v in weights.items() if not k.startswith("cam_dec.")}
    wrong |= {"head.extra": torch.zeros(1), "head.norm.bias": torch.zeros(3)}
    wrong["backbone.pretrained.norm.bias"] = torch.zeros(16, dtype=torch.int64)
    save_file(wrong, tmp_path / "a.safetensors")
    model = DA3(TINY)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(model, tmp_path / "a.safetensors")
    assert "10 missing: cam_dec.backbone.*.weight (2), cam_dec.backbone.*.bias (2)" in str(error.value)
    for name in before.keys() - wrong.keys():
        assert re.sub(r"\.\d+\.", ".*.", name) in str(error.value) or name in str(error.value)
    assert "1 extra: head.extra" in str(error.value)
    assert "1 of another shape: head.norm.bias (3,) instead of (32,)" in str(error.value)
    assert "1 not floating-point: backbone.pretrained.norm.bias torch.int64" in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    load_weights(model, WRITERS["pt"](wrong | weights, tmp_path), ignored=["head.extra"])


def test_weights_of_another_network_are_recognised(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with torch.device("meta"):
        published = [DA3(DA3_SMALL), DA3(DA3_BASE), VGGT(VGGT_1B)]
    names = [looks_like(m.state_dict()) for m in published]
    assert names == ["depth-anything/DA3-SMALL", "depth-anything/DA3-BASE", "facebook/VGGT-1B"]
    assert looks_like({"fc.weight": torch.zeros(1)}) is None
    save_file(VGGT(TINY_VGGT).state_dict(), tmp_path / "vggt.safetensors")
    with pytest.raises(InputError) as error:
        load_weights(published[0], tmp_path / "vggt.safetensors")
    assert "into depth-anything/DA3-SMALL" in str(error.value)
    assert "weights that look like a VGGT network of width 16" in str(error.value)
    assert "the network that they belong to" in str(error.value)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(weights: dict[str, Tensor], tmp_path: Path, ending: str, share: float) -> None:
    path = WRITERS[ending](weights, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="fetch it again") as error:
        load_weights(DA3(TINY), path)
    assert ("an empty file" if not share else str(int(share * len(content)))) in str(error.value)


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("new", [False, True])
def test_pickle_is_never_run(tmp_path: Path, new: bool) -> None:
    path = _saved({"w": _Bomb(tmp_path / "ran")}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match="would run code"):
        load_weights(DA3(TINY), path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "a Git LFS pointer"),
        ("a.pt", b"<!DOCTYPE html><html>", "a web page"),
        ("a.npz", b"PK", "a .npz file"),
        ("model.safetensors.index.json", b"{}", "without a weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": "../w.safetensors"}}', "1 of 1 files"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"w": "w.safetensors", "v": "v.safetensors"}}',
            "2 of 2 files",
        ),
    ],
)
def test_what_is_not_a_weights_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load_weights(DA3(TINY), tmp_path / name)
    assert says in str(error.value)


def test_an_index_does_not_reach_out_of_its_folder(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "in").mkdir()
    index = tmp_path / "in" / "model.safetensors.index.json"
    for name in ("../w.safetensors", str(tmp_path / "w.safetensors")):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(InputError, match="not beside it"):
            read_weights(index)


def test_files_without_tensors_and_names_in_two_files_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tensors"):
        read_weights(_saved({"epoch": 3}, tmp_path / "a.pt"))
    with pytest.raises(InputError, match="a folder without weights"):
        read_weights(tmp_path / "..")
    for part in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.zeros(1)}, tmp_path / part)
    with pytest.raises(InputError, match="in several files: w"):
        read_weights(tmp_path)


# Where weights are


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
    return tmp_path / "hf" / "hub" / "models--depth-anything--DA3-SMALL"


def _snapshot(cache: Path, commit: str, name: str = "model.safetensors") -> Path:
    folder = cache / "snapshots" / commit
    folder.mkdir(parents=True)
    save_file({"w": torch.zeros(1)}, folder / name)
    return folder


def test_a_given_file_comes_before_the_cache_and_must_be_there(cache: Path, file: Path) -> None:
    _snapshot(cache, "a1")
    assert find_weights(REPO, file) == file
    with pytest.raises(InputError, match="no such file"):
        find_weights(REPO, file.parent / "other.safetensors")


def test_the_main_snapshot_of_the_cache_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached_weights(REPO) is None
    main = _snapshot(cache, "a1")
    _snapshot(cache, "b2")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a1\n")
    assert find_weights(REPO) == main
    (main / "model.safetensors").unlink()
    (main / "model.safetensors").symlink_to(cache / "blobs" / "gone")  # a download that was cut off
    assert find_weights(REPO).name == "b2"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.parent.parent / "elsewhere"))
    assert cached_weights(REPO) == cache / "snapshots" / "b2"
    monkeypatch.setenv("HF_HOME", str(cache.parent.parent / "empty"))
    assert cached_weights(REPO) is None


def test_without_cache_and_network_the_error_says_what_works(cache: Path) -> None:
    for download, found in ((True, "huggingface_hub is not installed"), (False, "none in the cache")):
        with pytest.raises(InputError) as error:
            find_weights(REPO, download=download)
        assert f"cannot find the weights of {REPO}" in str(error.value)
        assert found in str(error.value)
        assert "pip install 'geo4d[hub]'" in str(error.value)
        assert f"https://huggingface.co/{REPO}" in str(error.value)
        assert "--backend sfm works offline" in str(error.value)


def test_weights_are_downloaded_where_the_hub_is_reached(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        assert repo_id == REPO
        asked.append(allow_patterns)
        if allow_patterns[0] == "*.pt":
            _saved({"w": torch.zeros(1)}, tmp_path / "fetched" / "model.pt")
        return str(tmp_path / "fetched")

    (tmp_path / "fetched").mkdir()
    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert set(read_weights(find_weights(REPO))) == {"w"}
    assert [a[0] for a in asked] == ["*.safetensors", "*.pt"]

    def unreachable(repo_id: str, *, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route to the hub")

    hub.snapshot_download = unreachable
    with pytest.raises(InputError, match="the download failed: ConnectionError: no route to the hub"):
        find_weights(REPO)
