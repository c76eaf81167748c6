"""Answers for every pixel of images that are larger than what a model takes at once."""

from srattn.engine.sliding.options import Sliding as Sliding
from srattn.engine.sliding.run import Answer as Answer
from srattn.engine.sliding.run import Rows as Rows
from srattn.engine.sliding.run import slide as slide
from srattn.engine.sliding.run import slide_rows as slide_rows
