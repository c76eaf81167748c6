"""Object detection: which place answers for which object, what is minimised, answers, measures, models."""

from srattn.tasks.detection.decode import Choice as Choice
from srattn.tasks.detection.model import DetectionModel as DetectionModel
from srattn.tasks.detection.model import build_detection as build_detection
from srattn.tasks.detection.model import fcos as fcos
from srattn.tasks.detection.model import retinanet as retinanet
from srattn.tasks.detection.task import Detection as Detection
