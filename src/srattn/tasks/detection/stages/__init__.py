"""Detectors of two stages (arXiv:1506.01497): where anything is, and then what, its true edges and its mask.

The second stage learns from a sample of the first one's proposals, for which it must know the objects while it runs:
whoever trains gives a model with `needs_targets` the targets beside the images, and gets the sums of its losses, which
`TwoStage` puts together. The alternative, to answer for all proposals and choose afterwards, costs a mask head over a
thousand boxes instead of a hundred, and could not learn from the true boxes, without which it learns nothing while the
proposals are still bad. All of it happens within `forward`, so that DDP sees every parameter used and autocast counts.
"""
