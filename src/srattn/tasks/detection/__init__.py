"""Object detection: which place answers for which object, what is minimised, answers and measures.

Whole models are in `srattn.tasks.detection.model`, which alone needs the backbones.
"""

from srattn.tasks.detection.decode import Choice as Choice
from srattn.tasks.detection.task import Detection as Detection
