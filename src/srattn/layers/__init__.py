"""nn.Modules, a file an idea: reduction, attention, patch embedding, feed-forward, position, block."""
