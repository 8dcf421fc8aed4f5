"""Converts a small GPT-2 of KerasHub to fastdrop's dropout, and fine-tunes it, byte by byte, on
texts that are shipped with Python: nothing is downloaded."""

import argparse
import os
from collections.abc import Sequence
from pydoc_data.topics import topics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np

import fastdrop_keras

LENGTH = 64  # bytes that the model reads


def load(text: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return pieces of the text as a causal model's inputs, and the byte after each byte."""
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    count = (len(codes) - 1) // LENGTH
    inputs, targets = (codes[i : i + count * LENGTH].reshape(-1, LENGTH) for i in (0, 1))
    return {"token_ids": inputs, "padding_mask": np.ones_like(inputs)}, targets


def train(
    model: keras.Model, inputs: dict[str, np.ndarray], targets: np.ndarray, epochs: int
) -> None:
    """Train the model to predict each next byte, in the order of the text."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, jit_compile=False)
    model.fit(inputs, targets, batch_size=16, epochs=epochs, shuffle=False, verbose=2)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 epochs: only to try it")
    epochs = 2 if parser.parse_args(arguments).quick else 10

    keras.utils.set_random_seed(1)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=256,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=256,
        dropout=0.1,
        max_sequence_length=LENGTH,
    )
    model = keras_hub.models.GPT2CausalLM(backbone)
    train(model, *load(topics["class"] + topics["function"]), epochs)  # in place of a preset

    model = fastdrop_keras.convert(model, in_place=True)  # says what it replaces
    inputs, targets = load(topics["operator-summary"] + topics["comparisons"])
    before, _ = model.evaluate(inputs, targets, verbose=0)
    train(model, inputs, targets, epochs)
    after, _ = model.evaluate(inputs, targets, verbose=0)
    print(f"nats a byte: {before:.2f} before the fine-tuning, {after:.2f} after it")


if __name__ == "__main__":
    main()
