"""Data parallelism: one mesh over the local devices, the batch cut along its first axis, the state on each."""

from functrain.parallel.mesh import batch_placer, device_mesh, replicate

__all__ = ["batch_placer", "device_mesh", "replicate"]
