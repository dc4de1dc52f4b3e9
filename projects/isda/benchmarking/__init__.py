"""Parts that benchmarks share: clocks, memory, models with their inputs, and counting.

``timing``, ``memory`` and ``environment`` need PyTorch alone, for ``benchmarks/``.
"""
