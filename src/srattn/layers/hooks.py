"""Whether somebody wants to see a module called, or has put another in its place."""

import torch
from torch import nn


def is_listened_to(module: nn.Module) -> bool:
    """Whether a hook, of the module or of all modules, would miss a call that goes round it."""
    own = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(own or torch.nn.modules.module._has_any_global_hook())


def is_linear(module: nn.Module) -> bool:
    """Whether a linear map is what its weight and bias say, so that nobody misses its call.

    One with a parametrisation is; a layer of adapters, a quantised one, or one that a hook prunes or normalises is not.
    """
    return type(module).forward is nn.Linear.forward and "forward" not in vars(module) and not is_listened_to(module)
