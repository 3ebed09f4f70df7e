"""The array type of the library, and the check that arrays of numbers pass on their way in."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infalign.errors import InvalidValue

Floats = NDArray[np.float64]
"""The one array type: 64-bit floats of any shape."""


def check_finite(name: str, values: ArrayLike) -> Floats:
    """Convert values to floats and refuse those that are not finite.

    Args:
        name: What the message of a refusal calls the values.
        values: Numbers of any shape.

    Returns:
        The values as 64-bit floats, in the same shape.

    Raises:
        InvalidValue: A value is NaN or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise InvalidValue(name, float(array[~np.isfinite(array)].flat[0]), "finite numbers")
    return array
