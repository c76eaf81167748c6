"""GPU kernels in Triton: attention over few keys, the depthwise convolution, batch and layer norms for training.

    attention.py    the operator `srattn::attend`: forward, gradients, fake; its definition beside it
    depthwise.py    the operator `srattn::depthwise`, likewise; batch_norm.py and layer_norm.py, too
    *_kernels.py    the kernels
    choices.py      which kernel and block sizes for a shape, with the reason; strips.py, the same of the convolution;
                    cache.py keeps what was tuned
    ahead.py        compiles launches for a GPU that need not be there
    language.py     Triton where it is installed; without it every module here still imports

On a CPU the operators compute their definition, unless TRITON_INTERPRET=1 was set before the first import: then
Triton's interpreter runs the kernels themselves, slowly.
"""
