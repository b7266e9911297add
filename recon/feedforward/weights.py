"""Published weights: where they are, and into a network, checked name by name and without a second copy in memory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from geo4d.core.errors import InputError, some

FORMATS = ".safetensors, .safetensors.index.json, .pt, .pth, .bin, or a folder of them"
PICKLED = (".pt", ".pth", ".bin")
WRAPPERS = ("model", "state_dict", "module")
"""Entries of a checkpoint that hold the weights among other things, and prefixes of their names."""
LISTED = 12
"""Names of tensors that do not fit which a message lists."""
OFFLINE = "--backend sfm works offline, without any weights"

FAMILIES: dict[str, tuple[str, dict[tuple[int, ...], str]]] = {
    "backbone.pretrained.cls_token": (
        "a Depth Anything 3 network",
        {
            (1, 1, 384): "depth-anything/DA3-SMALL",
            (1, 1, 768): "depth-anything/DA3-BASE",
            (1, 1, 320): "geo4d/geo4d-s",
            (1, 1, 128): "geo4d/geo4d-xs",
        },
    ),
    "aggregator.camera_token": ("a VGGT network", {(1, 2, 1, 1024): "facebook/VGGT-1B"}),
}
"""By a name that only this family has: what it is, and the published network by the shape of this tensor."""


# Where they are


def bundled_weights(folder: str) -> Path | None:
    """Weights in a folder of this package; None where this version brings none."""
    path = Path(__file__).parent / folder
    return path if any(path.glob("*.safetensors")) else None


def find_weights(repo_id: str, given: Path | str | None = None, *, download: bool = True, bundled: str = "") -> Path:
    """A file or folder for `load_weights`: the given one, else the Hugging Face cache, else a download.

    Args:
        repo_id: owner/name on the Hugging Face hub.
        given: what the user named.
        download: whether to try, where neither is there; needs huggingface_hub.
        bundled: folder of this package that has them, instead of the hub.

    Raises:
        InputError: nothing there; it says what to do.
    """
    if given is not None:
        weight_files(Path(given))
        return Path(given)
    if bundled:
        here = bundled_weights(bundled)
        if here is not None:
            return here
        raise InputError(
            f"cannot find the weights of {repo_id}", found="none in this version of geo4d: they await their training",
            accepted=f"--weights FOLDER, of a training of your own ({FORMATS})",
            hint=f"geo4d train recon --resume FOLDER, then --weights FOLDER/best; {OFFLINE}",
        )  # fmt: skip
    cached = cached_weights(repo_id)
    if cached is not None:
        return cached
    if not download:
        raise _not_at_hand(repo_id, "none in the cache of the Hugging Face hub")
    return _downloaded(repo_id)


def cached_weights(repo_id: str) -> Path | None:
    """The snapshot in the Hugging Face cache that has all files of its weights, or None."""
    for cache in _caches():
        repo = cache / f"models--{repo_id.replace('/', '--')}"
        for snapshot in _snapshots(repo):
            try:
                weight_files(snapshot)
            except InputError:
                continue
            return snapshot
    return None


def _caches() -> Iterator[Path]:
    for name, below in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(name):
            yield Path(os.environ[name]).expanduser() / below
    yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def _snapshots(repo: Path) -> list[Path]:
    """Newest first, but that of the main branch before all others."""
    found = sorted((repo / "snapshots").glob("*/"), key=lambda p: p.stat().st_mtime, reverse=True)
    main = repo / "refs" / "main"
    commit = main.read_text().strip() if main.is_file() else ""
    return sorted(found, key=lambda p: p.name != commit)


def _downloaded(repo_id: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise _not_at_hand(
            repo_id, "none in the cache of the Hugging Face hub, and huggingface_hub is not installed"
        ) from None
    try:
        for patterns in (["*.safetensors", "*.index.json"], [f"*{end}" for end in PICKLED]):
            folder = Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns))
            if any(p.suffix in (".safetensors", *PICKLED) for p in folder.iterdir()):
                return folder
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise _not_at_hand(repo_id, f"the download failed: {type(error).__name__}: {first}") from error
    raise _not_at_hand(repo_id, "a repository without weights")


def _not_at_hand(repo_id: str, found: str) -> InputError:
    return InputError(
        f"cannot find the weights of {repo_id}", found=found, accepted=f"--weights FILE ({FORMATS})",
        hint=f"pip install 'geo4d[hub]' and be online, or fetch https://huggingface.co/{repo_id} elsewhere and give "
        f"--weights FILE; {OFFLINE}",
    )  # fmt: skip


# What they are


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a file, an index of shards or a folder.

    Raises:
        InputError: none there, or a shard of an index is missing.
    """
    from recon.feedforward.trained import BEST, STATE

    if (path / STATE).is_file() or path.name == STATE:
        folder = path.parent if path.name == STATE else path
        raise InputError(
            f"cannot read weights from {path}", found="a training, which holds more than weights",
            accepted="the weights that it kept", hint=f"--weights {folder / BEST}",
        )  # fmt: skip
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json")) or sorted(path.glob("*.index.json"))
        single = [p for p in (path / "model.safetensors", path / "model.pt", path / "pytorch_model.bin") if p.exists()]
        shards = sorted(path.glob("*.safetensors"))
        pickled = sorted(p for p in path.iterdir() if p.suffix in PICKLED)
        if indices:
            return weight_files(indices[0])
        files = single[:1] or shards or pickled[:1]
        cut_off = [p.name for p in files if not p.is_file()]  # links of the cache to what was not fetched to the end
        if files and not cut_off:
            return files
        if cut_off:
            raise InputError(f"cannot read weights from {path}", found=f"links to nothing: {some(cut_off)}")
        raise InputError(f"cannot read weights from {path}", found="a folder without weights", accepted=FORMATS)
    if not path.is_file():
        raise InputError(f"cannot read weights from {path}", found="no such file", accepted=FORMATS, hint=OFFLINE)
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix not in (".safetensors", *PICKLED):
        raise InputError(
            f"cannot read weights from {path}", found=f"a {path.suffix or 'nameless'} file", accepted=FORMATS
        )
    return [path]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"cannot read weights from {index}", found="an index without a weight_map of names to files",
            accepted=FORMATS,
        ) from error  # fmt: skip
    missing = [n for n in names if Path(n).name != n or not (index.parent / n).is_file()]
    if missing:
        raise InputError(
            f"cannot read weights from {index}",
            found=f"{len(missing)} of {len(names)} files of weights are not beside it: {some(missing)}",
            hint="fetch all of them",
        )
    return [index.parent / n for n in names]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights by name, memory-mapped where the format allows it, without the prefixes `model.` and `module.`.

    Pickle is never run: .pt files are read by `torch.load(weights_only=True)`.

    Raises:
        InputError: truncated, of another kind, or not floating-point numbers.
    """
    found: dict[str, Tensor] = {}
    for file in weight_files(path):
        part = _safetensors(file) if file.suffix == ".safetensors" else _torch(file)
        twice = sorted(found.keys() & part.keys())
        if twice:
            raise InputError(f"cannot read weights from {path}", found=f"names in several files: {some(twice)}")
        found |= part
    if not found:
        raise InputError(f"cannot read weights from {path}", found="no tensors in it", accepted=FORMATS)
    prefixes = [f"{w}." for w in WRAPPERS]
    while shared := [p for p in prefixes if all(name.startswith(p) for name in found)]:
        found = {name.removeprefix(shared[0]): value for name, value in found.items()}
    return found


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _torch(file: Path) -> dict[str, Tensor]:
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # noqa: TID251 (no pickle)
        except RuntimeError:  # files older than torch 1.6 cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251 (no pickle)
    except Exception as error:
        raise _unreadable(file, error) from error
    while isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        inner = [content[w] for w in WRAPPERS if isinstance(content.get(w), Mapping)]
        if not inner:
            break
        content = inner[0]
    tensors = content.items() if isinstance(content, Mapping) else ()
    return {str(name): value for name, value in tensors if isinstance(value, Tensor)}


def _unreadable(file: Path, error: Exception) -> InputError:
    with file.open("rb") as opened:
        head = opened.read(64)
    size = file.stat().st_size
    hint = "fetch it again, and compare its size and checksum with those of its page"
    if not head:
        found = "an empty file"
    elif head.startswith(b"version https://git-lfs"):
        found, hint = "a Git LFS pointer instead of the weights", f"git lfs pull --include {file.name}"
    elif head.lstrip()[:1] == b"<":
        found = "a web page instead of the weights"
    elif "weights_only" in str(error).lower() or "unpickl" in type(error).__name__.lower():
        found = "a file that would run code when it is opened, or a damaged one"
        hint = "ask its authors for .safetensors, or fetch it again"
    else:
        first = (str(error).splitlines() or [""])[0]
        found = f"{size} bytes that are truncated or not weights ({type(error).__name__}: {first[:200]})"
    return InputError(f"cannot read weights from {file}", found=found, accepted=FORMATS, hint=hint)


# Into a network


def load_weights(
    model: nn.Module, path: Path | str, *, optional: Sequence[str] = (), ignored: Sequence[str] = ()
) -> None:
    """Give a network its weights, which replace its tensors: build it on the meta device, and nothing is held twice.

    Half-precision weights become what the network has (float32). What the network lists itself, as `optional_weights`
    and `ignored_weights`, is added to the two lists; both hold names or patterns of them.

    Args:
        model: network, on any device; on the meta device the weights stay mapped from the file on the CPU.
        path: file, index of shards, or folder.
        optional: names that a checkpoint may lack; they become zero where the network is on the meta device.
        ignored: names that the network has no use for.

    Raises:
        InputError: unreadable, or with missing, extra or mis-shaped tensors, which are listed.

    Example:
        >>> from recon.feedforward.da3 import DA3, DA3_SMALL
        >>> with torch.device("meta"):
        ...     model = DA3(DA3_SMALL)
        >>> load_weights(model, Path("model.safetensors"))  # doctest: +SKIP
    """
    optional = (*optional, *getattr(model, "optional_weights", ()))
    ignored = (*ignored, *getattr(model, "ignored_weights", ()))
    found, wanted = read_weights(Path(path)), model.state_dict()
    _check(Path(path), found, wanted, optional, ignored)
    for name, own in wanted.items():
        value = found.get(name)
        if value is None:
            value = torch.zeros(own.shape, dtype=own.dtype) if own.is_meta else own
        wanted[name] = value.to(own.dtype) if own.is_meta else value.to(own)
    model.load_state_dict(wanted, assign=True)


def _check(
    path: Path,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    optional: Sequence[str],
    ignored: Sequence[str],
) -> None:
    missing = [n for n in wanted if n not in found and not _matches(n, optional)]
    extra = [n for n in found if n not in wanted and not _matches(n, ignored)]
    both = [n for n in wanted if n in found]
    shaped = [
        f"{n} {tuple(found[n].shape)} instead of {tuple(wanted[n].shape)}"
        for n in both
        if found[n].shape != wanted[n].shape
    ]
    typed = [f"{n} {found[n].dtype}" for n in both if not found[n].is_floating_point()]
    lists = {"missing": missing, "extra": extra, "of another shape": shaped, "not floating-point": typed}
    wrong = [f"{len(names)} {what}: {_listed(names)}" for what, names in lists.items() if names]
    if not wrong:
        return
    kind, expected = looks_like(found), looks_like(wanted)
    raise InputError(
        f"cannot load {path} into {expected or 'this network'}",
        found="; ".join(([f"weights that look like {kind}"] if kind else []) + wrong),
        accepted=f"all {len(wanted)} tensors of {expected or 'this network'}, and no others",
        hint="use them with the network that they belong to" if kind and kind != expected else "fetch the file again",
    )


def looks_like(weights: Mapping[str, Tensor]) -> str | None:
    """Which network of geo4d these weights belong to, as its name on the hub or a description; None if to none."""
    for name, (family, published) in FAMILIES.items():
        if name in weights:
            size = tuple(weights[name].shape)
            return published.get(size, f"{family} of width {size[-1] if size else 0}")
    return None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def _listed(names: Sequence[str]) -> str:
    """Names, those that differ in a number of a layer alone as one: `blocks.*.attn.qkv.bias (12)`."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return some([each[0] if len(each) == 1 else f"{pattern} ({len(each)})" for pattern, each in alike.items()], LISTED)
