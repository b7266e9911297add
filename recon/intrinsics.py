"""Physical cameras of a set of pictures: who shares intrinsics, what is known of them, and how the sensor sees a
picture.

Inside structure from motion pictures are as the sensor stored them, so that portrait and landscape pictures of one
phone share intrinsics; results are turned upright again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geo4d.core import geometry
from geo4d.core.types import Camera, Distortion, Frames
from recon import bundle
from recon.features import Features
from recon.matches import Link
from recon.priors import Priors, sensor_intrinsics

if TYPE_CHECKING:
    import pycolmap

MAPPING_SIDE = 2000
"""Longer side in pixels that thresholds are made for."""
DEFAULT_FOCAL = 0.85
"""Focal length in longer sides where nothing is known: a phone's main camera has 0.7, its portrait lens 1.4."""
DEFAULT_FOCAL_STD = 0.4
"""Its deviation in longer sides: too weak to matter, except for two or three pictures from nearly one direction."""
EXIF_FOCAL_STD = 0.05
CENTRE_STD = 0.01
"""Of the principal point, in longer sides, around the middle of the picture."""
RADIAL_STD = 0.3
TANGENTIAL_STD = 2e-4
"""Lenses are centred well, and what tilts them looks much like a moved principal point."""
SYSTEMATIC = 1.0
"""Errors that the keypoints of one picture share (rolling shutter, stabilisation, breathing focus), in units of their
noise. What they do to a focal length grows with 1 / (how far the cameras turn), to a principal point with 1 / (how far
they turn about a second axis)."""
ASPECT_STD = 1e-3
"""Of log(fx / fy): pixels are square."""


@dataclass(frozen=True)
class FocalPrior:
    """A focal length that is roughly known."""

    px: float
    relative_std: float
    source: str


