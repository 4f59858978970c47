"""Triton kernels, importable as elva.kernels. Its modules import triton: elva.ops imports them on first use."""
