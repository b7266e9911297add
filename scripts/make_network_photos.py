"""Makes the photos that networks are tried on: four of the bundled sample, smaller.

python scripts/make_network_photos.py
"""

import json
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("IMG_0002.jpg", "IMG_0005.jpg", "IMG_0008.jpg", "IMG_0016.jpg")
SIDE = 518

stored = json.loads((ROOT / "assets/sample/reference/cameras.json").read_text())
cameras = {entry["file"]: entry for entry in stored["images"]}
out = ROOT / "recon/feedforward/photos"
out.mkdir(exist_ok=True)
chosen = {}
for name in NAMES:
    photo = ImageOps.exif_transpose(Image.open(ROOT / "assets/sample/images" / name))
    photo.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    photo.save(out / name, quality=90)
    chosen[name] = {"world_from_cam": cameras[name]["world_from_cam"]}
(out / "cameras.json").write_text(json.dumps(chosen, indent=1) + "\n")
