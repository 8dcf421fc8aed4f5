from typing import Any

import numpy as np
from numpy.typing import NDArray

# The types of `scale`, and of `rate` and `stddev`. SupportsFloat would accept arrays of any dtype,
# too. An array must have no dimensions, which NumPy's types do not say.
_Real = float | np.floating[Any] | np.integer[Any]
_Rate = _Real | NDArray[np.floating[Any]] | NDArray[np.integer[Any]]
