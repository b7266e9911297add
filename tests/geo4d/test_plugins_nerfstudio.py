"""The nerfstudio plugin: its data by geo4d's own cameras, and its classes against stand-ins for nerfstudio's."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io.gaussians import read_gaussians, write_gaussians, write_scene_gaussians
from geo4d.core.io.scene import load_scene, save_scene
from geo4d.core.motion import BasesMotion
from geo4d.core.types import Camera, Frame, Frames, Gaussians, Observations, PointCloud, Scale, Scene
from geo4d.plugins import nerfstudio as plugin

ROOT = Path(__file__).resolve().parents[2]
HW = (30, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 10 photos around Gaussians, fitted; up is world +y; one photo has a mask."""
    g = torch.Generator().manual_seed(0)
    K = torch.tensor([[50.0, 0, 20], [0, 50, 15], [0, 0, 1]], dtype=torch.float64)
    cameras, frames = [], []
    for i in range(10):
        turn = geometry.matrix_from_rotvec(torch.tensor([0.0, 0.3 * i, 0.0], dtype=torch.float64))
        pose = geometry.rigid(turn, turn @ torch.tensor([0.0, 0, -3], dtype=torch.float64) + 5)
        cameras.append(Camera(K, pose, HW))
        rgb = np.random.default_rng(i).integers(0, 256, (*HW, 3), dtype=np.uint8)
        mask = (lambda: np.eye(*HW, dtype=bool)) if i == 3 else None
        frames.append(Frame.from_array(f"{9 - i}.png", rgb, time_s=1.7e9 + i, read_mask=mask))
    index, nothing = torch.zeros(0).long(), torch.zeros(0, 3)
    p_world, rgb = torch.randn(20, 3, generator=g).double() * 0.3 + 5, torch.rand(20, 3, generator=g)
    points = PointCloud(p_world, rgb, torch.full((20, 3), torch.nan))
    scene = Scene(
        Frames(frames), tuple(cameras), tuple(cameras), (None,) * 10, (None,) * 10, (None,) * 10,
        Observations(index, index, torch.zeros(0, 2).double(), nothing.double(), nothing), points, None,
        Scale(), torch.tensor([0.0, 1, 0], dtype=torch.float64), {},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("nerfstudio") / "scene"
    save_scene(scene, folder)
    write_gaussians(folder / "gaussians.ply", Gaussians(
        points.p_world.float(), torch.nn.functional.normalize(torch.randn(20, 4, generator=g), dim=-1),
        torch.full((20, 3), 0.1), torch.full((20,), 0.9), torch.randn(20, 4, 3, generator=g),
    ))  # fmt: skip
    return folder


def test_splits(folder: Path) -> None:
    """Held out: 0, 8, ... of the sorted names, as `geo4d fit --holdout 8` does."""
    train, test = plugin.split_data(folder), plugin.split_data(folder, "test")
    assert [f.name for f in test.files] == ["0.png", "8.png"]
    assert [f.name for f in train.files] == [f"{i}.png" for i in (1, 2, 3, 4, 5, 6, 7, 9)]
    assert all(f.is_file() for f in train.files + (train.masks or []))
    for split in ("train", "val"):
        assert len(plugin.split_data(folder, split, eval_interval=0).files) == 10
    with pytest.raises(InputError, match="--eval-interval 0"):
        plugin.split_data(folder, "train", eval_interval=1)
    assert train.time is not None
    # As in nerfstudio: 0 is the first time, 1 the last, so that paths of its viewer fit.
    assert train.time.tolist() == pytest.approx([k / 9 for k in (8, 7, 6, 5, 4, 3, 2, 0)])
    assert train.span_s == (1.7e9, 1.7e9 + 9)


def test_what_the_dataset_holds_out_is_held_out(folder: Path, tmp_path: Path) -> None:
    scene = load_scene(folder)
    given = dataclasses.replace(scene, report={**scene.report, "held_out": ["3.png"]})
    save_scene(given, tmp_path / "scene")
    for every, names in ((0, ["3"]), (8, ["0", "3", "9"])):
        test = plugin.split_data(tmp_path / "scene", "test", eval_interval=every)
        assert [f.stem for f in test.files] == names
    content = json.loads((tmp_path / "scene" / "transforms.json").read_text())
    assert content["test_filenames"] == content["val_filenames"] == ["images/3.png"]
    assert len(content["train_filenames"]) == 9


def test_normalised_cameras_see_the_same(folder: Path) -> None:
    data = plugin.split_data(folder, eval_interval=0)
    raw = plugin.split_data(folder, eval_interval=0, normalise=False)
    assert data.pose[:, :, 3].abs().max() == pytest.approx(1)
    torch.testing.assert_close(data.pose[:, :, 3].mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.transform[:, :3] @ torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(
        data.points, (raw.points @ data.transform[:, :3].T + data.transform[:, 3]) * data.scale, atol=1e-5, rtol=0
    )
    assert (raw.transform.tolist(), raw.scale) == (torch.eye(4)[:3].tolist(), 1)
    K = torch.tensor([[50.0, 0, 20], [0, 50, 15], [0, 0, 1]])
    for a, b in zip(data.pose, raw.pose, strict=True):
        back = plugin.scene_camera(a, K, HW, data.transform, data.scale).world_from_cam
        expected = plugin.scene_camera(b, K, HW, raw.transform, 1.0).world_from_cam
        torch.testing.assert_close(back, expected, atol=1e-5, rtol=0)
        # OpenGL: the points of the scene, in front of every camera, have negative z in its axes.
        p_cam = (raw.points - b[:, 3]) @ b[:, :3]
        assert (p_cam[:, 2] < 0).all()


# Stand-ins for the classes of nerfstudio 1.1.5, with the signatures that its source has


@dataclass
class InstantiateConfig:
    _target: type

    def setup(self, **kwargs: Any) -> Any:
        return self._target(self, **kwargs)


@dataclass
class DataParserConfig(InstantiateConfig):
    _target: type = field(default_factory=lambda: DataParser)
    data: Path = Path()


class DataParser:
    def __init__(self, config: DataParserConfig) -> None:
        self.config = config

    def get_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> Any:
        return self._generate_dataparser_outputs(split, **kwargs)  # type: ignore[attr-defined]


@dataclass
class ModelConfig(InstantiateConfig):
    _target: type = field(default_factory=lambda: Model)
    enable_collider: bool = True


class Model(torch.nn.Module):
    def __init__(self, config: Any, scene_box: Any, num_train_data: int, **kwargs: Any) -> None:
        super().__init__()
        self.config, self.scene_box, self.num_train_data, self.kwargs = config, scene_box, num_train_data, kwargs
        self.populate_modules()
        self.device_indicator_param = torch.nn.Parameter(torch.zeros(0))

    @property
    def device(self) -> torch.device:
        return self.device_indicator_param.device

    def populate_modules(self) -> None:
        assert not self.config.enable_collider

    def forward(self, camera: Any) -> Any:
        return self.get_outputs(camera)  # type: ignore[attr-defined]


class Cameras:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)
        n = len(values["camera_to_worlds"])
        assert all(values[k].shape == (n, 1) for k in ("fx", "fy", "cx", "cy", "width", "height", "times"))

    def __getitem__(self, index: slice) -> Cameras:
        return Cameras(**{k: v[index] if torch.is_tensor(v) else v for k, v in vars(self).items()})

    def to(self, device: Any) -> Cameras:
        del device
        return self

    def get_intrinsics_matrices(self) -> torch.Tensor:
        K = torch.eye(3).repeat(len(self.fx), 1, 1)  # type: ignore[attr-defined]
        for name, (i, j) in {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}.items():
            K[:, i, j] = getattr(self, name)[:, 0]
        return K


def recorder(name: str) -> type:
    """A class that keeps its keyword arguments."""
    return type(name, (SimpleNamespace,), {})


STAND_INS = {
    "nerfstudio.cameras.cameras": {"Cameras": Cameras, "CameraType": SimpleNamespace(PERSPECTIVE=1)},
    "nerfstudio.data.dataparsers.base_dataparser": {
        "DataParser": DataParser, "DataParserConfig": DataParserConfig, "DataparserOutputs": recorder("Outputs"),
    },
    "nerfstudio.data.scene_box": {"SceneBox": recorder("SceneBox")},
    "nerfstudio.models.base_model": {"Model": Model, "ModelConfig": ModelConfig},
    "nerfstudio.plugins.registry_dataparser": {"DataParserSpecification": recorder("DataParserSpecification")},
    "nerfstudio.plugins.types": {"MethodSpecification": recorder("MethodSpecification")},
    "nerfstudio.configs.base_config": {"ViewerConfig": recorder("ViewerConfig")},
    "nerfstudio.data.datamanagers.full_images_datamanager": {"FullImageDatamanagerConfig": recorder("Manager")},
    "nerfstudio.engine.optimizers": {"AdamOptimizerConfig": recorder("AdamOptimizerConfig")},
    "nerfstudio.engine.trainer": {"TrainerConfig": recorder("TrainerConfig")},
    "nerfstudio.pipelines.base_pipeline": {"VanillaPipelineConfig": recorder("VanillaPipelineConfig")},
}  # fmt: skip


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for path, content in STAND_INS.items():
        parts = path.split(".")
        for i in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
        module = ModuleType(path)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, path, module)
    plugin._made.cache_clear()
    yield
    plugin._made.cache_clear()


