"""The command line: `geo4d VERB ...`. Signatures use builtins and Path only: `geo4d --help` imports no torch."""

from __future__ import annotations

import json as json_module
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from geo4d.core.errors import Geo4DError, InputError
from geo4d.core.progress import Progress
from geo4d.core.threads import wait_calmly

Out = Annotated[Path, arg(aliases=["-o"])]
ExportFormat = Literal[
    "nerfstudio", "colmap", "ply", "points", "spz", "splat", "compressed", "glb", "mesh", "html", "rerun", "tracks",
    "glb-motion",
]  # fmt: skip


def reconstruct(
    input: Positional[str],
    /,
    out: Out,
    *,
    masks: Path | None = None,
    scale: Annotated[tuple[tuple[str, ...], ...], UseAppendAction] = (),
    intrinsics: str | None = None,
    intrinsics_std: float | None = None,
    poses: Path | None = None,
    poses_metric: bool = False,
    rotation_std_deg: float | None = None,
    position_std_m: float | None = None,
    pose_offset: bool = False,
    positions: Path | None = None,
    depth: Path | None = None,
    depth_K: str | None = None,
    depth_std: float = 0.02,
    backend: str = "auto",
    network: str | None = None,
    weights: Path | None = None,
    network_size: int | None = None,
    network_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    mapper: Literal["auto", "incremental", "global"] = "auto",
    dense: bool = True,
    depth_size: int = 640,
    image_size: int = 1920,
    feature_size: int = 2400,
    max_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    cuts: Literal["auto", "none"] = "auto",
    fps: float | None = None,
    align_times: bool = False,
    motion: Literal["auto", "always", "none"] = "auto",
    tracker: str = "flow",
    tracker_weights: Path | None = None,
    keep_all: bool = False,
    keep_gps: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    json: bool = False,
) -> dict[str, Any]:
    """Photos or a video to a scene: cameras, depth, points, scale and a report.

    Args:
        input: a folder of photos (jpg, png, webp, heic), a glob in quotes, a video, a phone capture (Record3D,
            Polycam, Stray Scanner), or a dataset of a moving scene with its cameras (D-NeRF, Nerfies, HyperNeRF,
            DyCheck, N3V, transforms.json with times, videos beside cameras).
        out: the scene folder to make.
        masks: folder with one mask per photo (white = use, black = ignore; in a PNG all that is not black is used); for
            a video a video of masks, or a folder, with one for each of its pictures.
        scale: where metres come from: marker:DICT_4X4_50:0.05, or distance:A.jpg:x,y:x,y:0.30; several one after
            the other, or each with --scale of its own.
        intrinsics: known intrinsics: fx,fy,cx,cy[,k1,k2,p1,p2]@WIDTHxHEIGHT, a transforms.json, a COLMAP folder or a
            text file with K.
        intrinsics_std: how far the known focal lengths may be off, relative; 0 is exact, held fixed (default: 0; of a
            phone capture 0.005).
        poses: known poses: transforms.json, COLMAP folder, folder of 4x4 camera-to-world matrices, TUM trajectory.
        poses_metric: the known poses are in metres (pose texts and TUM trajectories always are).
        rotation_std_deg: how far the rotations of known poses may be off; 0 is exact (default: 0; of a phone capture
            0.6). Poses are held fixed where this and --position-std-m are 0; one of them alone is nearly exact.
        position_std_m: how far the positions of known poses may be off, in metres; 0 is exact (default: 0; of a phone
            capture 0.02).
        pose_offset: the known poses are those of a sensor fixed beside the camera (depth camera, tracker, robot hand);
            estimate where.
        positions: CSV of camera positions: name,x,y,z[,std] in metres, or name,lat,lon,alt with a header; never held
            fixed: a std below 0.1 mm counts as that.
        depth: folder of measured depth images (16-bit PNG in mm, or npz in m).
        depth_K: intrinsics of the depth images, where they are not those of the photos: fx,fy,cx,cy[@WIDTHxHEIGHT], or
            a file with K.
        depth_std: how far measured depth may be off, relative; more than 0.
        backend: how cameras are found: auto, sfm (no weights), hybrid (a network made exact), or a network alone, as
            `geo4d doctor` lists them.
        network: the network for hybrid and auto (default: the first whose weights are on this machine).
        weights: file or folder with the network's weights (default: the cache of the Hugging Face hub).
        network_size: longer side in pixels at which the network works.
        network_dtype: numbers of the network's matrix products (auto: bfloat16 on a GPU, float32 on a CPU).
        mapper: how structure from motion grows; auto decides by evidence.
        dense: whether to estimate depth for every photo (--no-dense stops after cameras and sparse points).
        depth_size: longer side of the depth maps in pixels.
        image_size: longer side of the scene's pictures in pixels (0 = as photographed).
        feature_size: longer side in pixels at which features are found.
        max_frames: at most this many frames, of a dataset of times evenly spread (default: 150 of a video, else all).
        start: use a video, pictures of a film (--fps) or a dataset with times from this second on.
        end: use them up to this second.
        cuts: of a film that was cut, auto uses the longest piece and says what to type for the others; none uses all.
        fps: the photos are the pictures of a film, so many per second in the order of their names, and all are kept; of
            a video take so many per second, instead of by motion (things that move are looked for in 2 and more).
        align_times: move the clocks of cameras that stand still where what they show moving disagrees.
        motion: whether to look for what moves: auto does in datasets with times, and in pictures of a film that follow
            each other within half a second, and calls a scene still in which hardly anything seems to move; always
            keeps what seems to.
        tracker: what follows points that move: flow, or cotracker where that package is installed.
        tracker_weights: file with the tracker's weights.
        keep_all: keep blurred and duplicate photos too (not for a video).
        keep_gps: let GPS positions of photos pass into the scene.
        overwrite: replace a scene that is already there.
        resume: go on with a run that was interrupted.
        threads: processor threads to use (default: all).
        device: where a network computes; all else runs on the CPU.
        seed: of everything random.
        json: print the result as one JSON object on stdout.
    """
    from geo4d.core.io.film import VideoPart
    from geo4d.pipeline import reconstruction
    from recon.options import ReconstructOptions

    options = ReconstructOptions(
        mapper=mapper,
        dense=dense,
        depth_size=depth_size,
        image_size=image_size,
        feature_size=feature_size,
        network=network,
        weights=None if weights is None else str(weights),
        network_size=network_size,
        network_dtype=network_dtype,
        device=device,
        scale=tuple(source for sources in scale for source in sources),
        motion=motion,
        tracker=tracker,
        tracker_weights=None if tracker_weights is None else str(tracker_weights),
        threads=threads,
        seed=seed,
    )
    priors = reconstruction.PriorPaths(
        intrinsics=intrinsics,
        intrinsics_std=intrinsics_std,
        poses=poses,
        poses_metric=poses_metric,
        rotation_std_deg=rotation_std_deg,
        position_std_m=position_std_m,
        pose_offset=pose_offset,
        positions=positions,
        depth=depth,
        depth_K=depth_K,
        depth_std=depth_std,
    )
    with _terminal(quiet=json) as progress:
        return reconstruction.reconstruct_folder(
            input,
            out,
            backend=backend,
            options=options,
            priors=priors,
            masks=masks,
            max_frames=max_frames,
            part=VideoPart(start, end, cuts),
            fps=fps,
            align_times=align_times,
            keep_all=keep_all,
            keep_gps=keep_gps,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            command=sys.argv[1:],
        )


