"""What must be installed and chosen before the layers can work, and what to do where it is not."""

import os

# From here on, Keras saves what is in a layer besides its variables: the state of the seeds.
_OLDEST_KERAS = (3, 11)

_OTHER_BACKENDS = frozenset({"jax", "torch", "openvino"})


def check() -> None:
    """Raise an ImportError that says what to do, unless Keras runs on TensorFlow here."""
    try:
        import tensorflow  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise _missing("TensorFlow") from error
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name in _OTHER_BACKENDS:
            # Keras imports what its backend needs, and that is not even installed.
            raise _wrong_backend(os.environ.get("KERAS_BACKEND", error.name)) from error
        if error.name != "keras":
            raise
        raise _missing("Keras") from error
    if keras.config.backend() != "tensorflow":
        raise _wrong_backend(keras.config.backend())
    version = tuple(int(number) for number in keras.__version__.split(".")[:2])
    if version < _OLDEST_KERAS:
        raise ImportError(
            f"fastdrop_keras needs Keras {'.'.join(map(str, _OLDEST_KERAS))} or newer, and this is "
            f'Keras {keras.__version__}. Update it with: pip install --upgrade "fastdrop[keras]"'
        )


def _missing(package: str) -> ImportError:
    return ImportError(
        f"fastdrop_keras needs TensorFlow and Keras, but {package} is not installed. "
        'Install both with: pip install "fastdrop[keras]"'
    )


def _wrong_backend(backend: str) -> ImportError:
    return ImportError(
        "fastdrop_keras supports only Keras's TensorFlow backend, but Keras is set to use "
        f"{backend!r}. Set the environment variable KERAS_BACKEND=tensorflow before Keras is "
        'imported, or "backend": "tensorflow" in ~/.keras/keras.json. '
        "With another backend, use keras.layers.Dropout."
    )