def test_entry_points_lead_to_specifications(stubbed: None) -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    found = {}
    for group in ("nerfstudio.dataparser_configs", "nerfstudio.method_configs"):
        module, _, name = points[group]["geo4d"].partition(":")
        found[group] = getattr(importlib.import_module(module), name)
    dataparser, method = found.values()
    assert type(dataparser).__name__ == "DataParserSpecification"
    assert type(method).__name__ == "MethodSpecification"
    assert method.config.method_name == "geo4d"
    assert set(method.config.optimizers) == set(plugin.RATES)
    assert isinstance(method.config.pipeline.datamanager.dataparser, type(dataparser.config))
    for name in plugin.MADE_ON_DEMAND[2:]:  # nerfstudio finds the classes of a config file again by these names
        made = getattr(plugin, name)
        assert (made.__module__, made.__qualname__) == (plugin.__name__, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = plugin.no_such_name


def outputs_of(folder: Path, split: str, **options: Any) -> Any:
    config = dataclasses.replace(plugin.dataparser.config, data=folder, **options)
    return config.setup().get_dataparser_outputs(split)


def test_dataparser(stubbed: None, folder: Path) -> None:
    data, made = plugin.split_data(folder, "val"), outputs_of(folder, "val")
    assert made.image_filenames == data.files
    assert made.mask_filenames == data.masks
    torch.testing.assert_close(made.cameras.camera_to_worlds, data.pose)
    assert made.cameras.times.shape == (2, 1)
    assert made.dataparser_scale == data.scale
    torch.testing.assert_close(made.dataparser_transform, data.transform)
    torch.testing.assert_close(made.metadata["points3D_xyz"], data.points)
    assert made.metadata["points3D_rgb"].dtype == torch.uint8


def model_of(folder: Path, **options: Any) -> tuple[Any, Any]:
    made = outputs_of(folder, "val", **options)
    config = plugin.method.config.pipeline.model
    return made, config.setup(scene_box=made.scene_box, num_train_data=8, metadata=made.metadata)


def test_method_shows_what_geo4d_shows(stubbed: None, folder: Path) -> None:
    from geo4d.core.io.gaussians import read_gaussians
    from geo4d.core.io.scene import load_scene
    from render import rasterization

    g, scene = read_gaussians(folder / "gaussians.ply"), load_scene(folder)
    camera = next(c for c, f in zip(scene.camera, scene.frames, strict=True) if f.name == "8.png")
    rgb, alpha, _ = rasterization(
        g.means, g.quats_wxyz, g.scales, g.opacity, g.sh, camera.cam_from_world[None].float(), camera.K[None].float(),
        HW[1], HW[0], sh_degree=1, render_mode="RGB+ED",
    )  # fmt: skip
    for normalise in (True, False):
        made, model = model_of(folder, normalise=normalise)
        shown = model.get_outputs_for_camera(made.cameras[1:2])
        # Where poses went through other matrices, rounding decides at a pixel whether an alpha of 1/255 is seen.
        expected = rgb[0, ..., :3].clamp(0, 1), alpha[0], rgb[0, ..., 3:] * made.dataparser_scale
        for got, wanted in zip((shown["rgb"], shown["accumulation"], shown["depth"]), expected, strict=True):
            off = (got - wanted).abs() / wanted.abs().max()
            assert float(off.max()) < 2 / 255
            assert int((off.amax(-1) > 2e-4).sum()) <= 1
        assert rgb[0, ..., :3].std() > 0.1


def test_method_shows_what_moves_when_the_camera_looks(stubbed: None, folder: Path, tmp_path: Path) -> None:
    from render import render_views

    folder = Path(shutil.copytree(folder, tmp_path / "scene"))
    g, scene = read_gaussians(folder / "gaussians.ply"), load_scene(folder)
    times = sorted(f.time_s for f in scene.frames if f.time_s is not None)
    pose = torch.eye(4, dtype=torch.float64).repeat(1, 2, 1, 1)
    pose[0, 1, 0, 3] = 0.2
    motion = BasesMotion(torch.tensor([times[0], times[-1]], dtype=torch.float64), pose, torch.ones(len(g), 1))
    write_scene_gaussians(folder, dataclasses.replace(g, motion=motion))
    made, model = model_of(folder)
    shown = model.get_outputs_for_camera(made.cameras[1:2])["rgb"]
    (frame, camera), *_ = [
        (f, c) for f, c in zip(scene.frames, scene.camera, strict=True) if f.name == made.image_filenames[1].name
    ]
    then = dataclasses.replace(g, motion=motion).at(frame.time_s)
    truth = [render_views(s, camera).rgb.clamp(0, 1) for s in (then, g)]
    torch.testing.assert_close(shown, truth[0], atol=2e-4, rtol=0)
    assert float((truth[0] - truth[1]).abs().max()) > 0.05


def test_method_refines_and_scores(stubbed: None, folder: Path) -> None:
    made, model = model_of(folder)
    camera = made.cameras[1:2]
    with torch.no_grad():
        target = model(camera)["rgb"]
        colours = model.gaussians["sh"]
        colours += 0.05 * torch.randn(colours.shape, generator=torch.Generator().manual_seed(1))
    batch = {"image": (target * 255).round().to(torch.uint8)}
    optimiser = torch.optim.Adam(
        [{"params": params, "lr": plugin.RATES[name]} for name, params in model.get_param_groups().items()]
    )
    losses = []
    for _ in range(20):
        loss = sum(model.get_loss_dict(model(camera), batch).values())
        assert isinstance(loss, torch.Tensor)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in model.gaussians.values())
    scores, images = model.get_image_metrics_and_images(model.get_outputs_for_camera(camera), batch)
    assert scores["psnr"] == pytest.approx(float(model.get_metrics_dict(model(camera), batch)["psnr"]), abs=1e-3)
    assert images["img"].shape == (30, 80, 3)
    hidden = {**batch, "mask": torch.zeros(*HW, 1).bool()}
    hidden["mask"][0, 0] = True
    only = (model(camera)["rgb"][0, 0] - batch["image"][0, 0] / 255).abs().mean()
    torch.testing.assert_close(model.get_loss_dict(model(camera), hidden)["l1"], only)


