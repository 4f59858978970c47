"""Triton kernels, importable as elva.kernels. Importing a module of this package needs triton; elva.ops does so late."""
