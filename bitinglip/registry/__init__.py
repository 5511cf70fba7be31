"""Models: where their files are, and whether they may be used.

    folder    one model folder: what it is, and why it is refused
    locate    a model's name to its folder

Invariant: nothing runs that came with a model. Weights are safetensors, a folder with `auto_map` or pickled weights is
refused, and a safetensors file is only believed if its header and its length agree.
"""
