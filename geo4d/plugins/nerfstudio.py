"""geo4d in nerfstudio: a dataparser for scene folders, and a method that shows, scores and refines fitted Gaussians.

`ns-train splatfacto geo4d --data SCENE` trains another method on a scene; `ns-train geo4d --data SCENE` starts from
`SCENE/gaussians.ply` as `geo4d fit` wrote it. Refining moves the Gaussians; it neither adds nor removes any.

nerfstudio finds `dataparser` and `method` by entry points. They and their classes are made when they are first asked
for, so that this module imports without nerfstudio.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geo4d.core import geometry
from geo4d.core.errors import InputError
from geo4d.core.io.camera_path import second_of, share_of
from geo4d.core.io.gaussian_values import LOGIT_LIMIT
from geo4d.core.io.gaussians import GAUSSIANS, read_scene_gaussians
from geo4d.core.io.scene import StoredPicture, load_scene
from geo4d.core.types import Camera, Gaussians, Motion, Scene
from recon.working import upright_world

MADE_ON_DEMAND = (
    "dataparser", "method", "Geo4DDataParser", "Geo4DDataParserConfig", "FittedModel", "FittedModelConfig",
)  # fmt: skip
RATES = {"means": 1.6e-5, "quats": 1e-3, "log_scales": 5e-3, "logits": 5e-2, "sh": 2.5e-3}
"""Learning rates; that of positions per unit of nerfstudio's scaled scene."""


@dataclass(frozen=True, eq=False)
class SplitData:
    """One split of a scene as nerfstudio wants it: OpenGL cameras in a world with z up that they fill to [-1, 1].

    `pose (n, 3, 4)` is camera to world; `fx`, `fy`, `cx`, `cy`, `width`, `height` are `(n,)`; `time (n,)` is a share of
    `span_s`, None where one has no time; `transform (3, 4)` and `scale` are what was applied to the
    scene's world: p_new = scale * (transform p_world).
    """

    files: list[Path]
    masks: list[Path] | None
    pose: Tensor
    fx: Tensor
    fy: Tensor
    cx: Tensor
    cy: Tensor
    width: Tensor
    height: Tensor
    time: Tensor | None
    span_s: tuple[float, float]
    """Times of the scene's first and last picture: what nerfstudio's viewer and paths have as 0 and 1."""
    points: Tensor
    rgb: Tensor
    transform: Tensor
    scale: float
    gaussians: Path


def split_data(folder: Path, split: str = "train", *, eval_interval: int = 8, normalise: bool = True) -> SplitData:
    """The pictures and cameras of one split of a scene folder.

    Args:
        folder: a scene folder, as on disk: pictures and masks are read from there.
        split: `train`, or `val` or `test` for the pictures that are held out.
        eval_interval: every so-manieth picture by sorted name is held out, the first one included, and what the scene's
            dataset holds out; 0 holds out no others, and evaluates on all where there are none.
        normalise: turn up to +z, centre the cameras and scale them to [-1, 1]; else the scene's own world.

    Raises:
        InputError: no scene there, or a split without pictures.
    """
    scene = load_scene(folder)
    order = sorted(range(len(scene.frames)), key=lambda i: scene.frames[i].name)
    held_out = scene.held_out(eval_interval)
    train = [i for i in order if i not in held_out]
    chosen = train if split == "train" or not held_out else held_out
    if not chosen:
        raise InputError(
            f"cannot make the {split} split of {str(folder)!r}", found=f"{len(order)} pictures",
            accepted=f"pictures that are left where {len(held_out)} are held out", hint="--eval-interval 0",
        )  # fmt: skip
    transform, scale = _normalisation(scene) if normalise else (torch.eye(4, dtype=torch.float64), 1.0)
    poses = torch.stack([transform @ scene.camera[i].world_from_cam @ geometry.OPENGL_FROM_OPENCV for i in chosen])
    poses[:, :3, 3] *= scale
    K = torch.stack([scene.camera[i].K for i in chosen]).float()
    hw = torch.tensor([scene.camera[i].hw for i in chosen])
    every_s = [f.time_s for f in scene.frames if f.time_s is not None] or [0.0]
    span_s = min(every_s), max(every_s)
    times = [share_of(t, span_s) for i in chosen if (t := scene.frames[i].time_s) is not None]
    cloud = scene.cloud
    points = geometry.transform_points(transform, cloud.p_world) * scale
    files = [_file(scene, i) for i in chosen]
    masked = any(frame.read_mask is not None for frame in scene.frames)
    return SplitData(
        files, [folder / "masks" / f"{file.stem}.png" for file in files] if masked else None, poses[:, :3].float(),
        K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2], hw[:, 1], hw[:, 0],
        torch.tensor(times) if len(times) == len(chosen) else None, span_s,
        points.float(), (cloud.rgb * 255).round().to(torch.uint8),
        transform[:3].float(), scale, folder / GAUSSIANS,
    )  # fmt: skip


