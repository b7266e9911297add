"""The Depth Anything 3 graph: recorded numbers of the original, names of the published weights, laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from geo4d.core.errors import InputError
from geo4d.core.geometry import matrix_from_rotvec, rigid
from recon.feedforward.da3 import (
    DA3,
    DA3_BASE,
    DA3_SMALL,
    Da3Config,
    Features,
    balance_scores,
    choose_reference,
    reference_first,
)
from recon.feedforward.layers import Attention, Block, VitConfig, decode_pose, encode_pose, rope

if TYPE_CHECKING:
    Recordings = Callable[[str], list[Any]]

TINY = Da3Config(
    VitConfig(dim=32, depth=6, heads=2, img_size=56, norm_eps=1e-5, qk_norm_from=2), alternate_from=2, rope_from=2,
    out_layers=(2, 3, 4, 5), features=16, channels=(8, 8, 16, 16), camera_heads=2, camera_depth=1,
)  # fmt: skip


def _from(n: int) -> int | None:
    return None if n < 0 else n


def config_of(constructor: Mapping[str, Any]) -> Da3Config:
    b, head, enc = constructor["backbone"], constructor["head"], constructor["cam_enc"]
    vit = VitConfig(
        dim=b["embed_dim"], depth=b["depth"], heads=b["num_heads"], mlp_ratio=b["mlp_ratio"], img_size=b["img_size"],
        registers=b["num_register_tokens"], antialias=b["interpolate_antialias"], offset=b["interpolate_offset"],
        block_eps=b["block_layer_norm_eps"], norm_eps=b["final_layer_norm_eps"], qk_norm_from=_from(b["qknorm_start"]),
    )  # fmt: skip
    return Da3Config(
        vit, alternate_from=_from(b["alt_start"]), rope_from=_from(b["rope_start"]), rope_base=b["rope_freq"],
        out_layers=tuple(b["out_layers"]), with_local=b["cat_token"], features=head["features"],
        channels=tuple(head["out_channels"]), position_embedding=head["pos_embed"], camera_heads=enc["num_heads"],
        camera_depth=enc["trunk_depth"], camera_mlp_ratio=enc["mlp_ratio"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def recorded(recordings_of: Recordings) -> list[tuple[Any, DA3]]:
    return [(r, r.load(DA3(config_of(r.config["constructor"])))) for r in recordings_of("da3")]


@pytest.fixture(scope="module")
def tiny(randomise: Callable[[DA3], DA3]) -> DA3:
    return randomise(DA3(TINY))


def _pictures(b: int, s: int, hw: tuple[int, int] = (42, 70), seed: int = 0) -> Tensor:
    return torch.randn(b, s, 3, *hw, generator=torch.Generator().manual_seed(seed))


def _known(io: Mapping[str, Tensor], case: str) -> dict[str, Tensor]:
    if f"{case}.in_extrinsics" not in io:
        return {}
    return {"cam_from_world": io[f"{case}.in_extrinsics"], "K": io[f"{case}.in_intrinsics"]}


def _run(model: DA3, x: Tensor, known: Mapping[str, Tensor]) -> tuple[Features, dict[str, Tensor]]:
    with torch.no_grad():
        camera = model._camera_tokens(x, known.get("cam_from_world"), known.get("K"))
        features, out = model.backbone.pretrained(x, camera=camera), model(x, **known)
    found = {k: getattr(out, k) for k in ("depth", "depth_conf", "ray", "ray_conf", "pose_enc")}
    found |= {"extrinsics": out.cam_from_world[..., :3, :], "intrinsics": out.K}
    for layer, patches, token in zip(model.config.out_layers, features.patches, features.camera, strict=True):
        found |= {f"feat.{layer}": patches, f"cam_token.{layer}": token}
    return features, found | ({} if camera is None else {"cam_enc.tokens": camera})


@pytest.mark.parity
def test_every_case_is_within_the_recorded_tolerance(recorded: list[tuple[Any, DA3]]) -> None:
    not_outputs = ("x", "in_extrinsics", "in_intrinsics", "cam_enc.pose_enc", "refsel.cls_tokens", "refsel.index")
    for r, model in recorded:
        for case, facts in r.config["cases"].items():
            features, found = _run(model, r.io[f"{case}.x"], _known(r.io, case))
            keys = {k.removeprefix(f"{case}.") for k in r.io if k.startswith(f"{case}.")}
            assert {k for k in keys if not k.startswith("strategy.")} - set(not_outputs) == set(found)
            for name, value in found.items():
                r.check(f"{case}.{name}", value, tolerance=r.config["tolerance"]["float32"], name=name)
            chosen = None if features.reference is None else features.reference.tolist()
            assert chosen == facts["reference_index"], case


@pytest.mark.parity
def test_reference_views_are_chosen_as_recorded(recorded: list[tuple[Any, DA3]]) -> None:
    for r, model in recorded:
        for key in [k for k in r.io if k.endswith("refsel.cls_tokens")]:
            chosen = choose_reference(r.io[key])
            assert torch.equal(chosen.int(), r.io[key.replace("cls_tokens", "index")].int())
        for key in [k for k in r.io if ".strategy." in k and k.endswith(".index")]:
            case, _, how, _ = key.split(".")
            with torch.no_grad():
                out = model(r.io[f"{case}.x"], reference_view=how)
            for name in ("depth", "pose_enc"):
                r.check(f"{case}.strategy.{how}.{name}", getattr(out, name), tolerance={"*": 5e-5})
        if "refsel_unit.cls" in r.io:
            _check_choice_alone(r.io)


def _check_choice_alone(io: Mapping[str, Tensor]) -> None:
    cls = io["refsel_unit.cls"]
    for key in [k for k in io if k.startswith("refsel_unit.index.")]:
        assert torch.equal(choose_reference(cls, key.rpartition(".")[2]).int(), io[key].int()), key
    torch.testing.assert_close(balance_scores(cls), io["refsel_unit.balance_score"])
    order = reference_first(io["refsel_unit.index.saddle_balanced"].long(), cls.shape[1])
    assert torch.equal(order.int(), io["refsel_unit.reorder_permutation"].int())
    assert torch.equal(order.argsort(-1).int(), io["refsel_unit.restore_permutation"].int())


@pytest.mark.parity
def test_cameras_are_encoded_as_recorded(recorded: list[tuple[Any, DA3]]) -> None:
    for r, _ in recorded:
        hw = tuple(r.config["image_size"])
        for case in [c for c, facts in r.config["cases"].items() if facts["cameras_given"]]:
            world_from_cam = r.io[f"{case}.in_extrinsics"].inverse()
            encoded = encode_pose(world_from_cam, r.io[f"{case}.in_intrinsics"], hw)
            r.check(f"{case}.cam_enc.pose_enc", encoded, tolerance={"*": 1e-5})
        if "codec.pose_enc" in r.io:
            world_from_cam, K = decode_pose(r.io["codec.pose_enc"], hw)
            r.check("codec.extrinsic_c2w", world_from_cam[..., :3, :], tolerance={"*": 2e-6})
            r.check("codec.intrinsic", K, tolerance={"*": 2e-6})
            n = r.io["codec.pose_enc_back"].shape[1]
            r.check("codec.pose_enc_back", encode_pose(world_from_cam, K, hw)[:, :n], tolerance={"*": 2e-6})


@pytest.mark.parity
def test_bf16_autocast_stays_near_float32(recorded: list[tuple[Any, DA3]]) -> None:
    """Measured for da3_a, of the largest entry: tokens 1.1 %, maps 1.4 %, poses 1.5 %, their inverses 3.5 %."""
    limits = {"feat.*": 0.025, "cam_token.*": 0.025, "extrinsics": 0.08, "*": 0.03}
    for r, model in recorded:
        for case in r.config["cases"]:
            with torch.autocast("cpu", torch.bfloat16):
                _, found = _run(model, r.io[f"{case}.x"], _known(r.io, case))
            for name, value in found.items():
                assert value.dtype == torch.float32, name
                r.check(f"{case}.{name}", value, tolerance=limits, name=name)


@pytest.mark.parametrize(("config", "names"), [(DA3_SMALL, "da3_small"), (DA3_BASE, "da3_base")])
def test_names_and_shapes_are_those_of_the_published_weights(
    published_names: Callable[[str], dict[str, tuple[int, ...]]], config: Da3Config, names: str
) -> None:
    with torch.device("meta"):
        model = DA3(config)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == published_names(names)


@pytest.mark.parametrize("known", [False, True])
def test_the_order_of_the_views_does_not_matter(tiny: DA3, known: bool) -> None:
    order, views = [2, 0, 3, 1], {"images": _pictures(1, 4), **(_cameras(4) if known else {})}
    views["mask"] = torch.rand(1, 4, 3, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    with torch.no_grad():
        straight, shuffled = tiny(**views), tiny(**{k: v[:, order] for k, v in views.items()})
    for key in ("depth", "depth_conf", "ray", "ray_conf", "pose_enc", "cam_from_world", "K"):
        torch.testing.assert_close(getattr(shuffled, key), getattr(straight, key)[:, order], rtol=2e-4, atol=2e-4)


def _cameras(s: int) -> dict[str, Tensor]:
    turn = matrix_from_rotvec(torch.randn(1, s, 3, generator=torch.Generator().manual_seed(3)) / 3)
    K = torch.tensor([[60.0, 0, 35], [0, 55, 21], [0, 0, 1]]).expand(1, s, 3, 3)
    return {"cam_from_world": rigid(turn, turn[..., 0]), "K": K}


def test_known_cameras_reach_every_view(tiny: DA3) -> None:
    images, cameras = _pictures(1, 3), _cameras(3)
    with torch.no_grad():
        depth = tiny(images, **cameras).depth
        moved = cameras["cam_from_world"].clone()
        moved[:, 1, :3, 3] += 0.5
        change = (tiny(images, cam_from_world=moved, K=cameras["K"]).depth - depth).abs().amax((0, 2, 3))
    assert (change > 1e-5).all()


def test_scenes_of_a_batch_and_chunks_of_views_are_independent(tiny: DA3) -> None:
    images = _pictures(2, 3)
    with torch.no_grad():
        both, alone = tiny(images, chunk=1), tiny(images[1:])
    torch.testing.assert_close(both.depth[1:], alone.depth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.pose_enc[1:], alone.pose_enc, rtol=1e-4, atol=1e-5)


def test_pixels_under_a_mask_have_no_influence(tiny: DA3) -> None:
    images, mask = _pictures(1, 3), torch.ones(1, 3, 3, 5, dtype=torch.bool)
    mask[:, 0, 1:, 2:4] = mask[:, 2] = False
    painted = images.clone()
    painted[:, 0, :, 14:, 28:56] = torch.nan
    painted[:, 2] = 9.0
    with torch.no_grad():
        masked, same, plain = tiny(images, mask=mask), tiny(painted, mask=mask), tiny(images)
        everything = tiny(images, mask=torch.ones_like(mask))
    for key in ("depth", "depth_conf", "ray", "ray_conf", "pose_enc", "cam_from_world", "K"):
        assert torch.equal(getattr(masked, key), getattr(same, key)), key
        assert not torch.allclose(getattr(masked, key), getattr(plain, key)), key
        torch.testing.assert_close(getattr(everything, key), getattr(plain, key), rtol=1e-4, atol=1e-5)


def test_masked_patches_are_not_seen_by_the_others(tiny: DA3) -> None:
    """The other tokens stay as they are when the masked ones, which still have a position, are moved."""
    vit, images = tiny.backbone.pretrained, _pictures(1, 3, (56, 56))
    usable = torch.ones(1, 3, 16, dtype=torch.bool)
    usable[..., 6:9] = False
    with torch.no_grad():
        learned = vit.pos_embed.clone()
        before = vit(images, usable=usable)
        vit.pos_embed[:, 1 + 6 : 1 + 9] += 5
        after = vit(images, usable=usable)
        vit.pos_embed.copy_(learned)
    for old, new in zip(before.patches, after.patches, strict=True):
        assert torch.equal(old[usable], new[usable])
        assert not torch.allclose(old[~usable], new[~usable])
    assert torch.equal(before.camera[-1], after.camera[-1])


def test_attention_with_masked_keys_is_attention_without_them(randomise: Callable[[Block], Block]) -> None:
    block, x = randomise(Block(32, 2, qk_norm=True)), torch.randn(1, 12, 32)
    positions, usable = torch.randint(0, 9, (12, 2)), torch.arange(12) % 3 > 0
    with torch.no_grad():
        masked = block(x, rope(positions, 16, 100), usable[None])
        dropped = block(x[:, usable], rope(positions[usable], 16, 100))
    torch.testing.assert_close(masked[:, usable], dropped)


def test_normalised_and_rotated_queries_are_float32_under_autocast() -> None:
    """What is normalised in bf16 differs from this by 4e-3, and by more where angles are large."""
    attention, x = Attention(64, 1, qk_norm=True), torch.randn(1, 1, 9, 64).bfloat16()
    angles = rope(torch.arange(18).view(9, 2), 64, 100)
    with torch.autocast("cpu", torch.bfloat16):
        found = [attention._prepared(x, attention.q_norm, None), attention._prepared(x, attention.q_norm, angles)]
    exact = [attention._prepared(x.float(), attention.q_norm, a) for a in (None, angles)]
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_memory_grows_linearly_in_views(tiny: DA3, masked: bool, largest_tensor: Callable[..., int]) -> None:
    def run(s: int) -> int:
        mask = torch.ones(1, s, 3, 5, dtype=torch.bool) if masked else None
        return largest_tensor(lambda: tiny(_pictures(1, s), mask=mask, chunk=1))

    assert run(32) <= 2 * run(16)


@pytest.mark.parametrize("alternate_from", [0, 1, 3, None])
def test_any_start_of_the_alternation_runs(randomise: Callable[[DA3], DA3], alternate_from: int | None) -> None:
    model = randomise(DA3(replace(TINY, alternate_from=alternate_from, out_layers=(1, 2, 3, 4, 5))))
    with torch.no_grad():
        out = model(_pictures(2, 3))
        other = _pictures(2, 3)
        other[:, 1] = 0
        moved = (model(other).depth - out.depth).abs().amax((0, 2, 3))
    assert torch.isfinite(out.depth).all()
    assert bool(moved[0] > 1e-6) == (alternate_from is not None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": torch.zeros(1, 2, 3, 40, 70)}, "40 x 70 pixels"),
        ({"images": torch.zeros(2, 3, 42, 70)}, "(b, s, 3, h, w)"),
        ({"mask": torch.ones(1, 2, 42, 70, dtype=torch.bool)}, "(1, 2, 3, 5)"),
        ({"mask": torch.ones(1, 2, 3, 5)}, "bool"),
        ({"K": torch.eye(3).expand(1, 2, 3, 3)}, "cam_from_world and K of shape None"),
        ({"images": torch.zeros(1, 3, 3, 42, 70), "reference_view": "best"}, "saddle"),
    ],
)
def test_wrong_inputs_are_named(tiny: DA3, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        tiny(**{"images": torch.zeros(1, 2, 3, 42, 70), **arguments})
    assert says in str(error.value)


def test_a_network_without_enough_layers_is_refused() -> None:
    with pytest.raises(InputError, match="at least four of the 6 blocks"):
        DA3(replace(TINY, out_layers=(3, 5)))
