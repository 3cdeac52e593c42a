"""Multi-head attention (Vaswani et al. 2017, eq. 1 and section 3.2.2), with grouped queries and a cache.

Shapes: q [batch, queries, heads, d], k and v [batch, keys, kv_heads, d]. With fewer kv_heads than heads, heads
h * (heads / kv_heads) and on share key head h (grouped queries, Ainslie et al. 2023).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from functrain.layers import forms, initializers, linear
from functrain.layers.dropout import apply as drop
from functrain.layers.positions import rotary


def init(
    key: jax.Array,
    features: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_features: int | None = None,
    context_features: int | None = None,
    bias: bool = True,
    kernel_init: str | initializers.Initializer = "lecun_normal",
    dtype: Any = float,
) -> dict[str, dict[str, jax.Array]]:
    """`{"query", "key", "value", "out"}`, each as of `linear.init`.

    The kernels are [features, heads * head_features], twice [context_features, kv_heads * head_features], and
    [heads * head_features, features].

    Args:
      kv_heads: heads of keys and values; None is `heads`. Must divide `heads`.
      head_features: None is features / heads.
      context_features: of the sequence attended to; None is `features`.

    Raises:
      ValueError: heads do not divide the features, or kv_heads the heads.

    >>> params = init(jax.random.key(0), 8, 4, kv_heads=2)
    >>> {name: part["kernel"].shape for name, part in sorted(params.items())}
    {'key': (8, 4), 'out': (8, 8), 'query': (8, 8), 'value': (8, 4)}
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if head_features is None and features % heads:
        raise ValueError(f"heads {heads} must divide features {features}, or head_features be given")
    if heads % kv_heads:
        raise ValueError(f"kv_heads {kv_heads} must divide heads {heads}")
    each = features // heads if head_features is None else head_features
    source = features if context_features is None else context_features
    ends = {
        "query": (features, heads * each),
        "key": (source, kv_heads * each),
        "value": (source, kv_heads * each),
        "out": (heads * each, features),
    }
    return {
        name: linear.init(k, n, m, bias=bias, kernel_init=kernel_init, dtype=dtype)
        for k, (name, (n, m)) in zip(jax.random.split(key, len(ends)), ends.items())
    }


def apply(
    params: dict[str, dict[str, jax.Array]],
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    heads: int,
    mask: jax.Array | None = None,
    causal: bool = False,
    positions: jax.Array | None = None,
    rotary_base: Any = 0.0,
    dropout: Any = 0.0,
    key: jax.Array | None = None,
    train: bool = False,
    cache: dict[str, jax.Array] | None = None,
    fast: bool | None = None,
) -> Any:
    """out(softmax(query(x) key(c)^T / sqrt(d)) value(c)), head by head; c is the context, or x itself.

    Args:
      x: [batch, queries, features].
      context: [batch, keys, context_features], for cross-attention; None attends to x.
      heads: of the queries; those of keys and values follow from the kernels.
      mask: boolean, broadcastable to [batch, heads, queries, keys], True where a query may see a key; see
        `padding_mask`. With a cache, keys are its slots.
      causal: query i sees keys 0 to i; with a cache, i counts from the first token that the cache was given.
      positions: [batch, queries] or [queries] integers for the rotary turn alone; None counts on from the cache.
      rotary_base: turns queries and keys (see `positions.rotary`) with this base; a Python 0 is off.
      dropout: share of the attention weights dropped in training, and its key.
      cache: as of `init_cache`. Keys and values of x are written after those in it, and x sees all of them.
      fast: whether to use `low_precision` rather than `dot_product`; None does so for bfloat16 where no weights are
        dropped, and for no other dtype.

    Returns:
      y [batch, queries, features]; (y, cache) where a cache is given. A query that may see nothing gets zeros (and
      the bias of "out") and passes no gradient, never nan. A token past the cache's end gets nan.

    Raises:
      ValueError: heads that do not fit the kernels, a mask that is not boolean, rotary or a cache with a context, more
        tokens than the cache can ever hold, or fast with dropout.

    >>> params = init(jax.random.key(0), 8, 2)
    >>> x = jax.random.normal(jax.random.key(1), (3, 5, 8))
    >>> whole = apply(params, x, heads=2, causal=True)
    >>> cache = init_cache(3, 5, 2, 4)
    >>> first, cache = apply(params, x[:, :3], heads=2, causal=True, cache=cache)
    >>> then, cache = apply(params, x[:, 3:], heads=2, causal=True, cache=cache)
    >>> whole.shape, bool(jnp.allclose(whole, jnp.concatenate([first, then], 1), atol=1e-5))
    ((3, 5, 8), True)
    """
    if context is not None and not (cache is None and _off(rotary_base)):
        raise ValueError("a cache and rotary positions are for self-attention: without a context")
    if params["query"]["kernel"].shape[-1] % heads:
        raise ValueError(f"heads {heads} must divide the query kernel's {params['query']['kernel'].shape[-1]} columns")
    source = x if context is None else context
    q = linear.apply(params["query"], x)
    q = q.reshape(*q.shape[:-1], heads, -1)
    k, v = (linear.apply(params[name], source) for name in ("key", "value"))
    k, v = (part.reshape(*part.shape[:-1], -1, q.shape[-1]) for part in (k, v))

    given = {"mask": mask, "causal": causal, "positions": positions, "rotary_base": rotary_base}
    y = attend(q, k, v, **given, dropout=dropout, key=key, train=train, cache=cache, fast=fast)
    y, cache = (y, None) if cache is None else y
    y = linear.apply(params["out"], y.reshape(*y.shape[:-2], -1))
    return y if cache is None else (y, cache)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    positions: jax.Array | None = None,
    rotary_base: Any = 0.0,
    dropout: Any = 0.0,
    key: jax.Array | None = None,
    train: bool = False,
    cache: dict[str, jax.Array] | None = None,
    fast: bool | None = None,
) -> Any:
    """What `apply` does between its projections: positions, cache, mask, softmax; for models that project otherwise.

    Args:
      q, k, v: [batch, queries, heads, d], [batch, keys, kv_heads, d], [batch, keys, kv_heads, d].
      others: those of `apply`.

    Returns:
      y [batch, queries, heads, d]; (y, cache) where a cache is given.

    >>> q = jax.random.normal(jax.random.key(0), (1, 3, 2, 4))
    >>> attend(q, q, q, causal=True, rotary_base=1e4).shape
    (1, 3, 2, 4)
    """
    if not _off(rotary_base):
        start = 0 if cache is None else cache["length"]
        at = start + jnp.arange(q.shape[1]) if positions is None else positions
        q, k = rotary(q, at, base=rotary_base), rotary(k, at, base=rotary_base)
    if cache is not None:
        cache, k, v, filled = _remember(cache, k, v, causal)
        mask, causal = filled if mask is None else filled & _boolean(mask), False

    rate = dropout if train else 0.0
    if fast is None:
        low = (jnp.bfloat16,) if forms.on_cpu() else (jnp.bfloat16, jnp.float16)  # not compiled for a CPU
        fast = q.dtype in low and _off(rate)
    if not fast:
        y = dot_product(q, k, v, mask=mask, causal=causal, dropout=rate, key=key)
    elif _off(rate):
        y = low_precision(q, k, v, mask=mask, causal=causal)
    else:
        raise ValueError("fast attention cannot drop weights; leave `fast` out, or set dropout to 0")
    if cache is None:
        return y
    # Past the cache's end the last slots were written over: nan rather than a wrong answer.
    return jnp.where(cache["length"] <= k.shape[1], y, jnp.nan), cache


