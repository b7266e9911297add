"""Makes the conformance files of motion.npz: a small scene that is easy to read wrongly, and what is true of it.

python scripts/make_motion_conformance.py [FOLDER]

numpy in float64 alone, written from the text of docs/formats.md: nothing of geo4d and nothing of the document's reader
is used, so that each can be wrong on its own. The document says what is in the files.
"""

import json
import sys
from pathlib import Path

import numpy as np

TIMES = np.array([0.5, 1.25, 3.0])
ASKED = (-1.0, 0.5, 0.8, 1.25, 2.0, 3.0, 7.0)
"""Before the first key, at and between keys, after the last."""
UNSURE = 0.05
"""Cosine between quaternions: which of two signs is nearer must not be a matter of rounding."""
THIRD = np.float32(1) / 3
WEIGHTS = np.array(
    [[0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0.25, 0.75], [THIRD, THIRD, THIRD], [0.9, 0, 0.1], [0, 1, 0]], np.float32
)
ANCHORS = np.array([[2.0, 0.5, -1.0], [-3.0, 1.0, 0.25], [0.0, 0.0, 0.0]])
TURNS = (
    # of each basis at each time: axis, degrees
    (((0, 0, 1), 0.0), ((1, 2, 2), 179.5), ((0, 0.6, 0.8), 170.0)),
    (((0, 0, 1), 100.0), ((1, 2, 2), 120.0), ((0, 0.6, 0.8), 190.0)),
    (((0, 0, 1), -100.0), ((2, -1, 2), -40.0), ((0, 0.6, 0.8), 230.0)),
)
SHIFTS = np.array(
    [
        [[0, 0, 0], [1, -2, 0.5], [1, 1, 3]],
        [[0.5, 0, 0], [0, 0, 0], [-1, 4, 0.125]],
        [[0, 0, 0], [0, 0, 2], [10, 0, -2]],
    ]
)
MEANS = np.array(
    [[1, 2, 3], [2.5, 0, -1], [-0.5, 0.75, 0], [0.1, -0.2, 0.3], [1, 1, 1], [-40, 25, 60], [-3, 1, 0.25]], np.float32
)
QUATS = np.array(
    [
        [1, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0.5, 0.5], [0.6, 0, -0.8, 0], [0.8, 0, 0, 0.6], [0.1, 0.7, 0.1, 0.7],
        [0, 0, 0, 1],
    ],
    np.float32,
)  # fmt: skip


def rotation(axis: np.ndarray, angle_rad: float) -> np.ndarray:
    """By Rodrigues' formula."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle_rad) * K + (1 - np.cos(angle_rad)) * K @ K


def quaternion(R: np.ndarray) -> np.ndarray:
    """Wxyz, divided by its largest number."""
    squares = np.array([1 + np.trace(R), *(1 + 2 * R[i, i] - np.trace(R) for i in range(3))])
    largest = int(squares.argmax())
    w = [squares[0], R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]
    mixed = R + R.T
    rows = [w, *([w[i + 1], *(squares[i + 1] if i == j else mixed[i, j] for j in range(3))] for i in range(3))]
    return np.array(rows[largest]) / np.linalg.norm(rows[largest])


def times(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Product of quaternions, by the matrix of the left one."""
    w, x, y, z = p
    return np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]]) @ q


def matrix(q: np.ndarray) -> np.ndarray:
    conjugate = q * np.array([1, -1, -1, -1])
    return np.stack([times(times(q, np.eye(4)[k]), conjugate)[1:] for k in (1, 2, 3)], 1)


