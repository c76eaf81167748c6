"""srattn: Spatial-Reduction Attention in PyTorch, and the backbones built on it.

Names load on first use, so that `import srattn` costs torch and nothing more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from srattn.version import __version__ as __version__

if TYPE_CHECKING:
    from srattn.convert import create_model as create_model
    from srattn.convert import load_checkpoint as load_checkpoint
    from srattn.convert import save_checkpoint as save_checkpoint
    from srattn.engine.hub import from_pretrained as from_pretrained
    from srattn.engine.hub import save_pretrained as save_pretrained
    from srattn.errors import SrattnError as SrattnError
    from srattn.layers.adapters import TokenAttention as TokenAttention
    from srattn.layers.attention import SpatialReductionAttention as SpatialReductionAttention
    from srattn.layers.batch_norm import convert_sync_batchnorm as convert_sync_batchnorm
    from srattn.models.features import FeatureInfo as FeatureInfo
    from srattn.models.plan import plan as plan
    from srattn.models.registry import list_models as list_models
    from srattn.models.registry import register_model as register_model
    from srattn.ops.plan import force_path as force_path
    from srattn.ops.switch import without_kernels as without_kernels

_HOME = {
    "FeatureInfo": "srattn.models.features",
    "SpatialReductionAttention": "srattn.layers.attention",
    "SrattnError": "srattn.errors",
    "TokenAttention": "srattn.layers.adapters",
    "convert_sync_batchnorm": "srattn.layers.batch_norm",
    "create_model": "srattn.convert",
    "force_path": "srattn.ops.plan",
    "from_pretrained": "srattn.engine.hub",
    "list_models": "srattn.models.registry",
    "load_checkpoint": "srattn.convert",
    "plan": "srattn.models.plan",
    "register_model": "srattn.models.registry",
    "save_checkpoint": "srattn.convert",
    "save_pretrained": "srattn.engine.hub",
    "without_kernels": "srattn.ops.switch",
}

__all__ = [
    "FeatureInfo",
    "SpatialReductionAttention",
    "SrattnError",
    "TokenAttention",
    "__version__",
    "convert_sync_batchnorm",
    "create_model",
    "force_path",
    "from_pretrained",
    "list_models",
    "load_checkpoint",
    "plan",
    "register_model",
    "save_checkpoint",
    "save_pretrained",
    "without_kernels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'srattn' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
