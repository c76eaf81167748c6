"""What stands beside every figure, for the scripts of this folder."""

from srattn.bench.machine import describe as describe
