"""Refuses what needs TensorFlow, on other backends."""

from __future__ import annotations

from typing import Any, NoReturn

import keras


def _refuse(name: str, instead: str = "") -> NoReturn:
    raise NotImplementedError(
        f"fastdrop_keras.{name} needs Keras's backend 'tensorflow', and this is "
        f"{keras.config.backend()!r}{instead}"
    )


def get_bridge() -> str:
    """Raise an error: there are bridges to TensorFlow only."""
    _refuse("get_bridge")


def set_bridge(name: str) -> None:
    """Raise an error: there are bridges to TensorFlow only."""
    _refuse("set_bridge")


def mc_predict(model: Any, x: Any, n: int, **kwargs: Any) -> tuple[Any, Any]:
    """Raise an error: it is written with TensorFlow's variables and datasets."""
    _refuse("mc_predict")
