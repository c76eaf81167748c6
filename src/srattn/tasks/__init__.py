"""Tasks: what a model's outputs mean. The engine knows `Task` and no concrete task."""

from srattn.tasks.classification import Classification as Classification
from srattn.tasks.protocol import Metrics as Metrics
from srattn.tasks.protocol import Task as Task
