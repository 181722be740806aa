"""What runs on the target: numpy at import time, an inference runtime only inside its own adapter."""
