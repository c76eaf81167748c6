"""A service of the model in fake.py in a process of its own; says its address in a line."""

from __future__ import annotations

import json
import sys

import torch
from fake import levels_run

from srattn.serve import Options, make_app, serve
from srattn.serve.server import bind, url_of

torch.set_num_threads(1)
given = json.loads(sys.argv[1])
run = levels_run(given.pop("delay", 0.0))
bound = bind("127.0.0.1", 0)
serve(make_app(run, Options(**given)), bound, lambda: print(url_of(bound), flush=True))
