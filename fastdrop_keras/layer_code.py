"""Searches a layer's code for functions that draw random numbers."""

from __future__ import annotations

import dis
import gc
import inspect
import types
from typing import Any

import keras
import numpy as np

from fastdrop_keras.backend import BACKEND

# Names in code that draws random numbers, the instructions that load them, and what has code.
_OF_OBJECTS = ("LOAD_ATTR", "LOAD_METHOD")
_LOADS = (*_OF_OBJECTS, "LOAD_GLOBAL", "IMPORT_FROM")
_RANDOM = ("random", "dropout", "stateless_dropout")
_FUNCTIONS: Any = (types.FunctionType, types.MethodType, staticmethod, classmethod)
_FUNCTIONS += BACKEND.TRACED_FUNCTIONS
# Their methods have any names.
_GENERATORS: Any = (keras.random.SeedGenerator, np.random.Generator, np.random.RandomState)
_GENERATORS += BACKEND.GENERATORS


def random_name(layer: keras.Layer) -> str:
    """Return a name or a class in the layer's code that tells of random numbers, or ""."""
    module = BACKEND.random_module(layer)
    if module:
        return module
    calls = [vars(base).get("call") for base in type(layer).__mro__]
    waiting, visited = [vars(layer).get("call"), getattr(layer, "function", None), *calls], []
    while waiting:
        value = waiting.pop()
        if isinstance(value, _GENERATORS):
            return type(value).__name__
        unwrapped = inspect.unwrap(value) if isinstance(value, _FUNCTIONS) else None
        function: Any = getattr(unwrapped, "__func__", unwrapped)
        is_new = isinstance(function, types.FunctionType) and function not in visited
        if not is_new or of_a_framework(function):
            continue
        visited.append(function)
        cells, codes = function.__closure__ or (), [function.__code__]
        waiting += [content for cell in cells for content in gc.get_referents(cell)]
        for code in codes:
            codes += [one for one in code.co_consts if isinstance(one, types.CodeType)]
            for name in code.co_names:
                waiting.append(inspect.getattr_static(layer, name, None))
                waiting.append(function.__globals__.get(name))
            before: Any = ""
            for step in dis.get_instructions(code):
                # In `keras.random.uniform` and `tf.nn.dropout`, but not in `self.dropout(x)`.
                of_self = step.opname in _OF_OBJECTS and "self" in str(before)
                if step.argval in _RANDOM and step.opname in _LOADS and not of_self:
                    return str(step.argval)
                before = step.argval
    return ""


def of_a_framework(definition: Any) -> bool:
    """Return whether a class or function is defined in a framework, not by a user."""
    package = str(definition.__module__).partition(".")[0]
    frameworks = ("keras", "tensorflow", "torch", "jax", "flax")
    return package in (*frameworks, "fastdrop_keras", "fastdrop_torch", "fastdrop_jax")
