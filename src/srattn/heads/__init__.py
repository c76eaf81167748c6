"""Heads: from feature maps, a list of (B, C, H, W) finest first, to answers. They know channels and no backbone."""

from srattn.heads.glpn import GLPNHead as GLPNHead
from srattn.heads.segformer import SegFormerHead as SegFormerHead
