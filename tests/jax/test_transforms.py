"""Under JAX's transformations, each mask is the right one, and derivatives have it too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from fastdrop_jax import dropout

KEY = jax.random.key(11)
KEYS = jax.random.split(KEY, 4)


def numbers(*shape):
    return jnp.asarray(np.random.default_rng(2).standard_normal(shape), "float32")


def test_derivatives_of_every_order():
    """The function is linear in each element, so its cube has these derivatives."""
    x = numbers(300)
    kept = np.asarray(dropout(KEY, jnp.ones(300), 0.4))

    def cubes(x):
        return (dropout(KEY, x, 0.4) ** 3).sum()

    first, second = 3 * kept**3 * x**2, 6 * kept**3 * x
    assert jnp.allclose(jax.grad(cubes)(x), first, rtol=1e-5)
    assert jnp.allclose(jnp.diag(jax.hessian(cubes)(x)), second, rtol=1e-5)
    assert jnp.allclose(jax.jvp(jax.grad(cubes), (x,), (x,))[1], second * x, rtol=1e-5)
    assert jnp.allclose(
        jnp.diag(jax.jacfwd(jax.jacrev(jax.grad(cubes)))(x)[0])[0], second[0] / x[0]
    )


def test_check_grads():
    check_grads(lambda x: jnp.sin(dropout(KEY, x, 0.4)), (numbers(50),), order=2, atol=0.1)


def test_linear_transforms():
    x = numbers(300)
    y = dropout(KEY, x, 0.4)
    drop = functools.partial(dropout, KEY, rate=0.4)
    assert (jax.linear_transpose(drop, x)(x)[0] == y).all()
    assert (jax.linearize(drop, x)[1](x) == y).all()


def test_the_derivative_for_the_rate_is_zero():
    slope = jax.grad(lambda rate: dropout(KEY, numbers(300), rate).sum())(0.4)
    assert slope == 0


def test_nothing_is_kept_for_the_gradient():
    x = numbers(300)
    _, backward = jax.vjp(lambda x: dropout(KEY, x, 0.4), x)
    assert max(np.size(kept) for kept in jax.tree.leaves(backward)) <= 8


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.everything_saveable])
def test_a_checkpointed_function_repeats_its_mask(policy):
    x = numbers(300)

    def block(x):
        return jnp.sin(dropout(KEY, jnp.sin(x), 0.4)).sum()

    factors = dropout(KEY, jnp.ones(300), 0.4)
    right = jnp.cos(factors * jnp.sin(x)) * factors * jnp.cos(x)
    slope = jax.grad(jax.checkpoint(block, policy=policy))
    assert jnp.allclose(slope(x), right, atol=1e-6)
    assert jnp.allclose(jax.jit(slope)(x), right, atol=1e-6)


def test_a_scanned_function_draws_a_mask_for_each_key():
    x = numbers(300)
    keys = jax.random.split(KEY, 5)

    def run(x):
        return lax.scan(lambda x, key: (dropout(key, x, 0.1), x), x, keys)[0]

    right = x
    for key in keys:
        right = dropout(key, right, 0.1)
    assert (jax.jit(run)(x) == right).all()
    assert jnp.allclose(jax.grad(lambda x: run(x) @ x)(x), 2 * right)


def test_loops_and_conditions():
    x = numbers(300)
    once = dropout(KEY, x, 0.1)
    branch = jax.jit(lambda on: lax.cond(on, lambda: dropout(KEY, x, 0.1), lambda: x))
    assert (branch(True) == once).all()
    assert (branch(False) == x).all()
    twice = lax.fori_loop(0, 2, lambda _, x: dropout(KEY, x, 0.1), x)
    assert (twice == dropout(KEY, once, 0.1)).all()


VMAPS = {
    "keys and inputs": ((0, 0, None), (4, 3, 7)),
    "inputs": ((None, 0, None), (4, 3, 7)),
    "the inputs' last dimension": ((None, -1, None), (3, 7, 4)),
    "keys": ((0, None, None), (3, 7)),
    "rates": ((None, None, 0), (3, 7)),
    "inputs and rates": ((None, 0, 0), (4, 3, 7)),
    "everything": ((0, 1, 0), (3, 4, 7)),
}


@pytest.mark.parametrize("case", VMAPS)
@pytest.mark.parametrize("broadcast_dims", [(), (0,)])
@pytest.mark.parametrize("differentiate", [False, True])
def test_vmap_is_a_loop(case, broadcast_dims, differentiate):
    axes, shape = VMAPS[case]
    arrays = (KEYS if axes[0] == 0 else KEY, numbers(*shape), jnp.array([0.1, 0.3, 0.5, 0.9]))
    arrays = arrays if axes[2] == 0 else (*arrays[:2], 0.3)

    def call(key, x, rate):
        return (dropout(key, x, rate, broadcast_dims=broadcast_dims) ** 2).sum()

    if differentiate:
        call = jax.grad(call, argnums=1)
    found = jax.jit(jax.vmap(call, in_axes=axes))(*arrays)
    for i in range(4):
        one = [
            array if axis is None else jnp.moveaxis(array, axis, 0)[i]
            for array, axis in zip(arrays, axes, strict=True)
        ]
        assert jnp.allclose(found[i], call(*one))


def test_nested_vmaps():
    x = numbers(5, 4, 30)
    # The outer loop is over inputs, the inner over keys and inputs.
    inner = jax.vmap(lambda key, x: dropout(key, x, 0.4))
    y = jax.vmap(inner, in_axes=(None, 0))(KEYS, x)
    z = jax.vmap(inner, in_axes=(None, 1))(KEYS, jnp.moveaxis(x, 0, 1))
    for i in range(5):
        for j in range(4):
            right = dropout(KEYS[j], x[i, j], 0.4)
            assert (y[i, j] == right).all()
            assert (z[i, j] == right).all()


def test_abstract_shapes():
    shape = jax.eval_shape(lambda x: dropout(KEY, x, 0.4), jax.ShapeDtypeStruct((3, 4), "bfloat16"))
    assert (shape.shape, shape.dtype) == ((3, 4), jnp.bfloat16)


EXPORTABLE = [jax.export.DisabledSafetyCheck.custom_call("fastdrop_dropout")]


def test_export_and_back():
    drop = jax.jit(lambda key, x: dropout(key, x, 0.4))
    x = numbers(6, 4)
    (batch,) = jax.export.symbolic_shape("batch")
    types = [
        jax.ShapeDtypeStruct(KEY.shape, KEY.dtype),
        jax.ShapeDtypeStruct((batch, 4), jnp.float32),
    ]
    exported = jax.export.export(drop, disabled_checks=EXPORTABLE)(*types)
    loaded = jax.export.deserialize(exported.serialize())
    assert (loaded.call(KEY, x) == drop(KEY, x)).all()


def test_export_of_vmap_and_of_a_noise_shape():
    (batch,) = jax.export.symbolic_shape("batch")
    keys = jax.ShapeDtypeStruct((batch,), KEY.dtype)
    inputs = jax.ShapeDtypeStruct((batch, 4), jnp.float32)
    x = numbers(4, 4)
    drop = jax.jit(jax.vmap(lambda key, x: dropout(key, x, 0.4)))
    exported = jax.export.export(drop, disabled_checks=EXPORTABLE)(keys, inputs)
    assert (exported.call(KEYS, x) == drop(KEYS, x)).all()
    drop = jax.jit(jax.vmap(lambda key: dropout(key, x, 0.4)))
    exported = jax.export.export(drop, disabled_checks=EXPORTABLE)(keys)
    assert (exported.call(KEYS) == drop(KEYS)).all()
    drop = jax.jit(lambda x: dropout(KEY, x, 0.4, noise_shape=(x.shape[0], 1)))
    exported = jax.export.export(drop, disabled_checks=EXPORTABLE)(inputs)
    assert (exported.call(x) == drop(x)).all()


def test_a_program_of_another_stream_is_refused():
    """A call that a fastdrop with stream 3 would have exported."""

    @jax.jit
    def drop(x):
        with jax.enable_x64(True):
            words, entries = jnp.zeros(3, jnp.int64), jnp.full(1, -1, jnp.int64)
            call = jax.ffi.ffi_call("fastdrop_dropout", x)
            return call(x, words, entries, stream=np.int64(3))

    with pytest.raises(jax.errors.JaxRuntimeError, match=r"random stream 3, .* draws stream 2"):
        drop(numbers(6))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_other_devices_use_jax_alone(platform):
    """And no 64-bit types, which TPUs lack."""
    program = jax.jit(lambda key, x, rate: dropout(key, dropout(key, x, 0.4), rate))
    exported = jax.export.export(program, platforms=[platform])(KEY, numbers(6), 0.3)
    assert "custom_call" not in exported.mlir_module()
    assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_jax_drops_the_fraction_on_other_devices(impl):
    """The function that such a program calls, here on the CPU."""
    from fastdrop_jax import functional, operation

    drop = functools.partial(operation._draw_by_jax, kind="dropout")
    x = jnp.ones((200, 500)).at[0].set(jnp.nan)
    keys = [jax.random.key(seed, impl=impl) for seed in (1, 2)]
    words = [functional.words_of(key, jnp.float32(0.25)) for key in keys]
    y, z = (drop(x, one, noise_shape=(None, None)) for one in words)
    assert abs((y[1:] == 0).mean() - 0.25) < 0.01
    assert jnp.allclose(y[1:].max(), 1 / 0.75)
    assert (y != z).mean() > 0.3
    assert not jnp.isnan(y[0]).all()
    shared = drop(x[1:], words[0], noise_shape=(1, None))
    assert (shared == shared[0]).all()
    both = drop(x[1:3], jnp.stack(words), noise_shape=(None,))
    assert (both[0] != both[1]).any()
    zero = functional.words_of(keys[0], jnp.float32(1.0))
    assert (drop(x, zero, noise_shape=(None, None)) == 0).all()
