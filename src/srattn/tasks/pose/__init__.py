"""Poses of one person a window: what is minimised, answers, places in the image, and measures.

Whole models are in `srattn.tasks.pose.model`, which alone needs the backbones.
"""

from srattn.tasks.pose.decode import decode as decode
from srattn.tasks.pose.decode import in_image as in_image
from srattn.tasks.pose.task import Pose as Pose