@dataclass(frozen=True, eq=False)
class Sensors:
    """Groups of frames that share intrinsics.

    `of_frame` (n,) is each frame's group; `hw` per group the picture size as the sensor stores it; `turns` (n,)
    the quarter
    turns from there to the upright picture; `known` per group intrinsics that were given, with `known_std` of the focal
    length; `focal_prior` per group what else says how long it is, or None.
    """

    of_frame: np.ndarray
    turns: np.ndarray
    hw: tuple[tuple[int, int], ...]
    upright_hw: tuple[tuple[int, int], ...]
    known: tuple[Camera | None, ...]
    known_std: float
    focal_prior: tuple[FocalPrior | None, ...]
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.hw)

    @property
    def unit(self) -> float:
        """Pixels of the largest picture per pixel of one of `MAPPING_SIDE`: thresholds in pixels are multiplied by it.

        The mappers see pictures that are smaller by this factor, so that their thresholds mean the same for all sizes.
        """
        return max(1.0, max(max(hw) for hw in self.hw) / MAPPING_SIDE)

    def fixed(self, group: int) -> bool:
        """Whether the group's intrinsics are known for certain."""
        return self.known[group] is not None and self.known_std == 0

    def known_focal(self, group: int) -> float | None:
        """The group's focal length in pixels by what was given or by the metadata, or None."""
        camera = self.known[group]
        prior = self.focal_prior[group]
        return (prior.px if prior else None) if camera is None else float(camera.K[0, 0])

    def with_predicted_focals(self, focal_px: Sequence[float | None], relative_std: float) -> Sensors:
        """The groups with predicted focal lengths where neither the user nor the metadata know better; None: none."""
        predicted = [None if f is None else FocalPrior(f, relative_std, "predicted") for f in focal_px]
        priors = tuple(known or new for known, new in zip(self.focal_prior, predicted, strict=True))
        return replace(self, focal_prior=priors)

    def keypoints(self, found: Sequence[Features]) -> list[np.ndarray]:
        """Keypoints of every frame in pixels of the picture as the sensor stores it."""
        return [self._turned(f.uv_px, self.upright_hw[i], -int(self.turns[i])) for i, f in enumerate(found)]

    def upright_pixels(self, frame: int, uv_px: np.ndarray) -> np.ndarray:
        """Sensor pixels as pixels of the upright picture."""
        return self._turned(uv_px, self.hw[self.of_frame[frame]], int(self.turns[frame]))

    @staticmethod
    def _turned(uv_px: np.ndarray, hw: tuple[int, int], turns: int) -> np.ndarray:
        return uv_px if turns % 4 == 0 else geometry.turn_pixels(torch.from_numpy(uv_px), hw, turns).numpy()

    def _turn(self, frame: int) -> np.ndarray:
        """Rotation upright_from_sensor."""
        return geometry.quarter_turn(int(self.turns[frame])).numpy().astype(np.float64)

    def sensor_pose(self, frame: int, world_from_upright: np.ndarray) -> np.ndarray:
        """cam_from_world 4x4 of the sensor from the pose of the upright picture's camera."""
        upright_from_sensor = np.eye(4)
        upright_from_sensor[:3, :3] = self._turn(frame)
        return np.linalg.inv(world_from_upright @ upright_from_sensor)

    def upright_covariance(self, frame: int, covariance: np.ndarray) -> np.ndarray:
        """Covariance of (rotation, translation) of cam_from_world of the upright camera."""
        turn = np.kron(np.eye(2), self._turn(frame))
        return turn @ covariance @ turn.T

    def camera(self, frame: int, cam_from_world: np.ndarray, lens: np.ndarray) -> Camera:
        """The camera of the upright picture."""
        group = int(self.of_frame[frame])
        K = torch.eye(3, dtype=torch.float64)
        K[0, 0], K[1, 1], K[0, 2], K[1, 2] = (float(v) for v in lens[:4])
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3] = torch.from_numpy(cam_from_world)
        distortion = Distortion(self.model(group), torch.from_numpy(lens[4:].astype(np.float64)))
        sensor = Camera(K, geometry.rigid_inverse(pose), self.hw[group], distortion)
        return sensor.turned(int(self.turns[frame]))

    def model(self, group: int) -> str:
        """Lens model of the group, of `bundle.MODELS`: a fisheye only where that was given."""
        known = self.known[group]
        given = known is not None and known.distortion is not None and known.distortion.model == "OPENCV_FISHEYE"
        return "OPENCV_FISHEYE" if given else "OPENCV"

    @property
    def kinds(self) -> np.ndarray:
        """Numbers `(g,)` of the groups' lens models, as in `bundle.Problem.model`."""
        return np.array([bundle.MODELS[self.model(g)] for g in range(self.count)])

    def start_focal(self, group: int) -> float:
        """The focal length to begin with, in pixels."""
        known = self.known[group]
        if known is not None:
            return float(known.K[0, 0] + known.K[1, 1]) / 2
        prior = self.focal_prior[group]
        return prior.px if prior else DEFAULT_FOCAL * max(self.hw[group])

    def colmap(self, group: int) -> pycolmap.Camera:
        """The camera that the mappers begin with, in their smaller pixels; one radial term where nothing is known."""
        from geo4d.core.pycolmap_import import pycolmap

        height, width = (max(1, round(side / self.unit)) for side in self.hw[group])
        if self.known[group] is not None:
            camera = pycolmap.Camera.create_from_model_name(0, self.model(group), 1.0, width, height)
            camera.params = list(self._known_lens(group) / self._pixel_factors())
            camera.has_prior_focal_length = True
            return camera
        camera = pycolmap.Camera.create_from_model_name(0, "SIMPLE_RADIAL", 1.0, width, height)
        focal = self.start_focal(group)
        camera.params = [*(np.array([focal, self.hw[group][1] / 2, self.hw[group][0] / 2]) / self.unit), 0.0]
        camera.has_prior_focal_length = self.focal_prior[group] is not None
        return camera

    def _pixel_factors(self) -> np.ndarray:
        """By what the 8 parameters are smaller for the mappers: focal lengths and principal point are in pixels."""
        return np.array([self.unit] * 4 + [1.0] * 4)

    def _known_lens(self, group: int) -> np.ndarray:
        camera = self.known[group]
        assert camera is not None
        return lens_of(camera)

    def to_opencv(self, model: pycolmap.Reconstruction) -> None:
        """Widens the mapper's one radial term to COLMAP's OPENCV model, in place."""
        from geo4d.core.pycolmap_import import pycolmap

        for camera in model.cameras.values():
            if camera.model == pycolmap.CameraModelId.SIMPLE_RADIAL:
                f, cx, cy, k = camera.params
                camera.model = pycolmap.CameraModelId.OPENCV
                camera.params = [f, f, cx, cy, k, 0.0, 0.0, 0.0]

    def start(self, model: pycolmap.Reconstruction) -> tuple[np.ndarray, np.ndarray]:
        """Model kinds (g,) and intrinsics (g, 8) of the mapper's cameras; those of unused groups stay at their
        start.
        """
        lens = np.zeros((self.count, 8))
        for g in range(self.count):
            if (g + 1) in model.cameras:
                lens[g] = np.array(model.cameras[g + 1].params) * self._pixel_factors()
            else:
                height, width = self.hw[g]
                focal = self.start_focal(g)
                lens[g, :4] = focal, focal, width / 2, height / 2
        return self.kinds, lens

    def priors(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Means and deviations (g, 8) of the intrinsics, and the deviation of log(fx / fy)."""
        mean, std = np.zeros((self.count, 8)), np.zeros((self.count, 8))
        for g, (height, width) in enumerate(self.hw):
            side = max(height, width)
            if self.known[g] is not None:
                mean[g] = self._known_lens(g)
                focal = mean[g, 0] * self.known_std
                if focal > 0:
                    # What is uncertain of the focal length is so of the rest in proportion.
                    std[g] = [focal, focal, focal / 2, focal / 2, self.known_std, self.known_std, 1e-4, 1e-4]
                continue
            prior = self.focal_prior[g]
            focal_std = DEFAULT_FOCAL_STD * side if prior is None else prior.relative_std * prior.px
            focal = self.start_focal(g)
            mean[g, :4] = focal, focal, width / 2, height / 2
            std[g, :4] = focal_std, focal_std, CENTRE_STD * side, CENTRE_STD * side
            std[g, 4:] = RADIAL_STD, RADIAL_STD, TANGENTIAL_STD, TANGENTIAL_STD
        return mean, std, (np.inf if any(k is not None for k in self.known) else ASPECT_STD)

    def systematic_std(self, problem: bundle.Problem, noise_px: float) -> np.ndarray:
        """How far shared errors of keypoints mislead about the intrinsics (g, 8); infinite where cameras do not turn.

        Kruppa's equations degenerate for turns about one axis: the more so the closer the motion is to that (Sturm
        1997, "Critical motion sequences for monocular self-calibration").
        """
        from scipy.spatial.transform import Rotation

        out = np.zeros((self.count, 8))
        for g in range(self.count):
            poses = Rotation.from_matrix(problem.cam_from_world[problem.group == g, :, :3])
            if not len(poses):
                continue
            turns = np.vstack([(poses * poses.mean().inv()).as_rotvec(), np.zeros((3, 3))])
            about = np.linalg.svd(turns, compute_uv=False) / np.sqrt(len(poses))
            with np.errstate(divide="ignore"):
                focal, centre = SYSTEMATIC * noise_px / about[:2]
            out[g, :4] = focal, focal, centre, centre
        return out

    def held_back(self, priors: bundle.Priors, found: bundle.Covariance, systematic_std: np.ndarray) -> bundle.Priors:
        """Priors whose principal points weigh against the pictures' evidence as its true deviation deserves.

        With s the deviation by noise and e that with shared errors, a prior of deviation p becomes one of p s / e,
        in the adjustment's units of keypoints with a deviation of 1.
        """
        std = priors.intrinsics_std.copy()
        for g in range(self.count):
            for c in (2, 3):
                if 0 < std[g, c] < np.inf:
                    noise = bundle.data_variance(found.intrinsics[g, c, c], std[g, c])
                    share = 1 / np.sqrt(1 + systematic_std[g, c] ** 2 / noise)
                    std[g, c] *= max(share, 1e-4) / found.sigma_px
        return replace(priors, intrinsics_std=std)

    def facts(self, lens: np.ndarray, covariance: np.ndarray, placed: Sequence[int]) -> list[dict[str, Any]]:
        """Parts of `recon.report.IntrinsicsFacts`, per group with `placed` pictures; pixels as the sensor stores
        them.
        """
        out = []
        for g in sorted(set(placed)):
            std = np.sqrt(np.maximum(np.diag(covariance[g]), 0))
            prior = self.focal_prior[g]
            free = self.fixed(g)
            out.append(
                {
                    "sensor": self.names[g],
                    "photos": int((self.of_frame == g).sum()),
                    "hw": list(self.hw[g]),
                    "model": self.model(g),
                    "focal_px": [float(lens[g, 0]), float(lens[g, 1])],
                    "focal_std_px": float(std[:2].max()),
                    "prior_focal_px": prior and prior.px,
                    "prior_source": "given" if self.known[g] is not None else (prior and prior.source),
                    "principal_point_px": [float(lens[g, 2]), float(lens[g, 3])],
                    "principal_point_std_px": float(std[2:4].max()),
                    "distortion": [float(v) for v in lens[g, 4:]],
                    "freed": [] if free else self._freed(g, std),
                }
            )
        return out

    def _freed(self, group: int, std: np.ndarray) -> list[str]:
        """Parameters of which the pictures say more than the prior: their deviation fell to less than half."""
        _, before, _ = self.priors()
        names = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")
        return [n for n, b, s in zip(names, before[group], std, strict=True) if b > 0 and s < b / 2]


def group(frames: Frames, priors: Priors) -> Sensors:
    """Frames of one sensor and one stored size share intrinsics."""
    stored = [f.hw if f.quarter_turns % 2 == 0 else (f.hw[1], f.hw[0]) for f in frames]
    keys = [(f.sensor, hw) for f, hw in zip(frames, stored, strict=True)]
    order = list(dict.fromkeys(keys))
    known_by_sensor = sensor_intrinsics(priors, frames) if priors.intrinsics else {}
    known, focal = [], []
    for sensor, hw in order:
        camera = known_by_sensor.get(sensor)
        known.append(None if camera is None else _simple(camera.resize(hw)))
        seen = [f.focal_prior_px for f, k in zip(frames, keys, strict=True) if k == (sensor, hw) and f.focal_prior_px]
        focal.append(FocalPrior(float(np.median(seen)), EXIF_FOCAL_STD, "EXIF") if seen else None)
    return Sensors(
        np.array([order.index(k) for k in keys]),
        np.array([f.quarter_turns % 4 for f in frames]),
        tuple(hw for _, hw in order),
        tuple(f.hw for f in frames),
        tuple(known),
        priors.focal_relative_std,
        tuple(focal),
        tuple(s for s, _ in order),
    )


def _simple(camera: Camera) -> Camera:
    return camera.to("cpu")


def focal_from_poses(model: pycolmap.Reconstruction, sensors: Sensors, links: Sequence[Link]) -> dict[int, float]:
    """Focal length per COLMAP camera id (of those not known) at which the given poses explain the matches best.

    Minimises the median epipolar distance over a grid of focal lengths of all unknown groups together.
    """
    unknown = [g for g in range(sensors.count) if sensors.known[g] is None]
    placed = set(model.reg_image_ids())
    usable = [k for k in links if k.pair[0] + 1 in placed and k.pair[1] + 1 in placed]
    usable = sorted(usable, key=lambda k: -len(k.inliers))[:60]
    if not unknown or not usable:
        return {}
    factors = np.exp(np.linspace(np.log(0.5), np.log(2.0), 57))
    # Reading points one by one from COLMAP is slow: once per picture, not per focal length and link.
    uv_px = {i + 1: np.array([p.xy for p in model.image(i + 1).points2D]) for i in {i for k in usable for i in k.pair}}
    errors = [_epipolar_error_px(model, sensors, usable, uv_px, unknown, f) for f in factors]
    best = float(factors[int(np.argmin(errors))])
    return {g + 1: best * sensors.start_focal(g) / sensors.unit for g in unknown}


def _epipolar_error_px(
    model: pycolmap.Reconstruction,
    sensors: Sensors,
    links: Sequence[Link],
    uv_px: Mapping[int, np.ndarray],
    unknown: Sequence[int],
    factor: float,
) -> float:
    errors = []
    for link in links:
        a, b = (model.image(i + 1) for i in link.pair)
        points, focal = [], 1.0
        for image, index in ((a, link.inliers[:, 0]), (b, link.inliers[:, 1])):
            uv = uv_px[image.image_id][index]
            g = image.camera_id - 1
            if g in unknown:
                focal = factor * sensors.start_focal(g) / sensors.unit
                height, width = (side / sensors.unit for side in sensors.hw[g])
                xy = (uv - [width / 2, height / 2]) / focal
            else:
                camera = model.camera(image.camera_id)
                focal, xy = camera.mean_focal_length(), np.asarray(camera.cam_from_img(uv))
            points.append(np.column_stack([xy, np.ones(len(xy))]))
        b_from_a = b.cam_from_world() * a.cam_from_world().inverse()
        t = b_from_a.translation
        cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
        line = points[0] @ (cross @ b_from_a.rotation.matrix()).T
        distance = np.abs((line * points[1]).sum(1)) / np.maximum(np.linalg.norm(line[:, :2], axis=1), 1e-12)
        errors.append(np.median(distance) * focal)
    return float(np.median(errors))


def lens_of(camera: Camera) -> np.ndarray:
    """The 8 parameters of a camera as the sensor sees, as OPENCV or OPENCV_FISHEYE."""
    K, lens = camera.K.numpy(), np.zeros(8)
    lens[:4] = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if camera.distortion is not None:
        extras = camera.distortion.params.numpy()
        lens[4 : 4 + len(extras)] = extras
    return lens
