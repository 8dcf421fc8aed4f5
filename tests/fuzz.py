"""Fuzzes pickles, states, configurations and files, guided by coverage.

``python tests/fuzz.py`` runs every target for a minute, each in its own process with limits of
memory and time. Arguments choose targets, ``--seconds`` the time. It needs atheris, and clang to
build the compiled modules with AddressSanitizer and coverage counters into ``build/fuzz``. A target
must raise a TypeError or a ValueError, or return what the state defines. Anything else is a crash,
whose input is saved in ``build/fuzz/crashes``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "fuzz"
REFUSED = (TypeError, ValueError)
SMALL = 2**20  # bits that are checked one by one

# Values at which arithmetic on sizes, offsets and steps could overflow.
EDGES = [0, 1, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097]
EDGES += [2**k + d for k in (31, 32, 40, 61, 62, 63, 64, 128) for d in (-1, 0, 1)]


class Source:
    """Makes values of all kinds from a fuzzer's bytes."""

    def __init__(self, data: bytes) -> None:
        import atheris

        self.bytes = atheris.FuzzedDataProvider(data)

    def chance(self, one_in: int) -> bool:
        return self.bytes.ConsumeIntInRange(1, one_in) == 1

    def pick(self, values: list[Any]) -> Any:
        return values[self.bytes.ConsumeIntInRange(0, len(values) - 1)]

    def integer(self) -> int:
        if self.chance(2):
            return self.bytes.ConsumeIntInRange(0, 70)
        return self.pick([1, 1, 1, -1]) * self.pick(EDGES)

    def number(self) -> float:
        return self.pick([0.0, 0.2, 0.5, 1.0, self.bytes.ConsumeFloat(), float("nan")])

    def shape(self) -> Any:
        return tuple(self.integer() for _ in range(self.bytes.ConsumeIntInRange(0, 4)))

    def anything(self) -> Any:
        kind = self.bytes.ConsumeIntInRange(0, 9)
        if kind == 0:
            return None
        if kind == 1:
            return self.bytes.ConsumeBytes(self.bytes.ConsumeIntInRange(0, 64))
        if kind == 2:
            return self.bytes.ConsumeUnicodeNoSurrogates(8)
        if kind == 3:
            return [self.anything() for _ in range(self.bytes.ConsumeIntInRange(0, 3))]
        if kind == 4:
            return {"seed": self.anything()}
        if kind == 5:
            return self.chance(2)
        if kind == 6:
            return np.zeros(self.bytes.ConsumeIntInRange(0, 3), self.pick(["f4", "u1", "i8", "O"]))
        return self.pick([self.integer, self.number, self.shape])()


# ---- Targets ----


def check_mask(mask: Any, stored: bytes | None) -> None:
    """Check that a mask's bits and results are as defined."""
    import reference

    import fastdrop

    assert type(mask) is fastdrop.Mask
    size = 1
    for entry in mask.noise_shape:
        size *= entry
    assert mask.size == size
    assert pickle.loads(pickle.dumps(mask)).shape == mask.shape
    repr(mask)
    elements = 1
    for entry in mask.shape:
        elements *= entry
    if max(elements, size) > SMALL:
        return
    if stored is not None:
        flat = np.unpackbits(np.frombuffer(stored, np.uint8), count=size, bitorder="little")
        kept = flat.astype(bool)
    else:
        offset = mask.__reduce__()[1][0]["offset"]
        kept = reference.keep_mask(mask.seed, mask.step, mask.rate, size, offset)
    assert mask.count() == kept.sum()
    kept = np.broadcast_to(kept.reshape(mask.noise_shape), mask.shape)
    assert np.array_equal(mask.unpack(), kept)
    try:
        x = np.ones(mask.shape, np.float32)
    except ValueError:
        # A shape with a zero and with sizes that only a packed mask can have.
        assert elements == 0
        return
    reference.assert_same_bits(mask.apply(x), reference.dropout(x, kept, mask.scale))


def mask_state(data: bytes) -> None:
    """The parts of a pickled mask, in any combination."""
    from fastdrop import _pickle

    source = Source(data)
    shape = source.shape()
    noise = tuple(source.pick([1, size]) for size in shape)
    state = {
        "shape": shape,
        "noise_shape": noise,
        "rate": source.number(),
        "scale": source.number(),
        "seed": source.integer(),
        "step": source.integer(),
        "offset": source.pick([0, source.integer()]),
        "bits": None,
        "stream": source.pick([2, source.integer()]),
    }
    if source.chance(2):
        state["bits"] = source.bytes.ConsumeBytes(source.bytes.ConsumeIntInRange(0, 64))
        state["seed"] = source.pick([None, state["seed"]])
    for key in list(state):
        if source.chance(12):
            state[key] = source.anything()
    if source.chance(20):
        del state[source.pick(list(state))]
    try:
        mask = _pickle._mask(state)
    except REFUSED:
        return
    check_mask(mask, state["bits"])


class OursOnly(pickle.Unpickler):
    """Loads masks and streams, and refuses other names in a pickle."""

    def find_class(self, module: str, name: str) -> Any:
        # A crafted pickle may call anything, which is not a fault of these modules.
        if module in ("fastdrop._pickle", "fastdrop._memory") and "." not in name:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(name)