def _normalisation(scene: Scene) -> tuple[Tensor, float]:
    centres = torch.stack([camera.world_from_cam[:3, 3] for camera in scene.camera])
    transform = upright_world(scene.up_world, centres.mean(0))
    reach = float(geometry.transform_points(transform, centres).abs().max())
    return transform, 1 / reach if reach > 0 else 1.0


def _file(scene: Scene, index: int) -> Path:
    read = scene.frames[index].read
    assert isinstance(read, StoredPicture)  # of a scene that was loaded from its folder
    return read.path


def scene_camera(pose: Tensor, K: Tensor, hw: tuple[int, int], transform: Tensor, scale: float) -> Camera:
    """A camera in the scene's world from one in nerfstudio's: undoes `transform`, `scale` and OpenGL axes.

    Args:
        pose: `(3, 4)` camera to world.
        K: `(3, 3)`.
        hw: height and width.
        transform: `(3, 4)` of `SplitData`.
        scale: of `SplitData`.
    """
    pose, transform = pose.double(), transform.double().to(pose.device)
    moved = geometry.rigid(pose[:, :3], pose[:, 3] / scale)
    world = geometry.rigid_inverse(geometry.rigid(transform[:, :3], transform[:, 3])) @ moved
    return Camera(K.double(), world @ geometry.OPENGL_FROM_OPENCV.to(world), hw)


def parameters(gaussians: Gaussians) -> torch.nn.ParameterDict:
    """What an optimiser may move without leaving the valid range, by the names of `RATES`."""
    opacity = gaussians.opacity.double()
    values = {
        "means": gaussians.means, "quats": gaussians.quats_wxyz,
        "log_scales": gaussians.scales.clamp_min(1e-12).log(),
        "logits": torch.logit(opacity).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).float(), "sh": gaussians.sh,
    }  # fmt: skip
    return torch.nn.ParameterDict({k: torch.nn.Parameter(v.clone()) for k, v in values.items()})


def draw(
    values: torch.nn.ParameterDict, camera: Camera, motion: Motion | None = None, time_s: float | None = None
) -> dict[str, Tensor]:
    """Pictures of the Gaussians: `rgb (h, w, 3)`, `depth (h, w, 1)` in scene units, `accumulation (h, w, 1)`; moved to
    a time where they have a motion.
    """
    from render import rasterization
    from render.views import near_plane

    means, quats, sh = values["means"], values["quats"], values["sh"]
    scales, opacity = values["log_scales"].exp(), values["logits"].sigmoid()
    if motion is not None and time_s is not None:
        quats = torch.nn.functional.normalize(quats, dim=-1)
        there = Gaussians(means, quats, scales, opacity, sh, motion=motion).at(time_s)
        means, quats, scales, opacity, sh = there.means, there.quats_wxyz, there.scales, there.opacity, there.sh
    picture, alpha, _ = rasterization(
        means, quats, scales, opacity, sh,
        camera.cam_from_world[None].to(means), camera.K[None].to(means), camera.hw[1], camera.hw[0],
        near_plane=near_plane(means), sh_degree=round(values["sh"].shape[1] ** 0.5) - 1, render_mode="RGB+ED",
    )  # fmt: skip
    return {"rgb": picture[0, ..., :3].clamp(0, 1), "depth": picture[0, ..., 3:], "accumulation": alpha[0]}


def __getattr__(name: str) -> Any:
    if name in MADE_ON_DEMAND:
        return _made()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _made() -> dict[str, Any]:
    """The objects of `MADE_ON_DEMAND`; imports nerfstudio."""
    made = _dataparser_classes() | _model_classes()
    for name, value in made.items():
        value.__qualname__ = name  # nerfstudio writes the names of classes into its config files
    return made | {"dataparser": _dataparser(made), "method": _method(made)}


def _dataparser_classes() -> dict[str, Any]:
    from nerfstudio.cameras.cameras import Cameras, CameraType
    from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
    from nerfstudio.data.scene_box import SceneBox

    @dataclass
    class Geo4DDataParserConfig(DataParserConfig):
        """A scene folder of `geo4d reconstruct`."""

        _target: type = field(default_factory=lambda: Geo4DDataParser)
        data: Path = Path()
        """The scene folder."""
        eval_interval: int = 8
        """Every so-manieth picture by sorted name is held out, and what the dataset holds out; 0: no others."""
        normalise: bool = True
        """Turn up to +z, centre and scale the cameras to [-1, 1]."""

    class Geo4DDataParser(DataParser):
        """Cameras, pictures, masks, times and points of a scene folder."""

        config: Geo4DDataParserConfig

        def _generate_dataparser_outputs(self, split: str = "train", **_: Any) -> Any:
            config = self.config
            data = split_data(config.data, split, eval_interval=config.eval_interval, normalise=config.normalise)
            cameras = Cameras(
                camera_to_worlds=data.pose, fx=data.fx[:, None], fy=data.fy[:, None], cx=data.cx[:, None],
                cy=data.cy[:, None], width=data.width[:, None], height=data.height[:, None],
                camera_type=CameraType.PERSPECTIVE, times=None if data.time is None else data.time[:, None],
            )  # fmt: skip
            return DataparserOutputs(
                image_filenames=data.files, cameras=cameras, mask_filenames=data.masks,
                scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
                dataparser_transform=data.transform, dataparser_scale=data.scale,
                metadata={
                    "points3D_xyz": data.points, "points3D_rgb": data.rgb, "geo4d_gaussians": str(data.gaussians),
                    "geo4d_transform": data.transform, "geo4d_scale": data.scale, "geo4d_span_s": data.span_s,
                },
            )  # fmt: skip

    return {"Geo4DDataParserConfig": Geo4DDataParserConfig, "Geo4DDataParser": Geo4DDataParser}


