"""Whether somebody wants to see a module called."""

import torch
from torch import nn


def is_listened_to(module: nn.Module) -> bool:
    """Whether a hook, of the module or of all modules, would miss a call that goes round it."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own or torch.nn.modules.module._has_any_global_hook())
