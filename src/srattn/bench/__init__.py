"""Speed and memory beside other implementations: the arena of models, the seed claim, regressions."""
