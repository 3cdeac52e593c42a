"""The programs that race.py times beside functrain, one a module; each is handed the same file (see `given`)."""

MODULES = {
    "functrain": "functrain_peer",
    "torch-eager": "torch_peer",
    "torch-compile": "torch_peer",
    "lightning": "lightning_peer",
    "keras": "keras_peer",
    "jax": "jax_peer",
}
"""Peer -> its module here."""
PACKAGES = {
    "functrain": ("functrain", "jax"),
    "torch-eager": ("torch",),
    "torch-compile": ("torch",),
    "lightning": ("lightning", "torch"),
    "keras": ("keras", "jax"),
    "jax": ("jax", "optax"),
}
"""Peer -> what must be installed for it; the first of them is it itself."""
