"""The VGGT graph and its track head: recorded numbers of the original, names of the published weights, laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from geo4d.core.errors import InputError
from recon.feedforward.layers import VitConfig, decode_pose, encode_pose, full_precision
from recon.feedforward.vggt import (
    VGGT,
    VGGT_1B,
    CameraConfig,
    CameraHead,
    DptConfig,
    TrackConfig,
    Tracker,
    TrackStep,
    VggtConfig,
    position_embedding,
)

if TYPE_CHECKING:
    Recordings = Callable[[str], list[Any]]

DPT = DptConfig(layers=(0, 1, 1, 2), features=16, channels=(8, 8, 16, 16))
TINY = VggtConfig(
    VitConfig(dim=32, depth=2, heads=2, img_size=56, registers=4, antialias=True, offset=0), depth=3, heads=2,
    camera_head=CameraConfig(heads=2, depth=1), depth_head=DPT, point_head=DPT,
    track_head=TrackConfig(DPT, hidden=32, levels=3, radius=2, iterations=1, depth=2, heads=2, virtual=8),
)  # fmt: skip
OUTPUTS = ("pose_enc", "cam_from_world", "K", "depth", "depth_conf", "p_world", "p_world_conf")
TRACKS = ("track_uv_px", "track_visible", "track_conf")


def _dpt(head: Mapping[str, Any]) -> DptConfig:
    return DptConfig(tuple(head["intermediate_layer_idx"]), head["features"], tuple(head["out_channels"]))


def _camera(head: Mapping[str, Any]) -> CameraConfig:
    return CameraConfig(head["num_heads"], head["trunk_depth"], head["num_iterations"])


def _track(head: Mapping[str, Any]) -> TrackConfig:
    return TrackConfig(
        _dpt(head), hidden=head["hidden_size"], levels=head["corr_levels"], radius=head["corr_radius"],
        iterations=head["iters"], depth=head["time_depth"], heads=head["num_heads"],
        virtual=head["num_virtual_tracks"],
    )  # fmt: skip


def config_of(constructor: Mapping[str, Any]) -> VggtConfig:
    a, v = constructor["aggregator"], constructor["patch_embed_dinov2"]
    assert a["aa_order"] == ["frame", "global"]
    vit = VitConfig(
        dim=v["embed_dim"], depth=v["depth"], heads=v["num_heads"], mlp_ratio=v["mlp_ratio"], img_size=v["img_size"],
        registers=v["num_register_tokens"], antialias=v["interpolate_antialias"], offset=v["interpolate_offset"],
        block_eps=v["layer_norm_eps"], norm_eps=v["layer_norm_eps"],
    )  # fmt: skip
    heads = {"camera_head": _camera, "depth_head": _dpt, "point_head": _dpt, "track_head": _track}
    built = {k: make(constructor[k]) if k in constructor else None for k, make in heads.items()}
    return VggtConfig(
        vit, depth=a["depth"], heads=a["num_heads"], mlp_ratio=a["mlp_ratio"], registers=a["num_register_tokens"],
        rope_base=a["rope_freq"], **built,
    )  # fmt: skip


def _models(recordings: list[Any]) -> list[tuple[Any, VGGT]]:
    return [(r, r.load(VGGT(config_of(r.config["constructor"])))) for r in recordings]


@pytest.fixture(scope="module")
def recorded(recordings_of: Recordings) -> list[tuple[Any, VGGT]]:
    return _models(recordings_of("vggt"))


@pytest.fixture(scope="module")
def recorded_tracks(recordings_of: Recordings) -> list[tuple[Any, VGGT]]:
    return _models(recordings_of("vggt_track"))


@pytest.fixture(scope="module")
def tiny(randomise: Callable[[VGGT], VGGT]) -> VGGT:
    return randomise(VGGT(TINY))


def _pictures(b: int, s: int, hw: tuple[int, int] = (42, 70)) -> Tensor:
    return torch.rand(b, s, 3, *hw, generator=torch.Generator().manual_seed(0))


def _queries(b: int) -> Tensor:
    return torch.tensor([[0.5, 0.5], [35.2, 20.9], [69.5, 41.5], [12.0, 30.0]]).repeat(b, 1, 1)


def _run(model: VGGT, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        tokens, out = model.aggregator(images), model(images)
        with full_precision(images):
            poses = model.camera_head(tokens[model.config.depth - 1][:, :, 0]) if model.camera_head else []
        patches = model.aggregator.patch_tokens(images)
    found = {"patch_tokens": patches, **{f"tokens.{i}": t for i, t in tokens.items()}}
    found |= {f"pose_enc.{i}": pose for i, pose in enumerate(poses)}
    heads = {"intrinsic": out.K, "depth_conf": out.depth_conf}
    heads |= {"world_points": out.p_world, "world_points_conf": out.p_world_conf}
    heads["extrinsic"] = None if out.cam_from_world is None else out.cam_from_world[..., :3, :]
    heads["depth"] = None if out.depth is None else out.depth[..., None]
    return found | {k: v for k, v in heads.items() if v is not None}


@pytest.mark.parity
def test_every_output_is_within_the_recorded_tolerance(recorded: list[tuple[Any, VGGT]]) -> None:
    for r, model in recorded:
        found = _run(model, r.io["images"])
        unread = {f"tokens.{i}" for i in range(model.config.depth)} - set(found)  # of layers that no head reads
        assert {k for k in r.io if k != "images" and not k.startswith("codec.")} - unread == set(found)
        for name, value in found.items():
            r.check(name, value, tolerance=r.config["tolerance"]["float32"])


@pytest.mark.parity
def test_cameras_are_encoded_as_recorded(recorded: list[tuple[Any, VGGT]]) -> None:
    for r, _ in recorded:
        if "codec.pose_enc" in r.io:
            hw = tuple(r.io["images"].shape[-2:])
            encoded = encode_pose(r.io["codec.extrinsic"], r.io["codec.intrinsic"], hw)
            r.check("codec.pose_enc", encoded, tolerance={"*": 1e-6})
            cam_from_world, K = decode_pose(r.io["codec.pose_enc"], hw)
            r.check("codec.extrinsic_decoded", cam_from_world[..., :3, :], tolerance={"*": 1e-6})
            r.check("codec.intrinsic_decoded", K, tolerance={"*": 1e-6})


@pytest.mark.parity
def test_bf16_autocast_stays_near_float32(recorded: list[tuple[Any, VGGT]]) -> None:
    """Measured for vggt_a, of the largest entry: tokens 0.9 %, points 0.9 %, depth 0.5 %, poses 0.2 %."""
    for r, model in recorded:
        with torch.autocast("cpu", torch.bfloat16):
            found = _run(model, r.io["images"])
        for name, value in found.items():
            assert value.dtype == torch.float32, name
            r.check(name, value, tolerance={"*": 0.025})


def _names(step: TrackStep, i: int) -> dict[str, Tensor]:
    return {
        f"corr.{i}": step.correlation,
        f"update_in.{i}": step.update_in,
        f"update_out.{i}": step.update_out,
        f"track_feat.{i}": step.feature,
    }


def _check_px(r: Any, i: int, at: Tensor, tolerance: Mapping[str, float]) -> None:
    error = float((2 * at - r.io[f"coords.{i}"]).abs().max())
    limit = tolerance.get(f"coords.{i}", tolerance.get("coords.*", 0))
    assert error <= limit, f"{r.name} coords.{i}: {error:.1e} px"


def _start(r: Any, s: int) -> Tensor:
    return (r.io["query_points"] / 2)[:, None].expand(-1, s, -1, -1)


@pytest.mark.parity
def test_tracks_are_within_the_recorded_tolerance(recorded_tracks: list[tuple[Any, VGGT]]) -> None:
    for r, model in recorded_tracks:
        px, relative = (r.config["tolerance"][k] for k in ("float32_px", "float32_rel_to_max"))
        images, head = r.io["images"], model.track_head
        assert head is not None
        with torch.no_grad():
            tokens = model.aggregator(images)
            for i, t in tokens.items():
                r.check(f"tokens.{i}", t, tolerance=relative)
            features = head.feature_extractor(tokens, (images.shape[-2] // 14, images.shape[-1] // 14), chunk=2)
            r.check("track_features", features, tolerance=relative)
            pyramid, at = head.tracker.pyramid(features), _start(r, images.shape[1])
            feature = head.tracker.query_feature(pyramid, at)
            r.check("query_feat", feature[:, -1], tolerance=relative)
            for i in range(head.tracker.config.iterations):
                step = head.tracker.step(pyramid, at, feature)
                at, feature = step.at, step.feature
                _check_px(r, i, at, px)
                for name, value in _names(step, i).items():
                    r.check(name, value, tolerance=relative)
            for name, value in zip(("vis", "conf"), head.tracker.scores(feature), strict=True):
                r.check(name, value, tolerance=relative)
            out = model(images, query_uv_px=r.io["query_points"] + 0.5)
        assert out.track_uv_px is not None
        _check_px(r, head.tracker.config.iterations - 1, (out.track_uv_px - 0.5) / 2, px)
        r.check("vis", out.track_visible, tolerance=relative)


@pytest.mark.parity
def test_one_iteration_from_recorded_tracks_is_exact(recorded_tracks: list[tuple[Any, VGGT]]) -> None:
    for r, model in recorded_tracks:
        forced = r.config["tolerance"]["teacher_forced_float32"]
        assert model.track_head is not None
        tracker, s = model.track_head.tracker, r.io["images"].shape[1]
        at, feature = _start(r, s), r.io["query_feat"][:, None].expand(-1, s, -1, -1)
        with torch.no_grad():
            pyramid = tracker.pyramid(r.io["track_features"])
            for i in range(tracker.config.iterations):
                step = tracker.step(pyramid, at, feature)
                _check_px(r, i, step.at, forced["px"])
                for name, value in _names(step, i).items():
                    r.check(name, value, tolerance=forced["rel_to_max"])
                at, feature = r.io[f"coords.{i}"] / 2, r.io[f"track_feat.{i}"]
            for name, value in zip(("vis", "conf"), tracker.scores(step.feature), strict=True):
                r.check(name, value, tolerance=forced["rel_to_max"])


@pytest.mark.parity
def test_bf16_autocast_keeps_tracks(recorded_tracks: list[tuple[Any, VGGT]]) -> None:
    """Measured for vggt_track_a: 0.004 px."""
    for r, model in recorded_tracks:
        query = r.io["query_points"] + 0.5
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            out = model(r.io["images"], query_uv_px=query)
        assert out.track_uv_px.dtype == torch.float32
        last = max(int(k.split(".")[1]) for k in r.io if k.startswith("coords."))
        assert float((out.track_uv_px - 0.5 - r.io[f"coords.{last}"]).abs().max()) < 0.05


def test_names_and_shapes_are_those_of_the_published_weights(
    published_names: Callable[[str], dict[str, tuple[int, ...]]],
) -> None:
    with torch.device("meta"):
        model = VGGT(VGGT_1B)
    expected = published_names("vggt")
    del expected["aggregator.patch_embed.mask_token"]  # of DINOv2's training
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == expected


def test_only_the_layers_that_heads_read_are_kept() -> None:
    assert VGGT_1B.layers == (4, 11, 17, 23)
    assert replace(VGGT_1B, depth_head=None, point_head=None, track_head=None).layers == (23,)
    lean = VGGT(replace(TINY, point_head=None, depth_head=None, track_head=None))
    with torch.no_grad():
        assert set(lean.aggregator(_pictures(1, 2))) == {2}


def test_the_camera_head_carries_on_from_what_is_not_yet_clamped(randomise: Callable[[CameraHead], CameraHead]) -> None:
    head, seen = randomise(CameraHead(32, CameraConfig(heads=2, depth=1))), []
    head.embed_pose.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.no_grad():
        head.pose_branch.fc2.weight.zero_()
        head.pose_branch.fc2.bias.fill_(-0.25)
        poses = head(torch.randn(1, 2, 32))
    for i in range(1, 4):
        assert torch.equal(seen[i], torch.full((1, 2, 9), -0.25 * i))
        assert torch.equal(poses[i], torch.full((1, 2, 9), -0.25 * (i + 1)) * (torch.arange(9) < 7))


def test_the_order_of_all_views_but_the_first_does_not_matter(tiny: VGGT) -> None:
    images, order = _pictures(1, 4), [0, 3, 1, 2]
    mask = torch.rand(1, 4, 3, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    query = _queries(1)
    with torch.no_grad():
        straight = tiny(images, query_uv_px=query, mask=mask)
        shuffled = tiny(images[:, order], query_uv_px=query, mask=mask[:, order])
    for key in OUTPUTS + TRACKS:
        torch.testing.assert_close(getattr(shuffled, key), getattr(straight, key)[:, order], rtol=2e-4, atol=2e-4)


def test_scenes_of_a_batch_and_chunks_of_views_are_independent(tiny: VGGT) -> None:
    images, query = _pictures(2, 3), _queries(2)
    with torch.no_grad():
        both, alone = tiny(images, query_uv_px=query, chunk=1), tiny(images[1:], query_uv_px=query[1:])
    for key in OUTPUTS + TRACKS:
        torch.testing.assert_close(getattr(both, key)[1:], getattr(alone, key), rtol=2e-4, atol=2e-4)


def test_pixels_under_a_mask_have_no_influence(tiny: VGGT) -> None:
    images, mask, query = _pictures(1, 3), torch.ones(1, 3, 3, 5, dtype=torch.bool), _queries(1)
    mask[:, 0, 1:, 2:4] = mask[:, 2] = False
    painted = images.clone()
    painted[:, 0, :, 14:, 28:56] = torch.nan
    painted[:, 2] = 0
    with torch.no_grad():
        masked, same = (tiny(x, query_uv_px=query, mask=mask) for x in (images, painted))
        plain = tiny(images, query_uv_px=query)
        everything = tiny(images, query_uv_px=query, mask=torch.ones_like(mask))
    for key in OUTPUTS + TRACKS:
        assert torch.equal(getattr(masked, key), getattr(same, key)), key
        assert not torch.allclose(getattr(masked, key), getattr(plain, key)), key
    for key in OUTPUTS + TRACKS:
        torch.testing.assert_close(getattr(everything, key), getattr(plain, key), rtol=2e-4, atol=2e-4)


def test_masked_patches_are_not_seen_by_the_others(tiny: VGGT) -> None:
    """The other tokens stay as they are when the masked ones, which still have a position, are moved."""
    images, usable = _pictures(1, 3, (56, 56)), torch.ones(1, 3, 16, dtype=torch.bool)
    usable[..., 6:9] = False
    learned = tiny.aggregator.patch_embed.pos_embed
    with torch.no_grad():
        kept = learned.clone()
        before = tiny.aggregator(images, usable)
        learned[:, 1 + 6 : 1 + 9] += 5
        after = tiny.aggregator(images, usable)
        learned.copy_(kept)
    seen = torch.nn.functional.pad(usable, (5, 0), value=True)
    for i, tokens in before.items():
        assert torch.equal(tokens[seen], after[i][seen])
        assert not torch.allclose(tokens[~seen], after[i][~seen])


@pytest.mark.parametrize("masked", [False, True])
def test_memory_grows_linearly_in_views(tiny: VGGT, masked: bool, largest_tensor: Callable[..., int]) -> None:
    def run(s: int) -> int:
        mask = torch.ones(1, s, 3, 5, dtype=torch.bool) if masked else None
        return largest_tensor(lambda: tiny(_pictures(1, s), mask=mask, chunk=1))

    assert run(32) <= 2 * run(16)


def test_heads_that_are_not_built_give_nothing(randomise: Callable[[VGGT], VGGT]) -> None:
    model = randomise(VGGT(replace(TINY, camera_head=None, point_head=None, track_head=None)))
    with torch.no_grad():
        out = model(_pictures(1, 2))
    assert out.depth is not None
    assert [k for k in OUTPUTS + TRACKS if getattr(out, k) is not None] == ["depth", "depth_conf"]
    with pytest.raises(InputError, match="without its track head"):
        model(_pictures(1, 2), query_uv_px=_queries(1))


@pytest.mark.parametrize("hw", [(21, 35), (21, 4), (5, 35)])
def test_correlation_windows_are_samples_of_the_whole_correlation_map(tiny: VGGT, hw: tuple[int, int]) -> None:
    """They are gathered pixel by pixel, in chunks of points; the map in full, sampled by torch, is the oracle.

    On an axis of one pixel the coordinate does not count.
    """
    tracker, generator = tiny.track_head.tracker, torch.Generator().manual_seed(2)
    features, track = (torch.randn(2, 2, *size, generator=generator) for size in ((16, *hw), (700, 16)))
    at = torch.rand(2, 2, 700, 2, generator=generator) * torch.tensor([hw[1] + 10, hw[0] + 10]) - 5
    with torch.no_grad():
        pyramid = tracker.pyramid(features)
        found = tracker._correlation(pyramid, at, track).view(2, 2, 700, 3, 5, 5)
        for k, level in enumerate(pyramid):
            dense = track.flatten(0, 1) @ level.features.transpose(1, 2) / 4
            expected = _sampled(dense.view(-1, 1, *level.hw), at.flatten(0, 2) / 2**k)
            torch.testing.assert_close(found[:, :, :, k].flatten(0, 2), expected, rtol=1e-3, atol=1e-4)


def _sampled(maps: Tensor, at: Tensor) -> Tensor:
    steps, (h, w) = torch.arange(-2, 3), maps.shape[-2:]
    where = at[:, None, None] + torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)  # x is the slow axis
    where = where * torch.tensor([w > 1, h > 1])
    grid = 2 * where / torch.tensor([max(w - 1, 1), max(h - 1, 1)]) - 1
    return torch.nn.functional.grid_sample(maps, grid, align_corners=True)[:, 0]


def test_position_embedding_is_linear_between_pixels_and_constant_outside() -> None:
    at = torch.tensor([[3.0, 5.0], [4.0, 5.0], [3.25, 5.0], [-9.0, 0.0], [0.0, 0.0], [50.0, 6.0], [34.0, 6.0]])
    e = position_embedding(at, 20, (21, 35))
    torch.testing.assert_close(e[2], 0.75 * e[0] + 0.25 * e[1])
    torch.testing.assert_close(e[3], e[4])
    torch.testing.assert_close(e[5], e[6])
    torch.testing.assert_close(e[0, :2], torch.tensor([3.0, 3.0 * 10000 ** (-1 / 5)]).sin())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": torch.zeros(1, 2, 3, 40, 70)}, "40 x 70 pixels"),
        ({"mask": torch.ones(1, 2, 42, 70, dtype=torch.bool)}, "(1, 2, 3, 5)"),
        ({"query_uv_px": torch.zeros(4, 2)}, "(1, n, 2)"),
    ],
)
def test_wrong_inputs_are_named(tiny: VGGT, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        tiny(**{"images": torch.zeros(1, 2, 3, 42, 70), **arguments})
    assert says in str(error.value)


def test_a_head_of_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="layer 23 of 3"):
        VGGT(replace(TINY, depth_head=DptConfig()))


@pytest.mark.parametrize(("side", "levels"), [(14, 3), (28, 4), (126, 6)])
def test_pictures_that_are_too_small_for_the_feature_pyramid_are_refused(tiny: VGGT, side: int, levels: int) -> None:
    def run(count: int) -> None:
        tracker = Tracker(TrackConfig(DPT, levels=count, hidden=32, heads=2, depth=1))
        tracker.pyramid(torch.zeros(1, 1, 16, side // 2, side // 2))

    run(levels)
    with pytest.raises(InputError, match=f"{2 ** (levels + 1)} x {2 ** (levels + 1)} pixels"):
        run(levels + 1)


# --- into a scene


def test_tracks_of_vggt_are_observations_of_the_stored_pictures(tiny: VGGT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of several shapes, one turned, one masked: tracks lie in the pictures and where they may be used."""
    from geo4d.core.types import Frame, Frames
    from recon import reconstruct
    from recon.feedforward import networks
    from recon.options import ReconstructOptions
    from recon.priors import Priors

    g = np.random.default_rng(0)
    low = g.integers(0, 255, (20, 20, 3), np.uint8)
    shapes = [(120, 160), (160, 120), (90, 160)]
    free = np.ones((90, 160), bool)
    free[:, 60:] = False
    frames = Frames([
        Frame.from_array(
            f"{i}.png", cv2.resize(low, (w, h), interpolation=cv2.INTER_CUBIC),
            quarter_turns=int(i == 1), read_mask=(lambda: free) if i == 2 else None,
        )
        for i, (h, w) in enumerate(shapes)
    ])  # fmt: skip
    monkeypatch.setattr(networks, "SURE", -1.0)  # random weights are sure of nothing
    made = networks.predict(tiny, networks.NETWORKS["vggt-1b"], frames, Priors(), long_side=112)
    seen = made.observations
    assert seen is not None
    assert len(seen.p_world) > 20
    assert set(seen.frame_id.tolist()) == {0, 1, 2}
    for i, (h, w) in enumerate(shapes):
        uv_px = seen.uv_px[seen.frame_id == i]
        assert ((uv_px >= 0) & (uv_px < torch.tensor([w, h]))).all()
    assert seen.uv_px[seen.frame_id == 2, 0].max() < 64  # the mask ends at 60, and a pixel of the network is 1.5
    assert torch.bincount(seen.track_id).min() >= 2
    # Points lie where the first picture's depth is.
    first = seen.frame_id == 0
    uv_px, z = made.camera[0].project(seen.p_world[seen.track_id[first]])
    off = (uv_px - seen.uv_px[first]) / made.camera[0].K[0, 0]  # random weights give any focal length
    assert off.abs().max() < 1e-6
    assert (z > 0).all()
    alone = reconstruct(frames, backend="vggt-1b", predict=lambda *_: made, options=ReconstructOptions(dense=False))
    assert len(alone.observations.p_world) == len(seen.p_world)
