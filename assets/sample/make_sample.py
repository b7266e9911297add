"""Make the bundled sample: path-trace 24 photos of a table-top with known cameras and write the reference beside them.

For maintainers; needs `bpy` (Blender as a Python package), numpy, opencv-python-headless and pillow. Example:
    python assets/sample/make_sample.py --out assets/sample --cache ~/.cache/geo4d-sample
Finished renders are kept in the cache folder, so that an interrupted run goes on where it stopped. Delete the cache
after a change of the scene or of the cameras; a change of the photo stage (`sample_photo.py`) needs no new render.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np
import sample_photo as photo
import sample_scene as scene

TARGET_M = np.array([0.02, -0.02, scene.TABLE_TOP_M + 0.05])
PORTRAITS = (5, 12, 18)
CLOSE_UPS = (23, 24)
DEPTH_PHOTOS = (6, 17)


@dataclass(frozen=True)
class Settings:
    """All choices of one run.

    Few samples at `render_scale` render pixels per photo pixel, denoised and then filtered down, keep edges and
    textures sharper than more samples at the size of the photo.
    """

    out_dir: Path
    cache_dir: Path
    seed: int = 4
    samples: int = 5
    render_scale: float = 1.4
    texture_detail: float = 1.0
    threads: int = 2

    @property
    def render_dir(self) -> Path:
        """Renders of different settings do not mix."""
        return self.cache_dir / f"renders_seed{self.seed}_scale{self.render_scale:.2f}_samples{self.samples}"

    @property
    def texture_dir(self) -> Path:
        """Textures of different settings do not mix."""
        return self.cache_dir / f"textures_seed{self.seed}_detail{self.texture_detail:.2f}"


@dataclass(frozen=True)
class Shot:
    """One photo to take: number, pose (OpenCV axes) and size of the upright photo."""

    number: int
    world_from_cam: np.ndarray
    hw: tuple[int, int]

    @property
    def name(self) -> str:
        """Stem of the file name."""
        return f"IMG_{self.number:04d}"


# ---------------------------------------------------------------- the walk


def look_at(eye: np.ndarray, target: np.ndarray, roll_rad: float) -> np.ndarray:
    """world_from_cam (4, 4), OpenCV axes, of a camera at `eye` that looks at `target`, then rolled about its axis."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, down, forward], -1) @ scene.rotation_z(roll_rad)
    pose[:3, 3] = eye
    return pose


def plan_walk(seed: int) -> list[Shot]:
    """A low walk around the table, a higher walk back and two close-ups, all hand-held."""
    rng = np.random.default_rng([seed, 1])
    low = [(a, 1.10, 27.0) for a in np.linspace(-112, 108, 12)]
    high = [(a, 0.90, 47.0) for a in np.linspace(98, -102, 10)]
    near = [(-24.0, 0.66, 38.0), (16.0, 0.66, 44.0)]
    shots = []
    for number, (azimuth_deg, distance, elevation_deg) in enumerate(low + high + near, 1):
        azimuth = np.deg2rad(azimuth_deg + rng.normal(0, 2.0))
        elevation = np.deg2rad(elevation_deg + rng.normal(0, 2.0))
        distance = distance * rng.uniform(0.96, 1.05)
        direction = np.array(
            [np.cos(elevation) * np.sin(azimuth), -np.cos(elevation) * np.cos(azimuth), np.sin(elevation)]
        )
        target = TARGET_M + rng.normal(0, 0.025, 3)
        if number in CLOSE_UPS:
            target = np.array([-0.06 if number == 23 else 0.12, -0.14, scene.TABLE_TOP_M + 0.03])
        pose = look_at(target + distance * direction, target, np.deg2rad(rng.normal(0, 2.2)))
        hw = photo.PORTRAIT_HW if number in PORTRAITS else photo.LANDSCAPE_HW
        shots.append(Shot(number, pose, hw))
    return shots


# ---------------------------------------------------------------- rendering


def prepare_renderer(settings: Settings) -> None:
    """Cycles on the CPU, denoised with albedo and normals, linear colours."""
    s = bpy.context.scene
    s.render.engine = "CYCLES"
    s.cycles.device = "CPU"
    s.render.threads_mode, s.render.threads = "FIXED", settings.threads
    s.render.use_persistent_data = True
    s.cycles.seed = settings.seed
    s.cycles.use_adaptive_sampling = False
    s.cycles.max_bounces, s.cycles.diffuse_bounces, s.cycles.glossy_bounces = 4, 3, 2
    s.cycles.transmission_bounces = s.cycles.volume_bounces = 0
    s.cycles.caustics_reflective = s.cycles.caustics_refractive = False
    s.cycles.sample_clamp_indirect = 4.0
    s.cycles.denoiser = "OPENIMAGEDENOISE"
    s.cycles.denoising_input_passes = "RGB_ALBEDO_NORMAL"
    s.cycles.denoising_prefilter = "FAST"
    s.view_settings.view_transform = "Raw"
    s.camera = bpy.data.objects.new("phone", bpy.data.cameras.new("phone"))
    s.collection.objects.link(s.camera)