def pickled(data: bytes) -> None:
    """The bytes of a pickle."""
    import fastdrop

    try:
        loaded = OursOnly(io.BytesIO(data)).load()
    except Exception as error:
        # The unpickler raises errors of every kind for bytes that are not a pickle.
        if not isinstance(error, REFUSED) and files_of(error)[-1].endswith(".pyx"):
            raise
        return
    if isinstance(loaded, fastdrop.Mask):
        check_mask(loaded, None if loaded.bits is None else loaded.bits.tobytes())
    elif isinstance(loaded, fastdrop.Stream):
        assert 0 <= loaded.seed < 2**128
        assert 0 <= loaded.step <= 2**64


def stream_state(data: bytes) -> None:
    """The state of a stream."""
    import reference

    import fastdrop

    source = Source(data)
    state = {"seed": source.integer(), "step": source.integer()}
    for key in list(state):
        if source.chance(6):
            state[key] = source.anything()
    given: Any = state if not source.chance(10) else source.anything()
    stream = fastdrop.Stream(3)
    try:
        stream.state = given
    except REFUSED:
        assert stream.state == {"seed": 3, "step": 0}
        return
    assert stream.state == given
    if given["step"] == 2**64:
        try:
            fastdrop.draw_mask(100, 0.5, seed=stream)
        except OverflowError:
            return
        raise AssertionError("a stream without steps has drawn")
    kept = fastdrop.draw_mask(100, 0.5, seed=stream).unpack()
    assert np.array_equal(kept, reference.keep_mask(given["seed"], given["step"], 0.5, 100))
    assert stream.step == given["step"] + 1


def packing(data: bytes) -> None:
    """Bools of any bytes and strides, packed."""
    import fastdrop

    source = Source(data)
    rate, scale = source.pick([None, source.number()]), source.number()
    memory = np.frombuffer(source.bytes.ConsumeBytes(512), np.uint8).copy()
    steps = [source.pick([-3, -1, 1, 2, 5]) for _ in range(2)]
    columns = source.bytes.ConsumeIntInRange(1, 40)
    rows = memory.size // columns
    kept = memory[: rows * columns].reshape(rows, columns)[:: steps[0], :: steps[1]]
    # A bool is a byte, and in a foreign buffer it may have any value.
    kept = source.pick([kept, kept.T]).view(source.pick([bool, bool, bool, np.uint8]))
    try:
        mask = fastdrop.Mask.pack(kept, rate=rate, scale=scale)
    except REFUSED:
        return
    check_mask(mask, np.packbits(kept, bitorder="little").tobytes())


def files_of(error: BaseException) -> list[str]:
    """The files of an error's traceback; the last one raised it."""
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]


def our_fault(error: BaseException) -> bool:
    """Whether an error that is not documented comes from this library and not from Keras."""
    return "fastdrop" in Path(files_of(error)[-1]).parent.name


def use_layer(layer: Any) -> None:
    """Check that a layer works or refuses its inputs."""
    import tensorflow as tf

    assert 0 <= layer.rate <= 1
    try:
        y = layer(tf.ones((2, 3, 4)), training=True)
    except (*REFUSED, tf.errors.InvalidArgumentError):
        return
    assert y.shape == (2, 3, 4)


def layer_config(data: bytes) -> None:
    """The config of a layer."""
    import keras

    import fastdrop_keras

    source = Source(data)
    names = ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"]
    layer_class = getattr(fastdrop_keras, source.pick(names))
    config = layer_class(0.5).get_config()
    config["rate"] = source.number()
    for key in list(config):
        if source.chance(5):
            config[key] = source.anything()
        elif source.chance(20):
            del config[key]
    try:
        if source.chance(2):
            layer = layer_class.from_config(config)
        else:
            layer = keras.saving.deserialize_keras_object(
                {
                    "class_name": layer_class.__name__,
                    "config": config,
                    "module": "fastdrop_keras.layers",
                    "registered_name": f"fastdrop>{layer_class.__name__}",
                }
            )
    except REFUSED:
        return
    except Exception as error:
        if our_fault(error):
            raise
        return
    if isinstance(layer, layer_class):
        use_layer(layer)


_saved: dict[str, bytes] = {}


def saved_model() -> dict[str, bytes]:
    """The members of a `.keras` archive with a dropout layer."""
    import keras

    import fastdrop_keras

    if not _saved:
        layers = [keras.Input((3, 4)), fastdrop_keras.Dropout(0.5, seed=1)]
        model = keras.Sequential([*layers, keras.layers.Dense(2)])
        BUILD.mkdir(parents=True, exist_ok=True)
        path = BUILD / "model.keras"
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            _saved.update({name: archive.read(name) for name in archive.namelist()})
    return _saved