def dot_product(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    scale: Any = None,
    dropout: Any = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T * scale) v for each head -> [batch, queries, heads, d], in any dtype.

    The softmax runs in at least float32; keys and values of grouped queries are not repeated in memory.

    Args:
      q, k, v: [batch, queries, heads, d], [batch, keys, kv_heads, d], [batch, keys, kv_heads, d of the result].
      mask: boolean, broadcastable to [batch, heads, queries, keys], True where a query may see a key.
      causal: query i sees keys 0 to i (counted from the start of both, as torch does); with a mask, both must allow.
      scale: None is 1 / sqrt(d).
      dropout: share of the weights dropped; needs the key unless it is a Python 0.

    Returns:
      In the dtype of q; zeros, with no gradient, for a query that may see nothing.

    Raises:
      ValueError: kv_heads do not divide the heads, a mask that is not boolean, dropout without a key.

    >>> q, k, v = jnp.zeros((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4)), jnp.array([[[[2.0]], [[4.0]]]])
    >>> dot_product(q, k, v, causal=True).ravel().tolist()
    [2.0, 3.0]
    """
    batch, queries, heads, features = q.shape
    keys, kv_heads = k.shape[1:3]
    _check_heads(heads, kv_heads)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    # Heads first, so that both products are plain batches of matrices: else the weights are what XLA transposes.
    q_heads = q.reshape(batch, queries, kv_heads, -1, features).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    logits = jnp.einsum("bhgqd,bhkd->bhgqk", q_heads, k, preferred_element_type=wide)
    logits = logits * jnp.asarray(features**-0.5 if scale is None else scale, wide)
    seen = _seen(mask, causal, queries, keys)
    if seen is not None:
        split = (1, 1) if seen.shape[1] == 1 else (kv_heads, heads // kv_heads)
        logits = jnp.where(seen.reshape(seen.shape[0], *split, *seen.shape[2:]), logits, jnp.finfo(wide).min)
    weights = jax.nn.softmax(logits, -1).astype(v.dtype)
    weights = drop(weights, 0.0 if _off(dropout) else dropout, key=key, train=True)
    y = jnp.einsum("bhgqk,bhkd->bhgqd", weights, v).transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, -1)
    return _blank(y, mask, seen).astype(q.dtype)


def low_precision(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    scale: Any = None,
) -> jax.Array:
    """`dot_product` by jax.nn.dot_product_attention, for bfloat16 (and float16, which it does not compile for a CPU).

    Its softmax is always in float32, so in float64 it errs by some 1e-7. Without a mask, on a GPU of NVIDIA's, it is
    cuDNN's fused attention (Dao et al. 2022), which holds no weights and has no forward-mode derivative: the form
    attention=plain has one (see `forms`). Arguments, result and errors are those of `dot_product`, but it drops no
    weights and v has the features of k.

    >>> q = jnp.zeros((1, 1, 1, 2), jnp.bfloat16)
    >>> low_precision(q, q, q + 1).dtype
    dtype(bfloat16)
    """
    _check_heads(q.shape[2], k.shape[2])
    if mask is None:
        way = "cudnn" if _by_cudnn(q, k, v) else None
        return jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=causal, implementation=way)
    seen = _seen(mask, causal, q.shape[1], k.shape[1])
    return _blank(jax.nn.dot_product_attention(q, k, v, mask=seen, scale=scale), mask, seen)


def padding_mask(keys: jax.Array, length: int | None = None) -> jax.Array:
    """A mask [batch, 1, 1, keys] for `apply`: True where a key is no padding.

    Args:
      keys: [batch, keys], nonzero where there is a token (torch's key_padding_mask, negated); or, with `length`, the
        number of tokens of each example, integers [batch].
      length: the number of keys.

    >>> padding_mask(jnp.array([1, 3]), 3)[:, 0, 0].tolist()
    [[True, False, False], [True, True, True]]
    """
    seen = keys != 0 if length is None else jnp.arange(length) < keys[:, None]
    if seen.ndim != 2:
        raise ValueError(f"keys {keys.shape} must be [batch, keys], or [batch] and the length be given")
    return seen[:, None, None, :]


def init_cache(batch: int, length: int, kv_heads: int, head_features: int, dtype: Any = float) -> dict[str, jax.Array]:
    """`{"key", "value": zeros [batch, length, kv_heads, head_features], "length": 0}`: room for `length` tokens.

    `cache["length"]` counts those in it. It is a plain tree: carry it through `lax.scan`, donate it.

    >>> {name: part.shape for name, part in sorted(init_cache(2, 9, 1, 4).items())}
    {'key': (2, 9, 1, 4), 'length': (), 'value': (2, 9, 1, 4)}
    """
    shape = (batch, length, kv_heads, head_features)
    return {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype), "length": jnp.zeros((), jnp.int32)}


def _by_cudnn(q, k, v):
    """Whether cuDNN computes it: where programs are for its GPUs, and it takes the arrays."""
    low, features = (jnp.bfloat16, jnp.float16), q.shape[-1]
    fits = q.dtype == k.dtype == v.dtype and q.dtype in low and features % 8 == 0 and features <= 128
    chosen = forms.form("attention", "cudnn" if fits and forms.on_cuda() else "plain") == "cudnn"
    if chosen and not forms.on_cuda():
        raise ValueError(f"attention=cudnn: it is of NVIDIA's GPUs; programs here are for {jax.default_backend()!r}")
    return chosen and fits


def _remember(cache, k, v, causal):
    """The cache with k and v written, all its keys and values, and which of its slots each query may see."""
    start, new, slots = cache["length"], k.shape[1], cache["key"].shape[1]
    if new > slots:
        raise ValueError(f"{new} tokens do not fit into a cache of {slots}")
    written = {
        name: lax.dynamic_update_slice_in_dim(cache[name], part.astype(cache[name].dtype), start, axis=1)
        for name, part in (("key", k), ("value", v))
    }
    last = start + (jnp.arange(new) if causal else jnp.full(new, new - 1))
    filled = (jnp.arange(slots) <= last[:, None])[None, None]
    cache = {**written, "length": start + new}
    return cache, written["key"].astype(k.dtype), written["value"].astype(v.dtype), filled


def _seen(mask, causal, queries, keys):
    """Mask and causality together, with four axes; None where every query sees every key."""
    seen = None
    if mask is not None:
        seen = _boolean(mask).reshape((1,) * (4 - mask.ndim) + mask.shape)
    if causal:
        before = (jnp.arange(keys) <= jnp.arange(queries)[:, None])[None, None]
        seen = before if seen is None else seen & before
    return seen


def _blank(y, mask, seen):
    """y with zeros for the queries that see nothing; causality alone leaves each one key."""
    return y if mask is None else jnp.where(jnp.swapaxes(seen.any(-1), 1, 2)[..., None], y, 0)


def _boolean(mask):
    if mask.dtype != jnp.bool_:
        raise ValueError(f"the mask must be boolean (True = may be seen), not {mask.dtype}")
    return mask


def _check_heads(heads, kv_heads):
    if heads % kv_heads:
        raise ValueError(f"the {kv_heads} heads of keys and values must divide the {heads} of queries")


def _off(rate):
    return isinstance(rate, (int, float)) and rate == 0
