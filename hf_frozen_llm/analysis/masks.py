# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""Images with masks of their objects, and the masks of a model's tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image


SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
Layout = Literal["voc", "imagenet-s", "folders"]
# Folders of the images and of the masks.
FOLDERS: dict[Layout, tuple[str, str]] = {
    "voc": ("JPEGImages", "SegmentationClass"),
    "imagenet-s": ("validation", "validation-segmentation"),
    "folders": ("images", "masks"),
}
VOC_LIST = Path("ImageSets", "Segmentation", "val.txt")
VOC_VOID, IMAGENET_S_IGNORED = 255, 1000


@dataclass(frozen=True)
class MaskedImage:
    """
    An image file and the file of its mask.

    Args:
        name (`str`): the image's path below its folder, without suffix.
        image (`Path`): the image.
        mask (`Path`): the mask, of the same size.
        layout (`"voc"`, `"imagenet-s"` or `"folders"`): what the mask's numbers mean, see [`find_masked_images`].
    """

    name: str
    image: Path
    mask: Path
    layout: Layout

    def read(self) -> tuple[Image.Image, np.ndarray]:
        """
        Return the image in RGB, and the mask of shape `(height, width)`: 1 = object, 0 = background, NaN = neither.

        Raises:
            `ValueError`: if a file cannot be read, or if the two sizes differ.
        """
        image, mask = (_open(path) for path in (self.image, self.mask))
        if image.size != mask.size:
            raise ValueError(
                f"{self.mask} has {mask.width} x {mask.height} pixels, and its image {self.image} has {image.width} x "
                f"{image.height}. Give masks of the images' own sizes."
            )
        if self.layout == "imagenet-s":
            channels = np.asarray(mask.convert("RGB")).astype(int)
            numbers, neither = channels[..., 0] + 256 * channels[..., 1], IMAGENET_S_IGNORED
        else:
            # The numbers of a palette, not its colours.
            numbers, neither = np.asarray(mask if mask.mode in ("P", "1", "L") else mask.convert("L")).astype(int), -1
            neither = VOC_VOID if self.layout == "voc" else neither
        return image.convert("RGB"), np.where(numbers == neither, np.nan, numbers > 0)


def find_masked_images(folder: str | Path) -> list[MaskedImage]:
    """
    Find images and their masks in a folder, in the order of their names. The layout is recognised by its sub-folders:

    - `images/**` and `masks/**`, with the same names: any number above 0 is an object;
    - VOC's `JPEGImages` and `SegmentationClass`: the images of `ImageSets/Segmentation/val.txt`, or all that have a
      mask. 0 is background, 255 neither, and every other number a class;
    - ImageNet-S's `validation/<class>` and `validation-segmentation/<class>`: the class is `red + 256 * green`, 0 is
      background and 1000 neither.

    Args:
        folder (`str` or `Path`): the folder.

    Raises:
        `FileNotFoundError`: if there is no such folder.
        `ValueError`: if it has none of these layouts, or if masks and images have other names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Give a folder of images and masks.")
    layout = next((name for name, parts in FOLDERS.items() if all((folder / part).is_dir() for part in parts)), None)
    if layout is None:
        known = "; ".join(f"{images} and {masks}" for images, masks in FOLDERS.values())
        raise ValueError(f"{folder} has no images with masks. It must hold two folders: {known}.")
    images, masks = (_files_of(folder / part) for part in FOLDERS[layout])
    wanted = set(masks)
    if layout == "voc" and (folder / VOC_LIST).is_file():
        wanted = set((folder / VOC_LIST).read_text(encoding="utf-8").split())
    elif layout != "voc":
        wanted |= set(images)  # VOC has more images than masks
    for found, kind, where in zip((images, masks), ("image", "mask"), FOLDERS[layout]):
        if missing := sorted(wanted - set(found)):
            raise ValueError(
                f"{folder / where} lacks {len(missing):,} of {len(wanted):,} {kind}s, such as {missing[0]}. An image "
                "and its mask have the same name, except the suffix."
            )
    if not wanted:
        raise ValueError(f"{folder / FOLDERS[layout][0]} holds no images ({', '.join(sorted(SUFFIXES))}).")
    return [MaskedImage(name, images[name], masks[name], layout) for name in sorted(wanted)]


def mask_of_tokens(mask: np.ndarray, processor: Any, shape: tuple[int, int]) -> np.ndarray:
    """
    Bring a mask to the tokens of an image. A token is of the object if the object covers half of its patch at least;
    the paper does not say how it projects masks.

    Args:
        mask (`numpy.ndarray` of shape `(height, width)`): see [`MaskedImage`].
        processor (`BaseImageProcessor`): the model's, which resizes and crops the mask as it does the image.
        shape (`tuple[int, int]`): rows and columns of tokens.

    Returns:
        `numpy.ndarray` of shape `(rows, columns)`: 1 = object, 0 = background, NaN = more than half is neither.

    Raises:
        `ValueError`: if the processed image is not a whole number of patches.
    """
    is_known = ~np.isnan(mask)
    channels = np.stack([mask == 1, is_known, is_known], axis=-1).astype(np.uint8) * 255
    options = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    pixels = processor(Image.fromarray(channels), **options)["pixel_values"][0].astype(float)
    (height, width), (rows, columns) = pixels.shape[1:], shape
    if height % rows or width % columns:
        raise ValueError(f"The processor's {height} x {width} pixels are not {rows} x {columns} whole patches.")
    patches = pixels.reshape(3, rows, height // rows, columns, width // columns).mean((2, 4))
    covered, known = patches[0], patches[1]
    return np.where(known < 127.5, np.nan, covered >= known / 2)


def _files_of(folder: Path) -> dict[str, Path]:
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return image
