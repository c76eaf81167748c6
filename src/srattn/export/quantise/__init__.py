"""Files whose layers compute in whole numbers of 8 bits, or keep their weights in them.

A file is written and verified in float first; what the whole numbers cost is then measured against it, on images that
were not calibrated on: as noise, in decibels below the signal, and as the share of choices that are the same.
"""
