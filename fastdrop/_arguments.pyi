from typing import Any

import numpy as np

# The types of `rate` and `scale`. SupportsFloat would accept arrays, too.
_Real = float | np.floating[Any] | np.integer[Any]
