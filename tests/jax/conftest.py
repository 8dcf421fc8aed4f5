"""Gives JAX four devices for all of its tests."""

import jax

# Before JAX is used, since it then keeps its devices.
jax.config.update("jax_num_cpu_devices", 4)