def pose_at(
    rotations: np.ndarray, shifts: np.ndarray, anchor: np.ndarray, time_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of one basis: rotation and shift."""
    places = rotations @ anchor + shifts
    if time_s <= TIMES[0]:
        return rotations[0], shifts[0]
    if time_s >= TIMES[-1]:
        return rotations[-1], shifts[-1]
    k = int(np.flatnonzero(time_s >= TIMES)[-1])
    share = (time_s - TIMES[k]) / (TIMES[k + 1] - TIMES[k])
    turn = quaternion(rotations[k].T @ rotations[k + 1])
    turn = turn if turn[0] >= 0 else -turn
    assert turn[0] > 1e-3, "half a turn has two ways"
    sine = np.linalg.norm(turn[1:])
    R = rotations[k] if sine == 0 else rotations[k] @ rotation(turn[1:], share * 2 * np.arctan2(sine, turn[0]))
    return R, (1 - share) * places[k] + share * places[k + 1] - R @ anchor


def blend(poses: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quaternion and shift of rigid motions, blended."""
    real = [quaternion(R) for R, _ in poses]
    dual = [0.5 * times(np.array([0.0, *t]), q) for (_, t), q in zip(poses, real, strict=True)]
    heaviest = real[int(np.argmax(weights))]  # the first of equals
    q, d = np.zeros(4), np.zeros(4)
    for w, r, u in zip(weights, real, dual, strict=True):
        assert w == 0 or abs(r @ heaviest) > UNSURE
        sign = 1 if r @ heaviest >= 0 else -1
        q, d = q + w * sign * r, d + w * sign * u
    q, d = q / np.linalg.norm(q), d / np.linalg.norm(q)
    return q, 2 * times(d, q * np.array([1, -1, -1, -1]))[1:]


def turned(sh: np.ndarray, R: np.ndarray) -> np.ndarray:
    """Spherical harmonics of degree 1, `(4, 3)`: those of degree 1 are -y, z and -x times a constant."""
    vector = np.stack([-sh[3], -sh[1], sh[2]])  # of every colour that which the direction is multiplied by
    x, y, z = R @ vector
    return np.stack([sh[0], -y, z, -x])


def scene() -> dict[str, np.ndarray]:
    """What is stored, in the numbers that the files hold."""
    unit = (QUATS / np.linalg.norm(QUATS, axis=1, keepdims=True)).astype(np.float32)
    sh = np.sin(np.arange(7 * 4 * 3)).reshape(7, 4, 3).astype(np.float32)
    turns = np.array([[rotation(np.array(axis), np.radians(a)) for axis, a in basis] for basis in TURNS])
    poses = np.tile(np.eye(4), (3, 3, 1, 1))
    poses[..., :3, :3], poses[..., :3, 3] = turns, SHIFTS
    return {"means": MEANS, "quats": unit, "sh": sh, "poses": poses}


def expected(stored: dict[str, np.ndarray]) -> dict[str, object]:
    means, quats, sh = (stored[k].astype(np.float64) for k in ("means", "quats", "sh"))
    answers = []
    for t in ASKED:
        poses = [pose_at(P[:, :3, :3], P[:, :3, 3], a, t) for P, a in zip(stored["poses"], ANCHORS, strict=True)]
        places, axes, colours = means.copy(), quats.copy(), sh.copy()
        for i in np.flatnonzero(WEIGHTS.max(1) > 0):
            q, shift = blend(poses, WEIGHTS[i].astype(np.float64))
            places[i], axes[i], colours[i] = matrix(q) @ means[i] + shift, times(q, quats[i]), turned(sh[i], matrix(q))
        axes *= np.where(axes[:, :1] < 0, -1, 1)
        answers.append({"time_s": t, "means": listed(places), "quats_wxyz": listed(axes), "sh": listed(colours)})
    return {"format": "geo4d-motion-expected", "version": 1, "at": answers}


def listed(values: np.ndarray) -> list[object]:
    return (np.round(values, 8) + 0.0).tolist()


def write_ply(path: Path, stored: dict[str, np.ndarray]) -> None:
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split()
    names += [f"f_rest_{k}" for k in range(9)] + "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    n, sh = len(MEANS), stored["sh"]
    rest = sh[:, 1:].transpose(0, 2, 1).reshape(n, 9)  # all of red, then green, then blue
    same = np.tile(np.array([[1.5, -2.0, -3.0, -4.0]], np.float32), (n, 1))  # logit of opacity, logarithms of scales
    table = np.hstack([stored["means"], np.zeros((n, 3)), sh[:, 0], rest, same, stored["quats"]]).astype("<f4")
    header = f"ply\nformat binary_little_endian 1.0\ncomment SplatRenderMode: default\nelement vertex {n}\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    path.write_bytes(header.encode() + table.tobytes())


def main(folder: Path) -> None:
    stored = scene()
    folder.mkdir(parents=True, exist_ok=True)
    write_ply(folder / "gaussians.ply", stored)
    np.savez_compressed(
        folder / "motion.npz", version=np.array(1), kind=np.array("bases"), time_s=TIMES,
        world_from_rest=stored["poses"], weights=WEIGHTS, anchor_rest=ANCHORS,
    )  # fmt: skip
    answers = json.dumps(expected(stored), separators=(",", ":"))
    (folder / "expected.json").write_text(answers.replace('{"time_s"', '\n{"time_s"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "tests/golden/motion")
