"""Readers of data sets: numpy arrays with splits, labels, a licence and a hash of their content."""
