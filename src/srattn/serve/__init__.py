"""A model behind HTTP: `make_app` is the ASGI application, `serve` runs it until it is told to stop."""

from srattn.serve.app import make_app as make_app
from srattn.serve.options import Options as Options
from srattn.serve.server import serve as serve
