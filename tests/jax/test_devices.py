"""On several devices, an array has one mask, whatever its distribution, and is not gathered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from fastdrop_jax import dropout

KEY = jax.random.key(3)
SPECS = [
    P("a"),
    P(None, "b"),
    P("a", "b"),
    P(("a", "b")),
    P(None, ("b", "a")),
    P("b", None, "a"),
    P(None, None, "b"),
    P(),
]


def mesh(kind):
    return jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind,) * 2)


def numbers(*shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(4).standard_normal(shape), dtype)


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=str)
def put(request):
    """Distribute an array over the devices."""
    return lambda x, spec: jax.device_put(x, NamedSharding(mesh(request.param), spec))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("broadcast_dims", [(), (1,), (0, 2)])
def test_the_mask_is_that_of_the_whole_array(put, spec, broadcast_dims):
    x = numbers(8, 12, 6)
    right = dropout(KEY, x, 0.3, broadcast_dims=broadcast_dims)
    found = put(x, spec)
    assert (dropout(KEY, found, 0.3, broadcast_dims=broadcast_dims) == right).all()

    def drop(x):
        return dropout(KEY, x * 2, 0.3, broadcast_dims=broadcast_dims) / 2

    program = jax.jit(drop)
    y = program(found)
    assert (y == right).all()
    assert y.sharding.is_equivalent_to(found.sharding, 3)
    assert "all-gather" not in program.lower(found).compile().as_text()


@pytest.mark.parametrize("spec", [P("a"), P(None, "b")], ids=str)
@pytest.mark.parametrize("shape", [(64, 5000), (4096, 66), (2, 100000), (130, 258)])
def test_large_arrays(put, spec, shape):
    """Rows from a part of a draw to many draws."""
    x = numbers(*shape, dtype="bfloat16")
    assert (dropout(KEY, put(x, spec), 0.3) == dropout(KEY, x, 0.3)).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradients(put, spec):
    x = numbers(8, 12, 6)
    gradient = jax.jit(jax.grad(lambda x: (dropout(KEY, x, 0.3) ** 2).sum()))
    assert jnp.allclose(gradient(put(x, spec)), gradient(x))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_vmap_over_keys(spec):
    x, keys = numbers(8, 12, 6), jax.random.split(KEY, 8)
    drop = jax.jit(jax.vmap(lambda key, x: dropout(key, x, 0.3)))
    put = jax.device_put(x, NamedSharding(mesh(AxisType.Auto), spec))
    assert (drop(keys, put) == drop(keys, x)).all()


def test_vmap_over_keys_of_an_explicit_mesh():
    put = jax.sharding.NamedSharding(mesh(AxisType.Explicit), P("a"))
    x, keys, rates = numbers(8, 12), jax.random.split(KEY, 8), jnp.linspace(0, 1, 8)
    drop = jax.vmap(dropout)
    with jax.set_mesh(put.mesh):
        found = drop(*(jax.device_put(array, put) for array in (keys, x, rates)))
    assert (found == drop(keys, x, rates)).all()


def test_gspmd():
    """JAX's former way to distribute arrays."""
    x = numbers(8, 12)
    found = jax.device_put(x, NamedSharding(mesh(AxisType.Auto), P("a", "b")))
    right = dropout(KEY, x, 0.3)
    before = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", False)
    try:
        program = jax.jit(lambda x: dropout(KEY, x * 2, 0.3) / 2)
        assert (program(found) == right).all()
        assert "all-gather" not in program.lower(found).compile().as_text()
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)


def test_programs_that_share_decisions_differ_in_the_cache():
    """The key of JAX's compilation cache has their text alone."""
    found = jax.device_put(numbers(8, 12), NamedSharding(mesh(AxisType.Auto), P("a")))
    texts = {
        jax.jit(lambda x, dims=dims: dropout(KEY, x, 0.3, broadcast_dims=dims))
        .lower(found)
        .as_text()
        .split("custom_call")[0]
        for dims in [(), (0,), (1,)]
    }
    assert len(texts) == 3


def test_a_dimension_that_does_not_divide():
    x = numbers(7, 5)
    constraint = NamedSharding(mesh(AxisType.Auto), P("a"))

    @jax.jit
    def drop(x):
        x = jax.lax.with_sharding_constraint(jnp.pad(x, ((0, 1), (0, 0))), constraint)
        return dropout(KEY, x[:7], 0.3)

    assert (drop(x) == dropout(KEY, x, 0.3)).all()


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_draws_a_mask_for_each_key(check_vma):
    """Each device is a call of its own: with one key all have one mask, as in JAX's functions."""
    x = numbers(8, 12)

    def same(x):
        return dropout(KEY, x, 0.3)

    def different(x):
        return dropout(jax.random.fold_in(KEY, jax.lax.axis_index("a")), x, 0.3)

    blocks = jnp.split(x, 2)
    keys = [jax.random.fold_in(KEY, i) for i in range(2)]
    for function, right in [
        (same, [dropout(KEY, block, 0.3) for block in blocks]),
        (different, [dropout(key, block, 0.3) for key, block in zip(keys, blocks, strict=True)]),
    ]:
        mapped = jax.shard_map(
            function,
            mesh=mesh(AxisType.Auto),
            in_specs=P("a"),
            out_specs=P("a"),
            check_vma=check_vma,
        )
        assert (mapped(x) == jnp.concatenate(right)).all()
        slope = jax.grad(lambda x, mapped=mapped: (mapped(x) ** 2).sum())(x)
        scale = jnp.where(jnp.concatenate(right) == 0, 0, 1 / 0.7)
        assert jnp.allclose(slope, 2 * scale**2 * x, rtol=1e-5)


def test_shard_map_of_an_input_that_all_devices_share():
    x = numbers(12)

    def drop(x):
        return dropout(jax.random.fold_in(KEY, jax.lax.axis_index("a")), x, 0.3)

    mapped = jax.shard_map(drop, mesh=mesh(AxisType.Auto), in_specs=P(), out_specs=P("a"))
    right = jnp.concatenate([dropout(jax.random.fold_in(KEY, i), x, 0.3) for i in range(2)])
    assert (mapped(x) == right).all()


def test_pmap():
    x, keys = numbers(4, 12), jax.random.split(KEY, 4)
    y = jax.pmap(lambda key, x: dropout(key, x, 0.3))(keys, x)
    assert (
        y == jnp.stack([dropout(key, row, 0.3) for key, row in zip(keys, x, strict=True)])
    ).all()


def test_training_on_two_devices_equals_training_on_one():
    inputs, targets = numbers(16, 10), numbers(16, 4)
    weights = numbers(10, 4)

    @jax.jit
    def train(weights, inputs, targets):
        def loss(weights, key):
            return ((dropout(key, inputs, 0.3) @ weights - targets) ** 2).mean()

        for key in jax.random.split(KEY, 5):
            weights = weights - 0.1 * jax.grad(loss)(weights, key)
        return weights

    shared = NamedSharding(mesh(AxisType.Auto), P("a"))
    found = train(weights, jax.device_put(inputs, shared), jax.device_put(targets, shared))
    assert jnp.allclose(found, train(weights, inputs, targets), rtol=1e-5, atol=1e-6)
