from typing import Any

import numpy as np

# What `rate` and `scale` may be: not everything with a `__float__`, which arrays have too.
_Real = float | np.floating[Any] | np.integer[Any]
