"""Images whose answers lie in the image: masks and boxes, varied together with it."""

from srattn.data.dense.joint import JointAugment as JointAugment
from srattn.data.dense.joint import parse_joint as parse_joint
from srattn.data.dense.loader import SceneLoader as SceneLoader
from srattn.data.dense.scenes import SceneData as SceneData
from srattn.data.dense.scenes import Scenes as Scenes
from srattn.data.dense.target import Target as Target
