"""The stations of a run, in their order: data, training, graphs, choosing, shipping. edgekd.pipeline joins them."""
