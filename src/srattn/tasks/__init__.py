"""Tasks: what a model's outputs mean. The engine knows `Task` and no concrete task."""

from srattn.tasks.classification import Classification as Classification
from srattn.tasks.protocol import Metrics as Metrics
from srattn.tasks.protocol import Task as Task
from srattn.tasks.registry import list_tasks as list_tasks
from srattn.tasks.registry import make_task as make_task
from srattn.tasks.registry import register_task as register_task
