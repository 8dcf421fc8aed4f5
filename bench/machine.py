"""Describes what a run ran on: without it, figures mean nothing."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import fastdrop

PACKAGES = ("numpy", "tensorflow", "keras", "torch", "jax")


def processor() -> str:
    """The processor's name, as its maker gives it where that can be read."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def describe() -> dict[str, str]:
    """Everything that the figures depend on, as text."""
    description = {
        "processor": f"{os.cpu_count()} x {processor()}",
        **fastdrop._config.description(),
    }
    for package in PACKAGES:
        try:
            description[package] = version(package)
        except PackageNotFoundError:
            description[package] = "not installed"
    return description
