"""What one prediction is, by the bundle's task: one module per task, each with one function `interpret`."""
