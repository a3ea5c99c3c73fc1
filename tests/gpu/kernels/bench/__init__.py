"""How fast the kernels are, on a GPU: each op beside torch, and the decode step of a whole language model.

`python -m tests.gpu.kernels --bench` runs it. sizes, calls, step and tables need numpy alone; the rest needs torch.
"""
