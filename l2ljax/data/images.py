"""Images that stay on the disk: an array of them that is decoded where it is read."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np

from l2ljax.data.readers import damaged

__all__ = ["Images", "decode"]

SHORT_SIDE, SIDE = 256, 224


class Images:
    """Images uint8 [N, H, W, C] that are not in memory.

    `images[index]` with a slice or an array chooses some of them, and reads none; `np.asarray(images)` reads
    them, by several threads (Pillow decodes and resizes outside Python's lock). `images[3]` is an array.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, items: np.ndarray, read: Callable[[Any], np.ndarray], image_shape: tuple[int, int, int]) -> None:
        """Args: what tells the images apart [N], and how to read one of them, uint8 [H, W, C] = `image_shape`."""
        self._items, self._read = items, read
        self.shape = (len(items), *image_shape)

    def __len__(self) -> int:
        """N."""
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        """Choose by a slice, or an array of positions or of booleans: `Images`; by a position: uint8 [H, W, C]."""
        if isinstance(index, int | np.integer):
            return self._read(self._items[index])
        return Images(self._items[index], self._read, self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read all N, as uint8: NumPy itself makes another type of them where one is asked for.

        Raises:
          L2LError: one of them is damaged.
        """
        array = np.empty(self.shape, self.dtype)

        def fill(position: int) -> None:
            array[position] = self._read(self._items[position])

        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, range(len(self))))  # the list passes an error on
        return array


def decode(file: str | BinaryIO, name: str) -> np.ndarray:
    """Read an image file, resize its shorter side to 256 (bilinear), and cut 224x224 out of the middle.

    The sizes are rounded as torchvision's Resize(256) and CenterCrop(224) round them.

    Args:
      file: a path, or the open file: JPEG, PNG, whatever Pillow knows; grey or CMYK becomes RGB.
      name: of the file, for messages.

    Returns:
      uint8 [224, 224, 3].

    Raises:
      L2LError: not an image, or a damaged one.
    """
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # Pillow has no one error for a broken file
        raise damaged(name, error) from error
    short = min(image.size)
    image = image.resize([SHORT_SIDE * n // short for n in image.size], Image.Resampling.BILINEAR)  # type: ignore[arg-type]
    left, top = (round((n - SIDE) / 2) for n in image.size)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