def export(
    source: Positional[Path],
    /,
    out: Out,
    *,
    format: ExportFormat,
    times: str | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """A scene, or a file of Gaussians, in the format of another program.

    Args:
        source: a scene folder; or a .ply, .spz or .splat file of Gaussians for ply, spz, splat, compressed, glb, html.
        out: where to write: a folder for nerfstudio and colmap, else a file: .ply for ply, points and compressed,
            .ply or .glb for mesh, .rrd for rerun, .json for tracks, .spz, .splat, .glb, .html. With --times a folder.
        format: nerfstudio (transforms.json and pictures), colmap (images/ and sparse/0/, also what Gaussian splatting
            programs read), ply (the Gaussians of a fitted scene, else the points), points, spz, splat and compressed
            (Gaussians in few bytes), glb (Gaussians or points), mesh (surface from the depth maps), html (the page of
            `geo4d view`), rerun (a recording for the Rerun viewer); of a scene that moves tracks (followed points as
            JSON) and glb-motion (an animation of its rigid groups as points).
        times: of a scene that moves, a file per time of ply, spz, splat, compressed, glb or mesh: all (those of the
            photos), how many (24), or seconds (0.5,1.25; one alone as 2.0).
        overwrite: replace what is already there.
        json: print the result as one JSON object on stdout.
    """
    from geo4d.pipeline import exporting

    with _terminal(quiet=json) as progress:
        return exporting.export(source, format, out, times=times, overwrite=overwrite, progress=progress)


def fit(
    scene: Positional[Path],
    /,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    max_gaussians: int = 100_000,
    image_size: int = 960,
    holdout: int | None = None,
    holdout_by: Literal["photo", "time", "camera"] = "photo",
    sh_degree: Literal[0, 1, 2, 3] | None = None,
    exposure: bool = True,
    shell: bool = True,
    refine_cameras: bool = False,
    motion: Literal["auto", "none", "bases", "hexplane"] = "auto",
    overwrite: bool = False,
    resume: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    json: bool = False,
) -> dict[str, Any]:
    """Gaussians that look like the photos of a scene: gaussians.ply, and metrics.json with scores on held-out photos.

    Args:
        scene: a scene folder.
        minutes: how long to fit (default: 10); Ctrl-C ends earlier and keeps what there is.
        steps: fit so many steps instead of --minutes; two such runs give the same.
        max_gaussians: the most Gaussians.
        image_size: longer side of the photos in pixels while fitting.
        holdout: hold back every k-th photo (0, k, 2k, ... of the sorted names) and score on them; 0 learns from all
            (default: what the dataset holds out, which no fit learns from, else 8).
        holdout_by: hold back all photos of every k-th time (k/2, 3k/2, ...), or of every k-th camera, instead.
        sh_degree: how much colours depend on the direction (default: 2, or what few places of cameras can tell).
        exposure: estimate the exposure and white balance of every photo (--no-exposure takes them as they are).
        shell: take gaps in depth that border on floor, walls or ground for these (--no-shell leaves them open).
        refine_cameras: let the poses of the photos move a little, for scenes whose cameras are not exact: where they
            are, it costs quality. The moved poses stand in metrics.json.
        motion: how Gaussians move: bases (a few rigid paths that each may blend), hexplane (a field, for what flows;
            slow to play), none (everything stands still), or auto: bases where the scene has points that were followed
            and move. Of a field geo4d view shows one moment, and glb-motion, segment --by-motion and edits that move or
            copy refuse it.
        overwrite: replace Gaussians that are already there.
        resume: go on with a fit that was stopped.
        device: where to compute; cuda needs gsplat.
        seed: of everything random.
        json: print the result as one JSON object on stdout.
    """
    if minutes is not None and steps is not None:
        raise InputError(
            "a fit ends by time or by steps", found=f"--minutes {minutes:g} and --steps {steps}", accepted="one",
            hint=f"leave one out: --minutes {minutes:g}, or --steps {steps}",
        )  # fmt: skip
    if minutes is not None and not 0 < 60 * minutes < math.inf:  # NaN compares false
        raise InputError(
            "cannot use --minutes", found=f"{minutes:g}", accepted="more than 0, and finite", hint="--minutes 10"
        )
    from geo4d.pipeline import fitting
    from render.fit_options import FitOptions

    options = FitOptions(
        steps=steps, time_budget_s=None if minutes is None else 60 * minutes, max_gaussians=max_gaussians,
        image_size=image_size, holdout=holdout, holdout_by=holdout_by, sh_degree=sh_degree, exposure=exposure,
        shell=shell, refine_cameras=refine_cameras, motion=motion, seed=seed,
    )  # fmt: skip
    with _terminal(quiet=json) as progress:
        return fitting.fit_folder(
            scene, options=options, device=device, overwrite=overwrite, resume=resume, progress=progress,
            command=sys.argv[1:],
        )  # fmt: skip


def view(
    source: Positional[Path],
    /,
    *,
    out: Annotated[Path | None, arg(aliases=["-o"])] = None,
    port: int = 0,
    open: bool = True,
    write_only: bool = False,
    json: bool = False,
) -> dict[str, Any]:
    """The player of a scene in the browser; also writes it as one file, player.html, that opens from disk anywhere.

    Args:
        source: a scene folder, or a .ply, .spz or .splat file of Gaussians.
        out: the page (default: player.html in the scene, or beside the file under its name).
        port: of this machine where the page is served; 0 takes a free one.
        open: whether to start the browser.
        write_only: write the page and end.
        json: print the result as one JSON object on stdout.
    """
    from geo4d.pipeline import viewing

    with _terminal(quiet=json) as progress:
        return viewing.view(
            source, out=out, port=port, open_browser=open, write_only=write_only, progress=progress
        )  # fmt: skip


def render(
    scene: Positional[Path],
    /,
    out: Out,
    *,
    trajectory: str = "orbit",
    time: str | None = None,
    modalities: str = "rgb,depth",
    frames: int | None = None,
    fps: float | None = None,
    width: int | None = None,
    height: int | None = None,
    background: str = "black",
    gaussians: Path | None = None,
    holdout: int | None = None,
    zoom: bool = False,
    overwrite: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    json: bool = False,
) -> dict[str, Any]:
    """Videos and maps of a scene's Gaussians along a path.

    Args:
        scene: a scene folder with Gaussians (geo4d fit).
        out: the folder to make: a video and a file per frame of every modality, and the cameras.
        trajectory: orbit, spiral, spline (through the places of the photos), dolly, held-out or training (the photos'
            own), or a file: a camera_path.json of nerfstudio's viewer, a transforms.json, or the cameras.json of an
            earlier run.
        time: of a scene that moves: play (from first to last along the path), a second (stands still), 0.5..2 (a
            part), slow:0.25 (slow motion), bullet:1.5 (stands still while the camera goes round). By default photos
            and files have their own times, and all else plays.
        modalities: comma list of rgb, depth, normal, alpha, edge, segmentation, flow.
        frames: how many (default: 120; 240 for an orbit that comes back the way it went; of a file all; with
            --time slow as many as it takes).
        fps: frames per second of the videos (default: 30, or what the file says).
        width: of the pictures (default: that of the photos, their longer side at most 960).
        height: of the pictures; where only one is given the other keeps the proportions.
        background: black, white, or R,G,B of 0 to 255.
        gaussians: a file of Gaussians instead of the scene's own.
        holdout: with --trajectory held-out: every k-th photo of the sorted names (default: those that the fit held
            out).
        zoom: with --trajectory dolly: zoom so that what is looked at keeps its size.
        overwrite: replace a folder that an earlier run made.
        device: where to compute; cuda needs gsplat.
        seed: nothing here is random.
        json: print the result as one JSON object on stdout.
    """
    del seed
    from geo4d.pipeline import rendering

    options = rendering.RenderOptions(
        trajectory=trajectory, modalities=modalities, frames=frames, fps=fps, width=width, height=height,
        background=background, gaussians=gaussians, holdout=holdout, zoom=zoom, device=device, time=time,
    )  # fmt: skip
    with _terminal(quiet=json) as progress:
        return rendering.render_folder(
            scene, out, options, overwrite=overwrite, progress=progress, command=sys.argv[1:]
        )


def segment(
    scene: Positional[Path],
    /,
    *,
    boxes: Path | None = None,
    masks: Path | None = None,
    by_motion: bool = False,
    sam: bool = False,
    sam_model: str = "facebook/sam2.1-hiera-small",
    min_size: float | None = None,
    supports: int = 1,
    overwrite: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
    json: bool = False,
) -> dict[str, Any]:
    """Object ids on the Gaussians of a scene, objects.json and objects.jpg: by geometry, or from boxes or masks.

    Args:
        scene: a scene folder with Gaussians; without --boxes and --masks every thing that stands on its largest level
            surface becomes an object.
        boxes: JSON with boxes round the objects on a few photos: {"IMG_0006.jpg": [{"name": "mug", "box": [left, top,
            right, bottom]}, ...]}, in pixels of the pictures in SCENE/images.
        masks: folder of PNGs of object ids (0 = none), named like the photos and of the size of those in SCENE/images.
        by_motion: of a scene that moves: what moves together is an object, each of its rigid parts.
        sam: cut out what is in the boxes with SAM 2 (needs the extra `hub`, and the weights on this machine).
        sam_model: weights of SAM 2: a name on huggingface.co, or a folder.
        min_size: leave smaller things to the background, in scene units (default: 2 % of the surface).
        supports: look for things on so many level surfaces.
        overwrite: replace object ids that are already there.
        device: where to compute; this verb runs on the CPU.
        seed: of everything random.
        json: print the result as one JSON object on stdout.
    """
    from geo4d.pipeline import segmentation

    _on_cpu(device)
    options = segmentation.SegmentOptions(
        boxes=boxes, masks=masks, by_motion=by_motion, sam=sam, sam_model=sam_model, min_size=min_size,
        supports=supports, seed=seed,
    )  # fmt: skip
    with _terminal(quiet=json) as progress:
        return segmentation.segment_folder(scene, options, overwrite=overwrite, progress=progress, command=sys.argv[1:])


def evaluate(
    what: Positional[Literal["poses", "depth", "views", "objects"]],
    scene: Positional[Path],
    /,
    *,
    reference: Path | None = None,
    depth_K: str | None = None,
    depth_unit_m: float = 0.001,
    gaussians: Path | None = None,
    holdout: int | None = None,
    all: bool = False,
    image_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: bool = False,
) -> dict[str, Any]:
    """Scores of a scene against a reference, or of its Gaussians against its photos.

    Args:
        what: poses (pairwise AUC at 1, 3, 5 and 30 degrees, trajectory error), depth (AbsRel and its kin), views
            (PSNR and SSIM of renders, LPIPS where its weights are at hand, with pictures in SCENE/views.html), or
            objects (IoU of object ids).
        scene: a scene folder.
        reference: poses: transforms.json, COLMAP model, scene folder, folder of camera or pose files; depth: folder of
            16-bit PNG or npz; objects: folder of pictures of object ids; views: none, the scene's photos are the
            reference.
        depth_K: intrinsics of the reference depth where they differ from the photo's: fx,fy,cx,cy[@WIDTHxHEIGHT], or a
            file with K.
        depth_unit_m: metres per unit of a 16-bit PNG.
        gaussians: views: a file of Gaussians instead of the scene's own.
        holdout: views: compare every k-th photo of the sorted names (default: those that the fit held out).
        all: views: compare all photos.
        image_size: views: longer side in pixels of the pictures compared (default: that of the fit).
        device: views: where to render; cuda needs gsplat.
        json: print the result as one JSON object on stdout.
    """
    from geo4d import evaluation

    if what == "views":
        from render.rasterizer.cuda import choose_device

        with _terminal(quiet=json) as progress:
            result = evaluation.evaluate_views(
                scene, gaussians=gaussians, holdout=holdout, every=all, image_size=image_size,
                device=choose_device(device, progress), progress=progress,
            )  # fmt: skip
        if not json:
            result["images"] = [
                f"{i['name']}  {_score(i['psnr'], '.2f', ' dB')}  {_score(i['ssim'], '.3f')}"
                + ("" if i["lpips"] is None else f"  {i['lpips']:.3f}")
                + ("" if i["psnr_moving"] is None else f"  {i['psnr_moving']:.2f} dB of what moves")
                for i in result["images"]
            ]
        return result
    if reference is None:
        raise InputError(
            f"evaluate {what} needs a reference",
            found="no --reference",
            accepted="a file or folder with the truth",
            hint=f"geo4d evaluate {what} {scene} --reference FILE_OR_FOLDER",
        )
    if what == "poses":
        return evaluation.evaluate_poses(scene, reference)
    if what == "objects":
        result = evaluation.evaluate_objects(scene, reference)
        if not json:
            rows = result.pop("per_object")
            result["IoU"] = [f"{row['name']}  {row['iou']:.3f}  {row['found_as'] or ''}".rstrip() for row in rows]
        return result
    return evaluation.evaluate_depth(scene, reference, depth_K=depth_K, unit_m=depth_unit_m)


def marker(
    out: Out,
    *,
    size: float = 0.05,
    dictionary: str = "DICT_4X4_50",
    id: int = 0,
    page: Literal["A5", "A4", "A3", "letter", "tabloid"] = "A4",
    json: bool = False,
) -> dict[str, Any]:
    """A PDF with one marker that gives photos a metric scale; print it at 100 %.

    Args:
        out: the PDF to write.
        size: side of the black square in metres.
        dictionary: an ArUco or AprilTag dictionary of opencv.
        id: which marker of the dictionary.
        page: paper size.
        json: print the result as one JSON object on stdout.
    """
    del json
    from recon.marker import write_marker_pdf

    write_marker_pdf(out, dictionary=dictionary, marker_id=id, size_m=size, page=page)
    command = f"geo4d reconstruct PHOTOS -o SCENE --scale marker:{dictionary}:{size:g}"
    return {"marker": str(out), "next": f"print at 100 %, lay it into the scene, then: {command}"}


def doctor(input: Positional[Path | None] = None, /, *, json: bool = False) -> dict[str, Any]:
    """What is installed, what each missing extra would add, what is wrong with an input.

    Args:
        input: photos, a video, a dataset of a moving scene, or a scene folder to look into.
        json: print the result as one JSON object on stdout.
    """
    from geo4d import doctor as doctor_module

    diagnosis = doctor_module.diagnose(input)
    if json:
        return diagnosis
    sys.stdout.write(doctor_module.render(diagnosis) + "\n")
    return {"exit_code": diagnosis["exit_code"]}


def bench(*, data: Path | None = None, only: str = "", json: bool = False) -> dict[str, Any]:
    """The published numbers, on this machine.

    Args:
        data: folder of the benchmark data (default: $GEO4D_DATA, else ../shared/data beside the checkout); what is not
            there is generated, and such results have names of their own (NAME_generated.json).
        only: comma list of benchmarks.
        json: print the result as one JSON object on stdout.
    """
    del json
    from geo4d.pipeline import benchmarks

    return benchmarks.run_benchmarks(data, [name for name in only.split(",") if name])


def train(
    what: Positional[Literal["recon"]],
    /,
    *,
    resume: Path,
    minutes: float = 9.0,
    network: Literal["geo4d-s", "geo4d-xs"] | None = None,
    pictures: int | None = None,
    whole_minutes: float | None = None,
    rate: float | None = None,
    batch_pixels: int | None = None,
    registers: int | None = None,
    register_only: str | None = None,
    without: str | None = None,
    begin_from: Annotated[Path | None, arg(name="from")] = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """A slice of the training of a network on generated scenes; the same command again goes on.

    What is not given is as the training was begun, or else as its recipe says.

    Args:
        what: recon: geo4d-s, the network that finds cameras and depth.
        resume: folder of the training; begun where it holds none.
        minutes: of this slice.
        network: geo4d-s, for a GPU (default); geo4d-xs, which two cores can train.
        pictures: of the whole training, by which size, difficulty and rate follow; may change when it goes on.
        whole_minutes: of a training that begins, instead of --pictures: as many pictures as this machine learns from
            in that time.
        rate: of learning, at its highest; may change when it goes on.
        batch_pixels: of the pictures of a step, for a GPU of less memory (default 4,064,256 of geo4d-s); may change
            when it goes on.
        registers: tokens per picture beside the camera's (default 0).
        register_only: comma list of blocks over all views in which these tokens alone attend.
        without: comma list of losses to leave out: relative, ray, descriptor, track.
        begin_from: weights that a training begins with: a folder with their card, FOLDER/best of another training.
        device: where to compute.
        seed: of scenes and first weights (default 0).
        json: print the result as one JSON object on stdout.
    """
    del what
    from geo4d.pipeline import training

    with _terminal(quiet=json) as progress:
        return training.train_recon(
            resume, minutes=minutes, network=network, pictures=pictures, whole_minutes=whole_minutes, rate=rate,
            batch_pixels=batch_pixels, registers=registers, register_only=register_only, without=without,
            begin_from=begin_from, device=device, seed=seed, progress=progress,
        )  # fmt: skip


VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "reconstruct": reconstruct,
    "fit": fit,
    "render": render,
    "export": export,
    "view": view,
    "segment": segment,
    "evaluate": evaluate,
    "marker": marker,
    "train": train,
    "doctor": doctor,
    "bench": bench,
}


def _score(value: float | None, digits: str, unit: str = "") -> str:
    """A score with its unit; a dash where there is none (a photo that is masked away, or smaller than a window)."""
    return "-" if value is None else f"{value:{digits}}{unit}"


def _on_cpu(device: str) -> None:
    """This verb has no GPU path: `auto` means the CPU, and asking for a GPU is told so."""
    if device == "cuda":
        raise InputError(
            "this verb runs on the CPU only",
            found="--device cuda",
            accepted="--device auto or cpu",
            hint="leave out --device",
        )


@contextmanager
def _terminal(*, quiet: bool) -> Iterator[Progress]:
    """Progress bars on stderr; plain lines where stderr is no terminal."""
    from geo4d.terminal import TerminalProgress

    with TerminalProgress(quiet=quiet) as progress:
        yield progress


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json_module.dumps(result, default=str, allow_nan=False) + "\n")
        return
    from geo4d.terminal import render_result

    sys.stdout.write(render_result(result))


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 2 bad input, 3 cannot be reconstructed, 130 interrupted."""
    args = sys.argv[1:] if argv is None else argv
    as_json = "--json" in args
    if args[:1] in (["--version"], ["-V"]):
        from geo4d import __version__

        sys.stdout.write(f"geo4d {__version__}\n")
        return 0
    if args[:1] != ["train"]:  # many small steps, for which threads that sleep take half as long again
        wait_calmly()
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        _check_empty(args)
        result = tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="geo4d", description="Photos in; a metric, moving, renderable scene out.", args=args,
        )  # fmt: skip
    except Geo4DError as error:
        sys.stderr.write(f"geo4d: {error}\n")
        if as_json:
            _show(
                {"error": error.asked, "found": error.found, "accepted": error.accepted, "next": error.hint},
                as_json=True,
            )
        return error.exit_code
    except BrokenPipeError:
        return 0
    except (KeyboardInterrupt, Exception) as error:
        if not _is_interruption(error):
            raise
        again = "the same command goes on" if args[:1] == ["train"] else "the same command with --resume goes on"
        then = f"what was finished is kept: {again}" if _is_kept(args) else "nothing was written"
        sys.stderr.write(f"geo4d: interrupted; {then}\n")
        return 130
    exit_code = int(result.pop("exit_code", 0))
    _show(result, as_json=as_json)
    return exit_code


LISTS = (["--without"], ["--register-only"], ["--only"])
"""Options after which an empty argument is an empty list."""


def _check_empty(args: Sequence[str]) -> None:
    """Refuse an empty argument, mostly of a shell's variable without a value: as a path it would be this folder."""

    def is_empty(i: int) -> bool:
        name, given, value = args[i].partition("=")
        return not value and bool(given if name.startswith("--") else not name and args[i - 1 : i] not in LISTS)

    empty = next((i for i in range(len(args)) if is_empty(i)), None)
    if empty is not None:
        before = args[empty - 1] if empty and not args[empty] else args[empty].rstrip("=")
        raise InputError(
            "cannot read an empty argument", found=f"nothing after {before}" if before else "nothing",
            accepted="a value", hint="leave out the option, or write . for this folder",
        )  # fmt: skip


def _is_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: where it meets a compiled kernel, Python makes a SystemError of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_kept(args: Sequence[str]) -> bool:
    """Whether an interrupted verb left something to go on with.

    A package may be half imported here: what is not there has done nothing.
    """
    verb, values = args[:1], [value for arg in args[1:] for value in (arg, arg.partition("=")[2]) if value]
    files = {"fit": ("geo4d.pipeline.fitting", "CHECKPOINT"), "train": ("recon.feedforward.trained", "STATE")}
    if verb and verb[0] in files:
        module, constant = files[verb[0]]
        name = getattr(sys.modules.get(module), constant, None)
        return name is not None and any(Path(value, name).is_file() for value in values)
    if verb == ["reconstruct"]:
        from geo4d.core.io.atomic import partial_folder

        return any(partial_folder(Path(value)).is_dir() for value in values)
    return False


if __name__ == "__main__":
    sys.exit(main())
