"""Losses of semantic segmentation: functions of logits (B, K, h, w) and a target (B, H, W), each a scalar.

All of them compute in float32 (in float64 if the logits are), bring coarser logits to the target's grid, count no pixel
whose target is `ignore_index`, and give 0 with a zero gradient where nothing is left.
"""

from srattn.tasks.losses.boundary import boundary as boundary
from srattn.tasks.losses.common import VOID as VOID
from srattn.tasks.losses.grammar import Loss as Loss
from srattn.tasks.losses.grammar import list_losses as list_losses
from srattn.tasks.losses.grammar import parse_loss as parse_loss
from srattn.tasks.losses.pixels import cross_entropy as cross_entropy
from srattn.tasks.losses.pixels import focal as focal
from srattn.tasks.losses.regions import dice as dice
from srattn.tasks.losses.regions import lovasz as lovasz
from srattn.tasks.losses.structure import structure as structure
