"""Who reads the model."""

import torch


def is_exporting() -> bool:
    """Whether torch.export does, as `torch.compiler.is_exporting` says it.

    Read from its flag: within torch.compile that function answers yes in torch 2.11, and graphs would be those for
    export, without kernels and for any size.
    """
    return torch.compiler._is_exporting_flag