def set_camera(world_from_cam: np.ndarray, focal_px: float, hw: tuple[int, int]) -> None:
    """Point Blender's camera: a pinhole whose principal point is the centre of the picture."""
    from mathutils import Matrix

    s = bpy.context.scene
    s.render.resolution_y, s.render.resolution_x = hw
    s.render.resolution_percentage = 100
    data = s.camera.data
    data.sensor_fit, data.sensor_width = "HORIZONTAL", 36.0
    data.lens = 36.0 * focal_px / hw[1]
    data.clip_start, data.clip_end = 0.01, 50.0
    s.camera.matrix_world = Matrix((world_from_cam @ np.diag([1.0, -1.0, -1.0, 1.0])).tolist())


def read_exr(path: Path, channels: int) -> np.ndarray:
    """Picture of an EXR file, first row on top."""
    image = bpy.data.images.load(str(path), check_existing=False)
    image.colorspace_settings.name = "Non-Color"
    w, h = image.size
    values = np.zeros(w * h * image.channels, np.float32)
    image.pixels.foreach_get(values)
    values = values.reshape(h, w, image.channels)[::-1, :, :channels]
    bpy.data.images.remove(image)
    return np.ascontiguousarray(values)


def render_colour(shot: Shot, settings: Settings) -> np.ndarray:
    """Linear pinhole picture (h, w, 3), a little wider than the photo; kept in the cache."""
    path = settings.render_dir / f"{shot.name}.npy"
    if not path.exists():
        s = bpy.context.scene
        s.cycles.samples, s.cycles.use_denoising = settings.samples, True
        s.cycles.pixel_filter_type, s.cycles.filter_width = "BLACKMAN_HARRIS", 0.9
        focal_px, hw = photo.render_camera(shot.hw, settings.render_scale)
        set_camera(shot.world_from_cam, focal_px, hw)
        s.render.image_settings.file_format, s.render.image_settings.color_depth = "OPEN_EXR", "16"
        s.render.filepath = str(settings.cache_dir / "frame.exr")
        start = time.perf_counter()
        bpy.ops.render.render(write_still=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npy")
        np.save(unfinished, read_exr(Path(s.render.filepath), 3).astype(np.float16))
        unfinished.replace(path)
        print(f"{shot.name}: rendered in {time.perf_counter() - start:.0f} s", flush=True)
    return np.load(path).astype(np.float32)


def render_geometry(shot: Shot, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """z-depth in metres and object ids, both (h, w) at the centres of the pixels of the undistorted picture."""
    path = settings.render_dir / f"{shot.name}_geometry.npz"
    if not path.exists():
        s = bpy.context.scene
        s.cycles.samples, s.cycles.use_denoising = 1, False
        s.cycles.pixel_filter_type, s.cycles.filter_width = "BOX", 0.01
        K, hw = photo.depth_camera(shot.hw)
        set_camera(shot.world_from_cam, float(K[0, 0]), hw)
        layer = s.view_layers[0]
        layer.use_pass_z = layer.use_pass_object_index = True
        s.use_nodes = True
        tree = s.node_tree
        tree.nodes.clear()
        source = tree.nodes.new("CompositorNodeRLayers")
        for pass_name in ("Depth", "IndexOB"):
            sink = tree.nodes.new("CompositorNodeOutputFile")
            sink.base_path = str(settings.cache_dir)
            sink.format.file_format, sink.format.color_depth = "OPEN_EXR", "32"
            sink.file_slots[0].path = f"{pass_name}_"
            tree.links.new(source.outputs[pass_name], sink.inputs[0])
        bpy.ops.render.render()
        depth_m, ids = (
            read_exr(settings.cache_dir / f"{n}_{s.frame_current:04d}.exr", 1)[..., 0] for n in ("Depth", "IndexOB")
        )
        s.use_nodes = False
        layer.use_pass_z = layer.use_pass_object_index = False
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, depth_m=depth_m, ids=np.rint(ids).astype(np.uint8))
    stored = np.load(path)
    return stored["depth_m"], stored["ids"]


# ---------------------------------------------------------------- command line


def main() -> None:
    """Render what the cache lacks, develop the photos and write the reference."""
    parser = argparse.ArgumentParser(description="Make geo4d's bundled sample.")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets images/ and reference/")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder for textures and renders, outside the checkout"
    )
    parser.add_argument(
        "--only", default="", help="comma-separated photo numbers; the reference is written only for all"
    )
    parser.add_argument("--samples", type=int, default=Settings.samples, help="path-tracing samples per pixel")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--preview", action="store_true", help="a third of the size, 8 samples, coarse textures")
    args = parser.parse_args()
    settings = Settings(args.out, args.cache, args.seed, args.samples)
    if args.preview:
        settings = replace(settings, samples=8, render_scale=1 / 3, texture_detail=0.5)
    wanted = {int(n) for n in args.only.split(",")} if args.only else set(range(1, 25))
    things = scene.build_scene(settings.texture_dir, settings.seed, settings.texture_detail)
    prepare_renderer(settings)
    shots = plan_walk(settings.seed)
    for shot in shots:
        if shot.number in wanted:
            linear = render_colour(shot, settings)
            photo.develop(linear, shot, settings)
    if not args.only:
        geometry = {n: render_geometry(shots[n - 1], settings) for n in DEPTH_PHOTOS}
        photo.write_reference(shots, things, geometry, settings.out_dir)


if __name__ == "__main__":
    main()
