"""File formats: the bytes of a split's files -> images uint8 [N, H, W, C] and labels int32 [N].

Each reader takes the files of one split in their official order and raises an `L2LError` that names a damaged file. It
does not know their folder or data set.
"""

import contextlib
import gzip
import io
import json
import pickle
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from l2ljax.types import L2LError

__all__ = [
    "File", "Split", "cifar_binary", "cifar_png", "cifar_python", "damaged", "digits", "gunzip", "idx", "svhn_mat",
]  # fmt: skip


class File(NamedTuple):
    """A file's path, for messages, and its contents."""

    path: str
    data: bytes


class Split(NamedTuple):
    """Images uint8 [N, H, W, C] and labels int32 [N]: NumPy arrays, or JAX arrays after `jax.device_put`.

    Images may also be `images.Images`, which stay on disk, or float32 in [0, 1].
    """

    images: Any
    labels: Any

    def take(self, rows: Any) -> "Split":
        """Return the examples of `rows`: a slice, a mask [N] or indices."""
        return Split(self.images[rows], self.labels[rows])


def damaged(path: str, why: object) -> L2LError:
    """Return the error for a file that is not in the format of its name."""
    return L2LError(f"{path} is damaged ({why}): delete it and get it again")


def gunzip(file: File) -> File:
    """Return the unpacked file; gzip's own length and CRC detect a truncated or altered one."""
    try:
        return File(file.path, gzip.decompress(file.data))
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(file.path, error) from error


def cifar_binary(files: Sequence[File], *, label_bytes: int) -> Split:
    """Read CIFAR's binary version: records of label bytes (the last is the class) and three 32x32 planes."""
    size = label_bytes + 3 * 32 * 32
    for file in files:
        if not file.data or len(file.data) % size:
            raise damaged(file.path, f"{len(file.data)} bytes are not a whole number of {size}-byte records")
    records = np.frombuffer(b"".join(file.data for file in files), np.uint8).reshape(-1, size)
    return Split(_planes_last(records[:, label_bytes:]), records[:, label_bytes - 1].astype(np.int32))


def cifar_python(files: Sequence[File], *, labels: str) -> Split:
    """Read CIFAR's Python version: pickled dicts of `data` [N, 3072] and a list of labels."""
    planes, classes = [], []
    for file in files:
        batch = _unpickle(file)
        try:
            planes.append(_exactly(batch["data"], np.uint8).reshape(-1, 3 * 32 * 32))
            classes.append(_exactly(batch[labels], np.int32))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(file.path, f"no usable 'data' and '{labels}': {error!r}") from error
    return Split(_planes_last(np.concatenate(planes)), np.concatenate(classes))


def cifar_png(files: Sequence[File]) -> Split:
    """Read the npm package: RGB PNGs whose row i is image i, 1,024 pixels, then a JSON list of labels."""
    from PIL import Image

    *sheets, labels = files
    images = []
    for sheet in sheets:
        try:
            pixels = np.asarray(Image.open(io.BytesIO(sheet.data)).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for a broken PNG
            raise damaged(sheet.path, error) from error
        if pixels.shape[1] != 32 * 32:
            raise damaged(sheet.path, f"a row has {pixels.shape[1]} pixels, not 1,024")
        images.append(pixels.reshape(-1, 32, 32, 3))
    try:
        classes = _exactly(json.loads(labels.data), np.int32).reshape(-1)
    except (TypeError, ValueError, RecursionError) as error:
        raise damaged(labels.path, error) from error
    return Split(np.concatenate(images), classes)


def idx(files: Sequence[File]) -> Split:
    """Read MNIST's format: one file of images [N, H, W] and one of labels [N], bytes after a header."""
    images, labels = map(_idx_array, files, (3, 1))
    return Split(images[..., None], labels.astype(np.int32))


def svhn_mat(files: Sequence[File]) -> Split:
    """Read SVHN's MATLAB files: X [32, 32, 3, N] and y [N, 1] in 1..10, where 10 means the digit 0."""
    from scipy.io import loadmat

    (file,) = files
    try:
        content = loadmat(io.BytesIO(file.data), variable_names=("X", "y"))
        images, labels = _exactly(content["X"], np.uint8), _exactly(content["y"], np.int32)
    except Exception as error:  # SciPy has no single error for a broken file
        raise damaged(file.path, repr(error)) from error
    if images.ndim != 4:
        raise damaged(file.path, f"X has shape {images.shape}, not [32, 32, 3, N]")
    return Split(np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.reshape(-1) % 10)


def digits() -> tuple[Split, Split]:
    """Return scikit-learn's 1,797 digits, 8x8x1, a fixed 1,400 to train; grey values 0..16 become round(v 255 / 16)."""
    from sklearn.datasets import load_digits

    content = load_digits()
    images = np.round(content.images * 255 / 16).astype(np.uint8)[..., None]
    labels = content.target.astype(np.int32)
    order = np.random.RandomState(0).permutation(len(labels))  # a stream that NumPy guarantees; the file is by writer
    train, test = order[:1400], order[1400:]
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def _exactly(values: Any, dtype: type) -> np.ndarray:
    """Return the values in an integer type; raise a ValueError if it cannot hold one of them."""
    array = np.asarray(values)
    with np.errstate(invalid="ignore"), contextlib.suppress(OverflowError):
        exact: np.ndarray = array.astype(dtype)
        if np.array_equal(exact, array):
            return exact
    raise ValueError(f"values that are no {np.dtype(dtype)}")


def _planes_last(planes: np.ndarray) -> np.ndarray:
    """Convert [N, 3072], the red, green and blue planes row by row, to [N, 32, 32, 3]."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _idx_array(file: File, ndim: int) -> np.ndarray:
    """Parse the header: two zeros, type 8 (unsigned byte), the number of axes, each axis as a big-endian int32."""
    start = 4 + 4 * ndim
    if len(file.data) < start or file.data[:4] != bytes((0, 0, 8, ndim)):
        raise damaged(file.path, f"it does not begin as an idx file of bytes with {ndim} axes")
    shape = tuple(int(n) for n in np.frombuffer(file.data, ">u4", ndim, offset=4))
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(file.data) != expected:
        raise damaged(file.path, f"{len(file.data)} bytes where its header says {expected}")
    return np.frombuffer(file.data, np.uint8, offset=start).reshape(shape)


def _dtype(spec: Any, align: int = 0, copy: int = 0) -> np.dtype:
    return np.dtype(spec, align=bool(align), copy=bool(copy))  # NumPy warns at the 0 and 1 of old pickles


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {encoding}")
    return text.encode("latin1")


# The names in CIFAR's pickles, as written by Python 2 (the official files) or saved again by any Python 3. A pickle may
# name any callable, so all others are refused.
_ADMITTED: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
    "numpy.core.numeric._frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "_codecs.encode": _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Unpickle NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}".replace("numpy._core", "numpy.core")) not in _ADMITTED:
            raise L2LError(f"refused: it asks for {module}.{name}, which no CIFAR file holds")
        return _ADMITTED[full]


def _unpickle(file: File) -> dict[str, Any]:
    try:
        content = _Unpickler(io.BytesIO(file.data), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    except L2LError as error:
        raise L2LError(f"{file.path}: {error}") from None
    except Exception as error:  # a damaged pickle may fail at any instruction
        raise damaged(file.path, repr(error)) from error
