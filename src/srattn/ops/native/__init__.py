"""Kernels for CPUs, written in C++ and compiled for the machine at first use: float32, or bfloat16 in the products."""

from srattn.ops.native.build import Operand as Operand
from srattn.ops.native.build import processor_flags as processor_flags
from srattn.ops.native.calls import AttentionHalf as AttentionHalf
from srattn.ops.native.calls import AttentionKernel as AttentionKernel
from srattn.ops.native.calls import BlocksKernel as BlocksKernel
from srattn.ops.native.calls import FeedForwardKernel as FeedForwardKernel
from srattn.ops.native.calls import Linear as Linear
from srattn.ops.native.calls import NormWeights as NormWeights
from srattn.ops.native.calls import PatchKernel as PatchKernel
from srattn.ops.native.calls import absorbs as absorbs
from srattn.ops.native.calls import attention_macs as attention_macs
from srattn.ops.native.calls import feed_forward_cut as feed_forward_cut
from srattn.ops.native.calls import lanes as lanes
from srattn.ops.native.calls import takes_pairs as takes_pairs
from srattn.ops.native.convolved import ConvolvedKernel as ConvolvedKernel
from srattn.ops.native.convolved import Way as Way
from srattn.ops.native.convolved import keys_at_once as keys_at_once
from srattn.ops.native.library import Sample as Sample
from srattn.ops.native.library import available as available
from srattn.ops.native.library import has_matrix_units as has_matrix_units
from srattn.ops.native.library import why_not as why_not
