"""Heads: from feature maps, a list of (B, C, H, W) finest first, to answers. They know channels and no backbone."""

from srattn.heads.fpn import FPN as FPN
from srattn.heads.glpn import GLPNHead as GLPNHead
from srattn.heads.pose import HeatmapHead as HeatmapHead
from srattn.heads.pose import SimCCHead as SimCCHead
from srattn.heads.registry import head_options as head_options
from srattn.heads.registry import list_heads as list_heads
from srattn.heads.registry import make_head as make_head
from srattn.heads.segformer import SegFormerHead as SegFormerHead
from srattn.heads.semantic_fpn import SemanticFPNHead as SemanticFPNHead
from srattn.heads.unet import UNetHead as UNetHead
from srattn.heads.upernet import UPerNetHead as UPerNetHead
