"""Backbones built on Spatial-Reduction Attention, a file a family, and the registry that builds them by name."""

from srattn.models.registry import build_model as build_model
from srattn.models.registry import list_models as list_models
from srattn.models.registry import register_model as register_model
