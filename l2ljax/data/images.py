"""Images that stay on disk: an array that decodes them on access."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from l2ljax.data.readers import damaged

__all__ = ["Images", "decode"]

SHORT_SIDE, SIDE = 256, 224


class Images:
    """Images uint8 [N, H, W, C] on disk: `np.asarray(images[:100])` reads 100 in several threads.

    Pillow decodes and resizes outside Python's lock. A damaged image is an L2LError.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, items: np.ndarray, read: Callable[[Any], np.ndarray], image_shape: tuple[int, int, int]) -> None:
        """Args: an identifier per image [N], and a function from it to the image, uint8 [H, W, C] = `image_shape`."""
        self._items, self._read = items, read
        self.shape = (len(items), *image_shape)

    def __len__(self) -> int:
        """N."""
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        """Select by a slice, or an array of positions or booleans: `Images`; by a position: uint8 [H, W, C]."""
        if isinstance(index, int | np.integer):
            return self._read(self._items[index])
        return Images(self._items[index], self._read, self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all N as uint8; NumPy converts them to another dtype if requested."""
        array = np.empty(self.shape, self.dtype)
        with ThreadPoolExecutor() as pool:
            for position, image in enumerate(pool.map(self._read, self._items)):
                array[position] = image
        return array


def decode(file: str | BinaryIO, name: str) -> np.ndarray:
    """Read an image, resize its shorter side to 256 (bilinear), and return the central uint8 [224, 224, 3].

    Sizes are rounded as in torchvision's Resize(256) and CenterCrop(224). Grey or CMYK becomes RGB.

    Args:
      file: a path or an open file: JPEG, PNG or another format of Pillow's; anything else is an L2LError.
      name: the file's name in messages.
    """
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow has no single error for a broken file
        raise damaged(name, error) from error
    short = min(image.size)
    image = image.resize([SHORT_SIDE * n // short for n in image.size], Image.Resampling.BILINEAR)  # type: ignore[arg-type]
    left, top = (round((n - SIDE) / 2) for n in image.size)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
