"""VP-tree, segments and distance kernels."""