def test_method_needs_gaussians(stubbed: None, folder: Path, tmp_path: Path) -> None:
    made = outputs_of(folder, "val")
    config = plugin.method.config.pipeline.model
    metadata = {**made.metadata, "geo4d_gaussians": str(tmp_path / "gaussians.ply")}
    with pytest.raises(InputError, match="geo4d fit"):
        config.setup(scene_box=None, num_train_data=1, metadata=metadata)
    with pytest.raises(InputError, match="dataparser geo4d"):
        config.setup(scene_box=None, num_train_data=1, metadata={})


def test_importing_the_plugin_needs_no_nerfstudio() -> None:
    code = "import sys, geo4d.plugins.nerfstudio as p; assert 'nerfstudio' not in sys.modules; assert p.split_data"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_pictures_do_not_hang_on_the_unit_of_the_scene(folder: Path) -> None:
    scene, gaussians, unit = load_scene(folder), read_gaussians(folder / "gaussians.ply"), 1e-3
    small = dataclasses.replace(gaussians, means=unit * gaussians.means, scales=unit * gaussians.scales)
    pose = scene.camera[0].world_from_cam
    moved = scene.camera[0].with_pose(geometry.rigid(pose[:3, :3], unit * pose[:3, 3]))
    expected = plugin.draw(plugin.parameters(gaussians), scene.camera[0])
    found = plugin.draw(plugin.parameters(small), moved)
    assert float(expected["accumulation"].max()) > 0.5
    for name in ("rgb", "accumulation"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-3)