def model_file(data: bytes) -> None:
    """A `.keras` archive with other text in its config and other seeds in its weights."""
    import h5py
    import keras

    import fastdrop_keras

    source = Source(data)
    members = dict(saved_model())
    config = json.loads(members["config.json"])
    (dropout,) = (c for c in config["config"]["layers"] if c["class_name"] == "Dropout")
    for key in list(dropout["config"]):
        if source.chance(6):
            dropout["config"][key] = source.anything()
    text = bytearray(json.dumps(config, default=repr).encode())
    for _ in range(source.bytes.ConsumeIntInRange(0, 3)):
        text[source.bytes.ConsumeIntInRange(0, len(text) - 1)] = source.bytes.ConsumeIntInRange(
            0, 255
        )
    members["config.json"] = bytes(text)
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        places: list[str] = []
        file.visit(lambda name: places.append(name) if name.endswith("vars/state") else None)
        for place in places:
            if source.chance(2):
                del file[place]
                if source.chance(2):
                    shape = source.pick([(), (0,), (1,), (2,), (3,), (1, 2), (2, 2)])
                    file[place] = np.full(shape, 2, source.pick(["i8", "u1", "f4", "f8", "S3"]))
    members["model.weights.h5"] = weights.getvalue()
    path = BUILD / f"mutated-{os.getpid()}.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    try:
        model = keras.saving.load_model(path)
    except REFUSED:
        return
    except Exception as error:
        if our_fault(error):
            raise
        return
    for layer in getattr(model, "layers", []):
        if isinstance(layer, fastdrop_keras.Dropout):
            use_layer(layer)


def pickle_seeds() -> list[bytes]:
    import fastdrop

    masks = [
        fastdrop.draw_mask((5, 7), 0.5, seed=1),
        fastdrop.draw_mask((5, 7), 0.2, seed=2**90, noise_shape=(None, 1), store_mask=False),
        fastdrop.draw_mask(100, 0.2, seed=2, offset=4097, store_mask=False),
        fastdrop.Mask.pack(np.arange(35).reshape(5, 7) % 3 == 0, rate=0.5),
    ]
    return [pickle.dumps(thing, p) for thing in [*masks, fastdrop.Stream(7)] for p in (0, 2, 5)]


def no_seeds() -> list[bytes]:
    return [bytes(200), bytes(range(200)), b"\xff" * 200]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "mask_state": (mask_state, no_seeds),
    "pickled": (pickled, pickle_seeds),
    "stream_state": (stream_state, no_seeds),
    "packing": (packing, no_seeds),
    "layer_config": (layer_config, no_seeds),
    "model_file": (model_file, no_seeds),
}
# Targets with TensorFlow, which is not built for AddressSanitizer; coverage follows our Python.
KERAS_TARGETS = ("layer_config", "model_file")


# ---- Running ----


def build() -> None:
    """Build the compiled modules for the fuzzer, with a copy of the package's Python files."""
    instrument = "-fsanitize=address,fuzzer-no-link -g -fno-omit-frame-pointer"
    environment = os.environ | {"CC": "clang", "LDSHARED": "clang -shared", "CFLAGS": instrument}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(BUILD / "lib")]
    command += ["--build-temp", str(BUILD / "temp")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    for path in (ROOT / "fastdrop").rglob("*.py"):
        shutil.copy(path, BUILD / "lib" / path.relative_to(ROOT))


def fuzz(target: str, seconds: int) -> int:
    """Run one target in its own process."""
    import atheris

    corpus, crashes = BUILD / "corpus" / target, BUILD / "crashes"
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    paths = [str(ROOT / "tests"), str(ROOT)]
    if target not in KERAS_TARGETS:
        paths.insert(0, str(BUILD / "lib"))
        sanitizer = Path(atheris.__file__).parent.parent / "asan_with_fuzzer.so"
        environment["LD_PRELOAD"] = str(sanitizer)
        # Python frees little at exit. Too large allocations raise MemoryError, as without the tool.
        environment["ASAN_OPTIONS"] = (
            "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=512"
        )
    environment["PYTHONPATH"] = os.pathsep.join([*paths, environment.get("PYTHONPATH", "")])
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    command = [sys.executable, __file__, "--inside", target, str(corpus)]
    command += [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=4096"]
    command += [f"-artifact_prefix={crashes}{os.sep}{target}-", "-print_final_stats=1"]
    return subprocess.run(command, cwd=BUILD, env=environment).returncode


def inside(target: str, arguments: list[str]) -> None:
    """Run in the process of a target."""
    import atheris

    function, seeds = TARGETS[target]
    if target in KERAS_TARGETS:
        with atheris.instrument_imports(include=["fastdrop_keras"]):
            import fastdrop_keras  # noqa: F401 - so that it is followed
    import fastdrop

    fastdrop.set_num_threads(1)
    for index, seed in enumerate(seeds()):
        Path(arguments[0], f"seed-{index}").write_bytes(seed)
    atheris.Setup([__file__, *arguments], function)
    atheris.Fuzz()


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="all without one")
    options = parser.parse_args()
    if shutil.which("clang") is None:
        print("fuzzing needs clang: apt-get install clang libclang-rt-14-dev", file=sys.stderr)
        return 1
    build()
    failed = [name for name in options.targets or TARGETS if fuzz(name, options.seconds) != 0]
    print(f"crashed: {', '.join(failed)}" if failed else "no target crashed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