def _model_classes() -> dict[str, Any]:
    from nerfstudio.models.base_model import Model, ModelConfig

    @dataclass
    class FittedModelConfig(ModelConfig):
        """Gaussians that `geo4d fit` made."""

        _target: type = field(default_factory=lambda: FittedModel)
        enable_collider: bool = False

    class FittedModel(Model):
        """Shows, scores and refines the Gaussians of a fitted scene."""

        def populate_modules(self) -> None:
            super().populate_modules()
            metadata = self.kwargs["metadata"]
            if "geo4d_gaussians" not in metadata:
                raise InputError("the method geo4d needs the dataparser geo4d", hint="ns-train geo4d --data SCENE")
            path = Path(metadata["geo4d_gaussians"])
            if not path.is_file():
                raise InputError("no Gaussians to show", found=f"no {path}", hint=f"geo4d fit {path.parent}")
            fitted = read_scene_gaussians(path.parent)
            self.gaussians, self.motion = parameters(fitted), fitted.motion
            self.transform, self.scale = metadata["geo4d_transform"], metadata["geo4d_scale"]
            self.span_s = metadata["geo4d_span_s"]

        def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
            return {name: [self.gaussians[name]] for name in RATES}

        def get_outputs(self, camera: Any) -> dict[str, Tensor]:
            hw = int(camera.height.item()), int(camera.width.item())
            K = camera.get_intrinsics_matrices()[0]
            time_s = None if camera.times is None else second_of(float(camera.times.flatten()[0]), self.span_s)
            seen_by = scene_camera(camera.camera_to_worlds[0], K, hw, self.transform, self.scale)
            self.motion = self.motion and self.motion.to(self.device)
            outputs = draw(self.gaussians, seen_by, self.motion, time_s)
            return outputs | {"depth": outputs["depth"] * self.scale}

        @torch.no_grad()
        def get_outputs_for_camera(self, camera: Any, obb_box: Any = None) -> dict[str, Tensor]:
            del obb_box
            return self.get_outputs(camera.to(self.device))

        def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
            error = self._error(outputs, batch)
            return {"psnr": -10 * torch.log10((error * error).mean().clamp_min(1e-12))}

        def get_loss_dict(
            self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: Any = None
        ) -> dict[str, Tensor]:
            del metrics_dict
            return {"l1": self._error(outputs, batch).abs().mean()}

        def get_image_metrics_and_images(
            self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
        ) -> tuple[dict[str, float], dict[str, Tensor]]:
            psnr = float(self.get_metrics_dict(outputs, batch)["psnr"])
            return {"psnr": psnr}, {"img": torch.cat([self._photo(batch), outputs["rgb"]], 1)}

        def _photo(self, batch: dict[str, Tensor]) -> Tensor:
            image = batch["image"].to(self.device)
            return (image.float() / 255 if image.dtype == torch.uint8 else image)[..., :3]

        def _error(self, outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
            error = outputs["rgb"] - self._photo(batch)
            return error[batch["mask"][..., 0].bool().to(self.device)] if "mask" in batch else error

    return {"FittedModelConfig": FittedModelConfig, "FittedModel": FittedModel}


def _dataparser(made: dict[str, Any]) -> Any:
    from nerfstudio.plugins.registry_dataparser import DataParserSpecification

    return DataParserSpecification(
        config=made["Geo4DDataParserConfig"](), description="A scene folder of geo4d: cameras, masks, times, points"
    )


def _method(made: dict[str, Any]) -> Any:
    from nerfstudio.configs.base_config import ViewerConfig
    from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
    from nerfstudio.engine.optimizers import AdamOptimizerConfig
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
    from nerfstudio.plugins.types import MethodSpecification

    datamanager = FullImageDatamanagerConfig(dataparser=made["Geo4DDataParserConfig"](), cache_images_type="uint8")
    config = TrainerConfig(
        method_name="geo4d", steps_per_eval_batch=0, steps_per_save=1000, max_num_iterations=2000,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(datamanager=datamanager, model=made["FittedModelConfig"]()),
        optimizers={
            name: {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": None}
            for name, rate in RATES.items()
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15), vis="viewer",
    )  # fmt: skip
    return MethodSpecification(config=config, description="Gaussians of geo4d fit: shown, scored and refined")
