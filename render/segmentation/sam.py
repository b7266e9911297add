"""Boxes and points to ids per pixel by SAM 2 (Ravi et al. 2024), where transformers and the weights are at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from geo4d.core import pictures
from geo4d.core.errors import InputError, MissingDependencyError
from render.segmentation.boxes import BoxedView, by_size
from render.segmentation.lifting import Annotation

MODEL = "facebook/sam2.1-hiera-small"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours of ImageNet, which the weights were trained with."""


def load_sam(model: str = MODEL) -> Any:
    """SAM 2 of transformers; nothing is downloaded.

    Its image processor is not used, since that needs torchvision.

    Args:
        model: name on huggingface.co, looked for in the cache of this machine, or a folder.

    Raises:
        MissingDependencyError: transformers is not installed, or too old.
        InputError: the weights are not on this machine.
    """
    try:
        from transformers import Sam2Model  # pyright: ignore
    except ImportError as error:
        raise MissingDependencyError(
            "--sam needs transformers 4.56 or newer", found=str(error), hint="pip install 'geo4d[hub]'"
        ) from error
    try:
        network = Sam2Model.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            "the weights of SAM 2 are not on this machine",
            found=f"no {model} in the cache of huggingface_hub",
            accepted=f"the weights, by `hf download {model}` where there is a network, or --sam-model FOLDER",
            hint="without them: leave out --sam (boxes are cut out by geometry and colour), or give --masks FOLDER",
        ) from error
    return network.eval()


@torch.no_grad()
def annotate_with_sam(network: Any, view: BoxedView) -> Annotation:
    """Ids per pixel of a photo with boxes and points, ready for `lift`.

    Args:
        network: of `load_sam`.
        view: the photo; points lie on their object.
    """
    h, w = view.camera.hw
    side = int(network.config.prompt_encoder_config.image_size)
    rgb = torch.from_numpy(pictures.resize(view.rgb, (side, side)).astype(np.float32) / 255)
    pixels = ((rgb - torch.tensor(MEAN)) / torch.tensor(DEVIATION)).permute(2, 0, 1)[None]
    embeddings = network.get_image_embeddings(pixels)
    factor = torch.tensor([side / w, side / h])
    ids = torch.zeros(h, w, dtype=torch.int64)
    objects = sorted({*view.boxes, *view.points})
    for k in by_size(view, objects):
        ids[_mask(network, embeddings, view, k, factor)] = k
    return Annotation(view.camera, ids, tuple(objects), view.time_s)


def _mask(network: Any, embeddings: Any, view: BoxedView, k: int, factor: Tensor) -> Tensor:
    """Bool `(h, w)`: the best mask of one object."""
    prompt: dict[str, Tensor] = {}
    if k in view.boxes:
        prompt["input_boxes"] = (torch.tensor(view.boxes[k]).reshape(2, 2) * factor).reshape(1, 1, 4)
    if k in view.points:
        points = torch.tensor(view.points[k], dtype=torch.float32) * factor
        prompt["input_points"] = points[None, None]
        prompt["input_labels"] = torch.ones(1, 1, len(points), dtype=torch.int64)
    # One point may mean a thing or a part of it: of three answers the surest is taken.
    doubtful = k not in view.boxes and len(view.points[k]) == 1
    out = network(image_embeddings=embeddings, multimask_output=doubtful, **prompt)
    logits = out.pred_masks[0, 0][int(out.iou_scores[0, 0].argmax())]
    large = torch.nn.functional.interpolate(logits[None, None].float(), view.camera.hw, mode="bilinear")
    return large[0, 0] > 0
