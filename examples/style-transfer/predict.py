"""Paints a photo in one of 26 styles, at any size, with a progress bar in the logs."""

from __future__ import annotations

import sys
import tempfile

from cog import BaseRunner, Input, Path
from PIL import Image, ImageOps
from styler import Styler
from tqdm import tqdm

WEIGHTS = Path(__file__).parent / "weights" / "multistyle26.onnx"
PIXEL_COUNT_MAX = 50_000_000
SIDE_MIN = 32

# The network has numbers only; the names say what the results look like.
STYLES = [
    "amber pastel",
    "yellow cubes",
    "soft ink",
    "neon shards",
    "crimson canvas",
    "orange brushwork",
    "night dots",
    "bold primaries",
    "pink pencil",
    "teal mosaic",
    "umber oil",
    "gold woodcut",
    "lilac pastel",
    "green expressionist",
    "pale watercolour",
    "stained glass",
    "blue crayon",
    "woven ribbons",
    "sepia wash",
    "starry night",
    "red oil",
    "coral collage",
    "blue comic",
    "charcoal",
    "linocut",
    "autumn mosaic",
]


class Predictor(BaseRunner):
    def setup(self) -> None:
        if not WEIGHTS.exists():
            raise FileNotFoundError(
                f"weights/{WEIGHTS.name} is missing: run `python examples/prepare.py "
                "style-transfer` and push the model again"
            )
        self.styler = Styler(WEIGHTS)

    def run(
        self,
        image: Path = Input(description="Picture to paint: JPEG, PNG or WebP"),
        style: str = Input(description="How to paint it", default="starry night", choices=STYLES),
        strength: float = Input(
            description="How much of the painting to mix into the picture", default=1.0, ge=0, le=1
        ),
        preserve_colors: bool = Input(
            description="Keep the picture's colours, paint only light and dark", default=False
        ),
        max_size: int = Input(
            description="Longest side of the result in pixels; larger pictures are scaled down",
            default=1024,
            ge=64,
            le=4096,
        ),
        output_format: str = Input(
            description="File type of the result", default="png", choices=["png", "jpg"]
        ),
    ) -> Path:
        picture = open_picture(image, max_size=max_size)
        tiles = self.styler.tiles(picture)
        print(f"Painting {picture.width}x{picture.height} in {len(tiles)} tiles: {style}")
        bar = tqdm(tiles, ascii=True, mininterval=0, file=sys.stderr)
        painted = self.styler.paint(picture, style=STYLES.index(style), tiles=iter(bar))
        if preserve_colors:
            painted = with_colors_of(picture, painted)
        painted = Image.blend(picture, painted, strength)
        output = Path(tempfile.mkdtemp()) / f"painted.{output_format}"
        painted.save(output, quality=92)
        return output


def open_picture(path: Path, *, max_size: int) -> Image.Image:
    try:
        picture = Image.open(path)
        # The header is enough to know the size, so a huge picture is refused before it is decoded.
        check_size(picture.width * picture.height <= PIXEL_COUNT_MAX, picture, "is too large")
        picture = on_white(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        raise ValueError(f"image: more than {PIXEL_COUNT_MAX:,} pixels") from error
    except OSError as error:
        raise ValueError("image: not a picture file that can be read (JPEG, PNG, WebP)") from error
    picture.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
    check_size(min(picture.size) >= SIDE_MIN, picture, "is too small")
    return picture


def check_size(fits: bool, picture: Image.Image, problem: str) -> None:
    if not fits:
        raise ValueError(
            f"image: {picture.width}x{picture.height} {problem}: send at least {SIDE_MIN} pixels "
            f"a side and at most {PIXEL_COUNT_MAX:,} in all"
        )


def on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture).convert("RGB")


def with_colors_of(picture: Image.Image, painted: Image.Image) -> Image.Image:
    light, _, _ = painted.convert("YCbCr").split()
    _, blue, red = picture.convert("YCbCr").split()
    return Image.merge("YCbCr", (light, blue, red)).convert("RGB")
